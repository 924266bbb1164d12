"""sd-scripts' command for DreamBooth as its guide has it, on the nano model."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import draw_images
from safetensors.torch import load_file
from support.warm import running

from impasto.errors import RunError
from impasto.runs import RunDirectory
from impasto.sdscripts import drop_in
from impasto.sdscripts.flag import TRAIN_DB

SCRIPT = Path(__file__).parents[2] / "train_db.py"


@pytest.fixture
def words(tmp_path, nano_model, ldm_file):
    """The command of the guide, on four images of a thing and six of its class."""
    draw_images(tmp_path / "train" / "3_sks ball", 4, seed=1, captions=False)
    draw_images(tmp_path / "reg" / "1_ball", 6, seed=2, captions=False)
    return [
        f"--pretrained_model_name_or_path={ldm_file(nano_model)}",
        f"--train_data_dir={tmp_path / 'train'}",
        f"--reg_data_dir={tmp_path / 'reg'}",
        "--resolution=64",
        f"--output_dir={tmp_path / 'out'}",
        "--output_name=mine",
        "--prior_loss_weight=0.5",
        "--max_train_steps=4",
        "--learning_rate=1e-3",
        "--use_8bit_adam",
        "--xformers",
        "--mixed_precision=bf16",
        "--cache_latents",
        "--gradient_checkpointing",
        "--save_model_as=safetensors",
        "--stop_text_encoder_training=2",
        "--seed=1",
    ]


def changed(before, after, prefix):
    return {k for k in before if k.startswith(prefix) and not torch.equal(before[k], after[k])}


def test_the_command_of_the_guide(tmp_path, words):
    """The text encoder learns for two steps; images of the class come as often, and count half."""
    done = running.run(SCRIPT, *words)
    assert done.returncode == 0, done.stderr
    base = Path(words[0].partition("=")[2])
    before, after = load_file(base), load_file(tmp_path / "out" / "mine.safetensors")
    assert before.keys() == after.keys()
    assert changed(before, after, "cond_stage_model.")
    assert len(changed(before, after, "model.diffusion_model.")) > 50
    assert not changed(before, after, "first_stage_model.")
    run = RunDirectory(tmp_path / "out" / "mine-run")
    facts = run.read_json("dataset.json")
    assert (facts["pictures"], facts["regularisation"]) == (10, 6)
    text = run.config_file.read_text(encoding="utf-8")
    assert "text_encoder_until_step = 2" in text
    assert "prior_loss_weight = 0.5" in text


def test_a_text_encoder_that_is_stopped_at_once_stays_as_it_was(tmp_path, words):
    drop_in.run(TRAIN_DB, [*words[:-2], "--stop_text_encoder_training=-1", "--seed=1"])
    base = Path(words[0].partition("=")[2])
    before, after = load_file(base), load_file(tmp_path / "out" / "mine.safetensors")
    assert not changed(before, after, "cond_stage_model.")
    assert changed(before, after, "model.diffusion_model.")


def test_a_run_goes_on_with_the_flags_that_are_given(tmp_path, words):
    """What is not given leaves the run's: the encoder that was stopped stays so."""
    drop_in.run(TRAIN_DB, words)
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "out", whole)
    drop_in.run(TRAIN_DB, [f"--resume={tmp_path / 'out' / 'mine-run'}", "--max_train_steps=6"])
    before = load_file(whole / "mine.safetensors")
    after = load_file(tmp_path / "out" / "mine.safetensors")
    assert not changed(before, after, "cond_stage_model.")
    assert changed(before, after, "model.diffusion_model.")


def test_the_stop_of_a_text_encoder_may_be_moved_while_it_lies_ahead(tmp_path, words):
    """As by a longer run from the beginning; one that is behind cannot be made undone."""
    moved = "--stop_text_encoder_training=5"
    later = [word.replace("training=2", "training=4") for word in words]
    drop_in.run(TRAIN_DB, later)
    resumed = f"--resume={tmp_path / 'out' / 'mine-run'}"
    drop_in.run(TRAIN_DB, [resumed, "--max_train_steps=6", moved])
    whole = [word for word in words if not word.startswith(("--max_train", "--stop_"))]
    folder = f"--output_dir={tmp_path / 'whole'}"
    drop_in.run(TRAIN_DB, [*whole, folder, "--max_train_steps=6", moved])
    one, other = (load_file(tmp_path / name / "mine.safetensors") for name in ("out", "whole"))
    assert not changed(one, other, "")
    with pytest.raises(RunError, match=r"text_encoder_until_step \(was 5, is 6\)"):
        drop_in.run(TRAIN_DB, [resumed, "--max_train_steps=8", "--stop_text_encoder_training=6"])
