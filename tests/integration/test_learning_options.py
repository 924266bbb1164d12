"""Runs with options of what is learned: that each reaches the step, and is resumed exactly."""

import csv
from types import SimpleNamespace

import pytest
import torch
from conftest import draw_half_masks, draw_images
from runs import StopAt

from impasto.checkpoints.reading import open_tensor_file
from impasto.cli.plan import plan_as_json
from impasto.config.load import build_run_config
from impasto.errors import ConfigError
from impasto.training.monitoring.image_losses import ImageLosses
from impasto.training.step import StepOutput
from impasto.training.trainer import resume, train


def weights_of(run):
    tensors = open_tensor_file(run.exported_model()).tensors
    return {name: tensor.read() for name, tensor in tensors.items()}


def same(one, other):
    ours, theirs = weights_of(one), weights_of(other)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def settings(run_values, tmp_path, pictures):
    """A run of six steps, with images that keep beside those that are trained on."""

    def build(name, *, kept=False, subset=(), **changes):
        dataset = {k: v for k, v in run_values["dataset"].items() if k != "image_dir"}
        subsets = [{"image_dir": str(pictures), **dict(subset)}]
        if kept:
            folder = tmp_path / "kept"
            if not folder.exists():
                draw_images(folder, 6, seed=9)
            subsets.append({"image_dir": str(folder), "is_reg": True})
        values = {
            **run_values,
            "output_dir": str(tmp_path / name),
            "dataset": {**dataset, "datasets": [{"subsets": subsets}]},
            "saving": {
                **run_values["saving"], "format": "safetensors", "state_every_steps": 3,
            },
        }  # fmt: skip
        for section, fields in changes.items():
            values[section] = {**values.get(section, {}), **fields}
        return build_run_config(values, source="test")

    return build


OPTIONS = {
    "soft min-SNR": {"loss": {"soft_min_snr_gamma": 4.0}},
    "Diff-Tuning": {"loss": {"diff_tuning": 1.0}, "kept": True},
    "immiscible": {"noise": {"immiscible": True}},
    "uncertainty": {"loss": {"uncertainty": True}},
    "patterns": {"method": {"train_only": ["*.attn2.*", "conv_in.bias"]}},
    "subset": {"subset": {"loss_weight": 0.5}, "kept": True},
}


@pytest.mark.parametrize("option", list(OPTIONS))
def test_an_option_changes_what_is_learned_and_is_resumed_exactly(
    settings, option, fresh_accelerate
):
    changes = OPTIONS[option]
    plain = {"kept": True} if "kept" in changes else {}
    whole = train(settings("whole", **changes))
    assert not same(whole, train(settings("plain", **plain)))
    stopped = settings("stopped", **changes)
    with pytest.raises(ZeroDivisionError):
        train(stopped, StopAt(4))
    assert same(whole, resume(stopped.output_dir))


def test_the_table_of_losses_is_without_what_images_are_for(settings, fresh_accelerate):
    """With Diff-Tuning both kinds of images keep the losses that they have at their noise."""
    logging = {"image_losses": True, "every_steps": 1}

    def first_rows(name, **loss):
        run = train(settings(name, kept=True, loss=loss, logging=logging))
        with run.image_losses_file.open(encoding="utf-8", newline="") as file:
            return [row for row in csv.DictReader(file) if row["step"] == "1"]

    plain, tuned = first_rows("plain"), first_rows("tuned", diff_tuning=1.0)
    assert [row["image"] for row in tuned] == [row["image"] for row in plain]
    assert {"/kept/" in row["image"] for row in plain} == {True, False}
    assert [float(row["loss"]) for row in tuned] == pytest.approx(
        [float(row["loss"]) for row in plain], rel=1e-4
    )


def test_an_image_that_counts_nothing_has_no_row(tmp_path):
    """Such as one that could not be read any more: its loss of 0 would be the lowest."""
    one = SimpleNamespace(is_main_process=True, num_processes=1)
    run = SimpleNamespace(image_losses_file=tmp_path / "image_losses.csv")
    losses = ImageLosses(one, run)
    output = StepOutput(torch.tensor([0.5, 0.0]), torch.tensor([3, 4]), torch.tensor([0.5, 0.0]))
    losses.add(0, ["a.png", "lost.png"], output)
    losses.write(1)
    rows = run.image_losses_file.read_text(encoding="utf-8").splitlines()
    assert rows == ["step,image,timestep,loss", "1,a.png,3,1.0"]


def test_weights_of_masks_reach_the_step(settings, pictures, tmp_path, fresh_accelerate):
    """With a weight of 1 outside, masks weigh nothing; by area, they weigh more than plainly."""
    masks = draw_half_masks(pictures, tmp_path / "masks")

    def first_loss(name, **loss):
        run = train(settings(name, subset={"mask_dir": str(masks)}, loss=loss))
        return next(m["loss"] for m in run.read_metrics() if "loss" in m)

    run = train(settings("without"))
    without = next(m["loss"] for m in run.read_metrics() if "loss" in m)
    plain = first_loss("plain")
    assert plain < 0.8 * without
    assert first_loss("all", outside_mask=1.0) == pytest.approx(without, rel=1e-5)
    assert plain < first_loss("outside", outside_mask=0.5) < without
    assert first_loss("area", mask_by_area=True) > 1.2 * plain


def test_a_weight_of_a_subset_multiplies_its_losses(settings, fresh_accelerate):
    """All images of a run have it, so the loss before anything is learned is multiplied by it."""

    def first_loss(run):
        return next(m["loss"] for m in run.read_metrics() if "loss" in m)

    plain = train(settings("plain"))
    tripled = train(settings("tripled", subset={"loss_weight": 3.0}))
    assert first_loss(tripled) == pytest.approx(3 * first_loss(plain), rel=1e-5)


def test_only_what_patterns_find_learns(settings, fresh_accelerate, nano_model):
    config = settings("some", method={"train_only": ["*.attn2.*", "conv_in.bias"]})
    tensors = weights_of(train(config))
    still = settings("still", optimizer={"lr": 1e-12, "weight_decay": 0.0})
    base = weights_of(train(still))
    moved = {name for name in base if not torch.allclose(base[name], tensors[name], atol=1e-7)}
    prefix = "model.diffusion_model."
    assert {name for name in moved if ".attn2." not in name} == {f"{prefix}input_blocks.0.0.bias"}
    assert sum(".attn2." in name for name in moved) > 10


def test_plans_tell_what_patterns_find(settings, fresh_accelerate):
    found, error = plan_as_json(settings("plan", method={"train_only": ["*.attn2.*"]}))
    assert error is None
    names = found["model"]["only"]["*.attn2.*"]
    assert names
    assert all(".attn2." in name for name in names)
    assert found["model"]["parts"].keys() == {"unet"}
    with pytest.raises(ConfigError, match=r"'attention\*', which no weight"):
        plan_as_json(settings("none", method={"train_only": ["*.attn2.*", "attention*"]}))
    frozen = {"train_only": ["mid_block.*"], "block_lrs": {"mid_block": 0.0}}
    with pytest.raises(ConfigError, match="together leave all of the U-Net"):
        plan_as_json(settings("frozen", method=frozen))
    idle = {"train_only": ["mid_block.*"], "block_lrs": {"up_blocks.0": 1e-6}}
    with pytest.raises(
        ConfigError, match=r"up_blocks\.0, of which method\.train_only lets nothing"
    ):
        plan_as_json(settings("idle", method=idle))
