"""Runs with options of what is learned: that each reaches the step, and is resumed exactly."""

import pytest
import torch
from conftest import draw_images
from runs import StopAt

from impasto.checkpoints.reading import open_tensor_file
from impasto.config.load import build_run_config
from impasto.errors import RunError
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


def test_a_changed_cut_of_batches_is_named_where_noise_is_chosen_in_each(
    settings, fresh_accelerate
):
    config = settings("cut", noise={"immiscible": True}, training={"batch_size": 2})
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(4))
    file = config.output_dir / "config.toml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("immiscible = true", "immiscible = false"), encoding="utf-8")
    with pytest.raises(RunError, match=r"noise\.immiscible"):
        resume(config.output_dir)
