"""Options of what is learned, many at once: two processes learn what one does, and resume it."""

import json
import shutil

import pytest
import tomli_w
import torch
from conftest import draw_half_masks, draw_images
from safetensors.torch import load_file
from test_processes import launch
from test_sharing import FSDP

from impasto.config.load import load_run_config
from impasto.training.trainer import train

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

LEARNING = {
    "method": {"train_only": ["*attn*", "*resnets*"], "block_lrs": {"mid_block": 0.0}},
    "noise": {"immiscible": True},
    "training": {"max_steps": 4, "posthoc_ema": True},
    "validation": {
        "split": 0.3, "every_steps": 2, "by": ["tag", "subset"], "by_images": 2,
        "training_images": 5, "standard_error": 0.3,
    },
    "previews": {
        "prompts": ["a red ball", "a blue ball"], "features": "demo", "every_steps": 2,
        "width": 64, "height": 64, "steps": 2,
    },
    "saving": {
        "best_model": True, "format": "safetensors", "posthoc_every_steps": 2,
        "posthoc_dtype": "fp32", "state_every_steps": 2, "keep_states": 9,
    },
}  # fmt: skip
WEIGHED = {"diff_tuning": 1.0, "mask_by_area": True, "outside_mask": 0.1}


@pytest.fixture
def settings(run_values, pictures, tmp_path):
    """Write the settings of a run: images with masks, others to keep, and changes by section."""
    masks = draw_half_masks(pictures, tmp_path / "masks")
    kept = draw_images(tmp_path / "kept", 5, seed=9)
    dataset = {k: v for k, v in run_values["dataset"].items() if k != "image_dir"}
    subsets = [
        {"image_dir": str(pictures), "mask_dir": str(masks)},
        {"image_dir": str(kept), "is_reg": True},
    ]

    def write(name, *, accumulation=1, **changes):
        values = {
            **run_values, "output_dir": str(tmp_path / name),
            "dataset": {**dataset, "datasets": [{"subsets": subsets}]},
        }  # fmt: skip
        for section, fields in [*LEARNING.items(), *changes.items()]:
            values[section] = {**values.get(section, {}), **fields}
        values["training"]["gradient_accumulation_steps"] = accumulation
        file = tmp_path / f"{name}.toml"
        file.write_text(tomli_w.dumps(values), encoding="utf-8")
        return file

    return write


def measured(run, key):
    """The lines of metrics that have a number, without what is of the clock."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    of_the_clock = {"time", "images_per_s", "data_wait", "memory_mib"}
    return [
        {name: value for name, value in line.items() if name not in of_the_clock}
        for line in map(json.loads, lines)
        if key in line
    ]


def values_in(content):
    """All values of nested lists and mappings, in an order that depends on names alone."""
    if isinstance(content, dict):
        return [value for name in sorted(content) for value in (name, *values_in(content[name]))]
    if isinstance(content, list):
        return [value for part in content for value in values_in(part)]
    return [content]


def assert_measured_alike(one, other, key, *, count, rel):
    first, second = measured(one, key), measured(other, key)
    assert len(first) == len(second) == count
    for ours, theirs in zip(values_in(first), values_in(second), strict=True):
        is_number = isinstance(ours, float)
        assert theirs == (pytest.approx(ours, rel=rel, abs=1e-4) if is_number else ours)


def made_of_weights(run):
    """Models, averages, and the last state, tensor by tensor: `file: name` -> tensor."""
    places = ("export", "models", "averages", "states/step-00000004")
    files = [file for place in places for file in sorted((run / place).glob("*.safetensors"))]
    assert len(files) == 8  # two models, the start and two averages, three files of a state
    return {
        f"{file.relative_to(run).as_posix()}: {name}": tensor
        for file in files
        for name, tensor in load_file(file).items()
    }


def assert_alike(one, other):
    """What two runs have come to, up to the order in which sums are taken."""
    first, second = made_of_weights(one), made_of_weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.allclose(second[name], tensor, atol=1e-5, rtol=1e-3), name
    moved = [float(t.abs().max()) for name, t in first.items() if "/step-00000004.s" in name]
    assert max(moved) > 1e-3  # averages are stored less what the run began with
    assert_measured_alike(one, other, "loss", count=4, rel=1e-3)
    assert_measured_alike(one, other, "validation_loss", count=3, rel=1e-3)
    assert_measured_alike(one, other, "preview_features", count=3, rel=0.05)


def test_two_processes_learn_what_one_does(settings, tmp_path):
    """Noises are assigned within each process's batch, as within each of accumulation."""
    changes = {
        "loss": {**WEIGHED, "soft_min_snr_gamma": 4.0},
        "optimizer": {"kind": "SGD", "lr": 0.1, "start_decay": 2.0},
    }
    train(load_run_config(settings("alone", accumulation=2, **changes)))
    done = launch(["-m", "impasto", "train", settings("together", **changes)], 2)
    assert done.returncode == 0, done.stderr
    assert_alike(tmp_path / "alone", tmp_path / "together")
    (last,) = [m for m in measured(tmp_path / "together", "validation_by") if m["step"] == 4]
    assert {row["by"] for row in last["validation_by"]} == {"tag", "subset"}
    assert all("change" in row for row in last["validation_by"])


def test_shares_learn_what_one_process_does_and_are_resumed(settings, tmp_path):
    """Weights of the loss that are learned, averages and metrics: to the bit after a resume."""
    momentum = {"kind": "SGD", "lr": 0.1, "arguments": {"momentum": 0.5}}
    changes = {"loss": {**WEIGHED, "uncertainty": True}, "optimizer": momentum}
    train(load_run_config(settings("alone", accumulation=2, **changes)))
    run = tmp_path / "shares"
    done = launch(["-m", "impasto", "train", settings("shares", **changes)], 2, **FSDP)
    assert done.returncode == 0, done.stderr
    assert_alike(tmp_path / "alone", run)
    keys = ("loss", "validation_loss", "preview_features")
    tensors, metrics = made_of_weights(run), [measured(run, key) for key in keys]
    kill_after_first_state(run)
    done = launch(["-m", "impasto", "resume", run], 2, **FSDP)
    assert done.returncode == 0, done.stderr
    again = made_of_weights(run)
    assert again.keys() == tensors.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], again[name])] == []
    assert [measured(run, key) for key in keys] == metrics


def kill_after_first_state(run):
    """Leave a run as one that was killed before its second state, and lost a file besides."""
    shutil.rmtree(run / "states" / "step-00000004")
    shutil.rmtree(run / "samples" / "step-00000004")
    (run / "averages" / "start.safetensors").unlink()
    status = json.loads((run / "status.json").read_text(encoding="utf-8"))
    text = json.dumps({**status, "phase": "training"})
    (run / "status.json").write_text(text, encoding="utf-8")
