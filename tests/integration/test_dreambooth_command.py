"""sd-scripts' DreamBooth command as in its guide, on the nano model."""

from pathlib import Path

import pytest
import torch
from conftest import draw_images
from flat_models import one_level_model
from runs import copied
from safetensors.torch import load_file
from support.warm import running

from impasto.errors import RunError
from impasto.runs import RunDirectory
from impasto.sdscripts import drop_in
from impasto.sdscripts.flag import TRAIN_DB

nano_model = one_level_model

SCRIPT = Path(__file__).parents[2] / "train_db.py"


MODEL = "--pretrained_model_name_or_path="


@pytest.fixture(scope="module")
def project(tmp_path_factory, nano_model):
    """A checkpoint, four images of a subject and six of its class. Read-only by agreement."""
    from impasto.models.reading.opening import OpenOptions
    from impasto.models.writing.conversion import convert_model, form_of

    folder = tmp_path_factory.mktemp("project")
    draw_images(folder / "train" / "3_sks ball", 4, seed=1, captions=False)
    draw_images(folder / "reg" / "1_ball", 6, seed=2, captions=False)
    model = folder / "model.safetensors"
    convert_model(str(nano_model), model, form_of(model, None), {}, OpenOptions())
    return folder


def words_for(project, out, *, steps=4, stop=2):
    """Return the guide's command line."""
    return [
        f"{MODEL}{project / 'model.safetensors'}",
        f"--train_data_dir={project / 'train'}",
        f"--reg_data_dir={project / 'reg'}",
        "--resolution=64",
        f"--output_dir={out}",
        "--output_name=mine",
        "--prior_loss_weight=0.5",
        f"--max_train_steps={steps}",
        "--learning_rate=1e-3",
        "--use_8bit_adam",
        "--xformers",
        "--mixed_precision=bf16",
        "--cache_latents",
        "--gradient_checkpointing",
        "--save_model_as=safetensors",
        f"--stop_text_encoder_training={stop}",
        "--seed=1",
    ]


@pytest.fixture(scope="module")
def guided(project, tmp_path_factory):
    """Run the guide's command as a program. Read-only by agreement: see `copied`."""
    out = tmp_path_factory.mktemp("guided") / "out"
    done = running.run(SCRIPT, *words_for(project, out))
    assert done.returncode == 0, done.stderr
    return out


def changed(before, after, prefix):
    return {k for k in before if k.startswith(prefix) and not torch.equal(before[k], after[k])}


def test_the_command_of_the_guide(guided, project):
    """The text encoder learns for two steps; class images are shown as often, and count half."""
    before, after = load_file(project / "model.safetensors"), load_file(guided / "mine.safetensors")
    assert before.keys() == after.keys()
    assert changed(before, after, "cond_stage_model.")
    assert len(changed(before, after, "model.diffusion_model.")) > 50
    assert not changed(before, after, "first_stage_model.")
    run = RunDirectory(guided / "mine-run")
    facts = run.read_json("dataset.json")
    assert (facts["images"], facts["regularisation"]) == (10, 6)
    text = run.config_file.read_text(encoding="utf-8")
    assert "text_encoder_until_step = 2" in text
    assert "prior_loss_weight = 0.5" in text


def test_a_text_encoder_that_is_stopped_at_once_stays_as_it_was(project, tmp_path):
    drop_in.run(TRAIN_DB, words_for(project, tmp_path / "out", steps=1, stop=-1))
    before = load_file(project / "model.safetensors")
    after = load_file(tmp_path / "out" / "mine.safetensors")
    assert not changed(before, after, "cond_stage_model.")
    assert changed(before, after, "model.diffusion_model.")


def test_a_run_goes_on_with_the_flags_that_are_given(guided, tmp_path):
    """Flags that are not given keep the run's values: a stopped text encoder stays stopped."""
    again = copied(RunDirectory(guided / "mine-run"), tmp_path / "out")
    drop_in.run(TRAIN_DB, [f"--resume={again.path}", "--max_train_steps=5"])
    before = load_file(guided / "mine.safetensors")
    after = load_file(tmp_path / "out" / "mine.safetensors")
    assert not changed(before, after, "cond_stage_model.")
    assert changed(before, after, "model.diffusion_model.")


def test_the_stop_of_a_text_encoder_may_be_moved_while_it_lies_ahead(project, tmp_path):
    """The stop may be moved while it lies ahead, as in a longer run; a past stop cannot be
    undone."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    drop_in.run(TRAIN_DB, words_for(project, out, steps=2, stop=2))
    resumed, moved = f"--resume={out / 'mine-run'}", "--stop_text_encoder_training=3"
    drop_in.run(TRAIN_DB, [resumed, "--max_train_steps=4", moved])
    drop_in.run(TRAIN_DB, words_for(project, whole, steps=4, stop=3))
    one, other = (load_file(folder / "mine.safetensors") for folder in (out, whole))
    assert not changed(one, other, "")
    with pytest.raises(RunError, match=r"text_encoder_until_step \(was 3, is 4\)"):
        drop_in.run(TRAIN_DB, [resumed, "--max_train_steps=6", "--stop_text_encoder_training=4"])
