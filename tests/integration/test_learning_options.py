"""Runs with learning options: each reaches the step, and is resumed exactly."""

import csv
import itertools
from types import SimpleNamespace

import pytest
import torch
from conftest import draw_half_masks, draw_images
from runs import KillAt
from short_runs import short_run

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


def same(ours, theirs):
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Training images, prior images, and the encodings of both."""
    folder = tmp_path_factory.mktemp("shared")
    draw_images(folder / "pictures", 13)
    draw_images(folder / "kept", 6, seed=9)
    return folder


@pytest.fixture(scope="module")
def settings(folder, nano_model):
    """Settings of a run of some steps, with prior images beside the training images."""
    usual = short_run(folder, nano_model, folder / "pictures")
    dataset = {k: v for k, v in usual["dataset"].items() if k != "image_dir"}

    def build(path, *, kept=False, subset=(), steps=3, **changes):
        subsets = [{"image_dir": str(folder / "pictures"), **dict(subset)}]
        if kept:
            subsets.append({"image_dir": str(folder / "kept"), "is_reg": True})
        values = {
            **usual,
            "output_dir": str(path),
            "dataset": {**dataset, "datasets": [{"subsets": subsets}]},
            "saving": {**usual["saving"], "format": "safetensors", "state_every_steps": 2},
            "training": {**usual["training"], "max_steps": steps},
        }
        for section, fields in changes.items():
            values[section] = {**values.get(section, {}), **fields}
        return build_run_config(values, source="test")

    return build


def first_loss(config):
    """Return the loss before anything is learned."""
    return next(m["loss"] for m in train(config).read_metrics() if "loss" in m)


OPTIONS = {
    "patterns, immiscible, uncertainty": [
        {"method": {"train_only": ["*.attn2.*", "conv_in.bias"]}},
        {"noise": {"immiscible": True}},
        {"loss": {"uncertainty": True}},
    ],
    "subset, soft min-SNR, Diff-Tuning": [
        {"subset": {"loss_weight": 0.5}, "kept": True},
        {"loss": {"soft_min_snr_gamma": 4.0}},
        {"loss": {"soft_min_snr_gamma": 4.0, "diff_tuning": 1.0}},
    ],
}


@pytest.mark.parametrize("options", list(OPTIONS))
def test_each_option_changes_what_is_learned_and_all_are_resumed_exactly(
    settings, options, tmp_path, fresh_accelerate
):
    """Each time one more option is added; a run with all of them is killed and resumed."""
    added = OPTIONS[options]
    so_far = {"kept": True} if "kept" in added[0] else {}
    found = [weights_of(train(settings(tmp_path / "plain", **so_far)))]
    for number, option in enumerate(added):
        so_far |= option
        config = settings(tmp_path / f"run{number}", **so_far)
        kill = KillAt(config.output_dir, step=3, saved=2)
        found.append(weights_of(train(config, kill)))
    assert not any(same(one, other) for one, other in itertools.pairwise(found))
    kill.put_back()
    assert same(found[-1], weights_of(resume(config.output_dir)))


def test_the_table_of_losses_is_without_what_images_are_for(settings, tmp_path, fresh_accelerate):
    """With Diff-Tuning both kinds of images have their unweighted losses in the table."""
    logging = {"image_losses": True, "every_steps": 1}

    def first_rows(name, **loss):
        config = settings(tmp_path / name, kept=True, loss=loss, logging=logging, steps=1)
        with train(config).image_losses_file.open(encoding="utf-8", newline="") as file:
            return [row for row in csv.DictReader(file) if row["step"] == "1"]

    plain, tuned = first_rows("plain"), first_rows("tuned", diff_tuning=1.0)
    assert [row["image"] for row in tuned] == [row["image"] for row in plain]
    assert {"/kept/" in row["image"] for row in plain} == {True, False}
    assert [float(row["loss"]) for row in tuned] == pytest.approx(
        [float(row["loss"]) for row in plain], rel=1e-4
    )


def test_an_image_that_counts_nothing_has_no_row(tmp_path):
    """An image with weight 0, such as an unreadable one, has no row: its 0 would be the lowest
    loss.
    """
    one = SimpleNamespace(is_main_process=True, num_processes=1)
    run = SimpleNamespace(image_losses_file=tmp_path / "image_losses.csv")
    losses = ImageLosses(one, run)
    output = StepOutput(torch.tensor([0.5, 0.0]), torch.tensor([3, 4]), torch.tensor([0.5, 0.0]))
    losses.add(0, ["a.png", "lost.png"], output)
    losses.write(1)
    rows = run.image_losses_file.read_text(encoding="utf-8").splitlines()
    assert rows == ["step,image,timestep,loss", "1,a.png,3,1.0"]


def test_weights_of_masks_and_subsets_reach_the_step(settings, folder, tmp_path, fresh_accelerate):
    """The initial losses are multiplied by the weight of their only subset.

    With a weight of 1 outside, masks have no effect; by area, masked losses are higher.
    """
    masks = draw_half_masks(folder / "pictures", tmp_path / "masks")

    def masked(name, **loss):
        subset = {"mask_dir": str(masks)}
        return first_loss(settings(tmp_path / name, subset=subset, loss=loss, steps=1))

    without = first_loss(settings(tmp_path / "without", steps=1))
    tripled = settings(tmp_path / "tripled", subset={"loss_weight": 3.0}, steps=1)
    assert first_loss(tripled) == pytest.approx(3 * without, rel=1e-5)
    assert masked("all", outside_mask=1.0) == pytest.approx(without, rel=1e-5)
    plain = masked("plain")
    assert plain < 0.8 * without
    assert plain < masked("outside", outside_mask=0.5) < without
    assert masked("area", mask_by_area=True) > 1.2 * plain


def test_only_what_patterns_find_learns(settings, tmp_path, fresh_accelerate):
    config = settings(
        tmp_path / "some", steps=2, method={"train_only": ["*.attn2.*", "conv_in.bias"]}
    )
    tensors = weights_of(train(config))
    still = settings(tmp_path / "still", steps=1, optimizer={"lr": 1e-12, "weight_decay": 0.0})
    base = weights_of(train(still))
    moved = {name for name in base if not torch.allclose(base[name], tensors[name], atol=1e-7)}
    prefix = "model.diffusion_model."
    assert {name for name in moved if ".attn2." not in name} == {f"{prefix}input_blocks.0.0.bias"}
    assert sum(".attn2." in name for name in moved) > 10


def test_plans_tell_what_patterns_find(settings, tmp_path, fresh_accelerate):
    found, error = plan_as_json(settings(tmp_path / "plan", method={"train_only": ["*.attn2.*"]}))
    assert error is None
    names = found["model"]["only"]["*.attn2.*"]
    assert names
    assert all(".attn2." in name for name in names)
    assert found["model"]["parts"].keys() == {"unet"}
    with pytest.raises(ConfigError, match=r"'attention\*', which matches no weight"):
        plan_as_json(
            settings(tmp_path / "none", method={"train_only": ["*.attn2.*", "attention*"]})
        )
    frozen = {"train_only": ["mid_block.*"], "block_lrs": {"mid_block": 0.0}}
    with pytest.raises(ConfigError, match="together leave all of the U-Net"):
        plan_as_json(settings(tmp_path / "frozen", method=frozen))
    idle = {"train_only": ["mid_block.*"], "block_lrs": {"up_blocks.0": 1e-6}}
    with pytest.raises(
        ConfigError, match=r"up_blocks\.0, of which method\.train_only trains nothing"
    ):
        plan_as_json(settings(tmp_path / "idle", method=idle))
    table = {"train_only": ["*.attn2.*"], "block_lrs": {"conv_in": 1e-6, "mid_block": 1e-6}}
    assert plan_as_json(settings(tmp_path / "table", method=table))[1] is None
