"""The settings that the memory ladder chooses can be built."""

import itertools

import pytest
from conftest import draw_images
from flat_models import write_flat_model
from ladders import FACTS, METHODS, begun, rungs_taken

from impasto.config.compatibility import goes_together
from impasto.config.load import dump_toml
from impasto.optimizer_table import OPTIMIZERS
from impasto.training.assembly.build import build_session
from impasto.training.builders.overrides import Overrides
from impasto.training.devices import build_accelerator
from impasto.training.events import SilentEvents
from impasto.training.planning.levers import with_rungs

OF_EACH_SORT = ("adamw", "paged_adamw8bit", "lion", "adafactor", "prodigy", "adamw_schedule_free")


@pytest.fixture(scope="module")
def sources(tmp_path_factory, nano_architecture):
    """A model, and images that are encoded once for all builds."""
    folder = tmp_path_factory.mktemp("sources")
    images = draw_images(folder / "images", 5)
    return {
        "model": {"path": str(write_flat_model(nano_architecture, folder / "model"))},
        "dataset": {"image_dir": str(images), "cache_dir": str(folder / "cache")},
    }


def built_here(rung):
    """Return whether a CPU can build a rung's settings."""
    return not any(word in rung.text() for word in ("offload_optimizer", "stream_w", "fp16"))


def chosen_settings(config):
    """Return the ladder's settings for each device and strategy, without those for GPUs only."""
    starts = [facts for facts in FACTS.values() if goes_together(config, facts)]
    chosen = [
        with_rungs(config, [rung for rung in rungs_taken(config, facts) if built_here(rung)])
        for facts in starts
    ]
    return list({dump_toml(one): one for one in chosen}.values())


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (kind, method)
        for kind, method in itertools.product(OPTIMIZERS, METHODS)
        if method == "full" or kind in OF_EACH_SORT
    ],
)
def test_what_the_ladder_chooses_is_built(
    train_config, run_values, sources, tmp_path, kind, method, fresh_accelerate
):
    """One process builds all distinct settings for a CPU, a GPU, several GPUs, and shards."""
    for section, values in sources.items():
        run_values[section] |= values
    found = chosen_settings(begun(train_config, kind, method))
    assert found
    for number, chosen in enumerate(found):
        run = tmp_path / f"run-{number}"
        run.mkdir()
        chosen = chosen.model_copy(update={"output_dir": run})
        session = build_session(chosen, build_accelerator(), SilentEvents(), Overrides())
        assert session.total_steps == 6
