"""What the ladder of settings chooses for little memory can be built."""

import pytest
from conftest import draw_images
from flat_models import write_flat_model
from ladders import FACTS, METHODS, begun, rungs_taken

from impasto.training.assembly.build import build_session
from impasto.training.builders.overrides import Overrides
from impasto.training.devices import build_accelerator
from impasto.training.events import SilentEvents
from impasto.training.planning.levers import with_rungs

OF_EACH_SORT = ("adamw", "paged_adamw8bit", "lion", "adafactor", "prodigy", "adamw_schedule_free")


@pytest.fixture(scope="module")
def sources(tmp_path_factory, nano_architecture):
    """A model, and images that are encoded once for all that is built."""
    folder = tmp_path_factory.mktemp("sources")
    images = draw_images(folder / "images", 5)
    return {
        "model": {"path": str(write_flat_model(nano_architecture, folder / "model"))},
        "dataset": {"image_dir": str(images), "cache_dir": str(folder / "cache")},
    }


@pytest.mark.parametrize("kind", OF_EACH_SORT)
@pytest.mark.parametrize("method", METHODS)
def test_what_the_ladder_chooses_is_built(
    train_config, run_values, sources, tmp_path, kind, method, fresh_accelerate
):
    """All of it on a processor; of what is for a GPU, what a processor can build too."""
    for section, values in sources.items():
        run_values[section] |= values
    for name in ("CPU", "GPU"):
        config = begun(train_config, kind, method)
        rungs = [
            rung
            for rung in rungs_taken(config, FACTS[name])
            if not any(word in rung.text() for word in ("offload_optimizer", "stream_w", "fp16"))
        ]
        chosen = with_rungs(config, rungs)
        run = tmp_path / f"run-{name}"
        run.mkdir()
        chosen = chosen.model_copy(update={"output_dir": run})
        session = build_session(chosen, build_accelerator(), SilentEvents(), Overrides())
        assert session.total_steps == 6
