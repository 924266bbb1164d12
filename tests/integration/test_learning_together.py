"""Many learning options at once: two processes learn what one does."""

import json

import pytest
import tomli_w
import torch
from conftest import draw_half_masks, draw_images
from flat_models import one_level_model
from safetensors.torch import load_file
from short_runs import short_run
from test_processes import launch

from impasto.config.load import load_run_config
from impasto.training.trainer import train

nano_model = one_level_model

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


def settings_in(folder, model):
    """Return a function that writes settings: images with masks, prior images, and changes."""
    pictures = draw_images(folder / "pictures", 13)
    masks = draw_half_masks(pictures, folder / "masks")
    kept = draw_images(folder / "kept", 5, seed=9)
    plain = short_run(folder, model, pictures)
    dataset = {k: v for k, v in plain["dataset"].items() if k != "image_dir"}
    subsets = [
        {"image_dir": str(pictures), "mask_dir": str(masks)},
        {"image_dir": str(kept), "is_reg": True},
    ]

    def write(run, *, accumulation=1, **changes):
        values = {
            **plain, "output_dir": str(run),
            "dataset": {**dataset, "datasets": [{"subsets": subsets}]},
        }  # fmt: skip
        for section, fields in [*LEARNING.items(), *changes.items()]:
            values[section] = {**values.get(section, {}), **fields}
        values["training"]["gradient_accumulation_steps"] = accumulation
        file = run.with_suffix(".toml")
        file.write_text(tomli_w.dumps(values), encoding="utf-8")
        return file

    return write


def measured(run, key):
    """Return the metrics lines that contain a number, without times."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    of_the_clock = {"time", "images_per_s", "data_wait", "memory_mib"}
    return [
        {name: value for name, value in line.items() if name not in of_the_clock}
        for line in map(json.loads, lines)
        if key in line
    ]


def values_in(content):
    """Return all values of nested lists and dicts, in an order that depends on names only."""
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
        assert theirs == (pytest.approx(ours, rel=rel, abs=1e-5) if is_number else ours)


def made_of_weights(run):
    """Return models, averages and the last state, tensor by tensor: `file: name` -> tensor."""
    places = ("export", "models", "averages", "states/step-00000004")
    files = [file for place in places for file in sorted((run / place).glob("*.safetensors"))]
    return {
        f"{file.relative_to(run).as_posix()}: {name}": tensor
        for file in files
        for name, tensor in load_file(file).items()
    }


def assert_alike(one, other, *, files, atol=1e-5, rtol=1e-3):
    """Require that two runs have the same results, up to the order of summation."""
    first, second = made_of_weights(one), made_of_weights(other)
    assert first.keys() == second.keys()
    assert len({name.partition(": ")[0] for name in first}) == files
    for name, tensor in first.items():
        assert torch.allclose(second[name], tensor, atol=atol, rtol=rtol), name
    moved = [float(t.abs().max()) for name, t in first.items() if "/step-00000004.s" in name]
    assert max(moved) > 1e-3  # averages are stored as differences from the start
    assert_measured_alike(one, other, "loss", count=4, rel=1e-4)
    assert_measured_alike(one, other, "validation_loss", count=3, rel=1e-4)
    assert_measured_alike(one, other, "preview_features", count=3, rel=0.05)


def test_two_processes_learn_what_one_does(nano_model, tmp_path):
    """Noise is assigned within each process's batch, as within each accumulated micro-batch."""
    changes = {
        "loss": {**WEIGHED, "soft_min_snr_gamma": 4.0},
        "optimizer": {"kind": "SGD", "lr": 0.1, "start_decay": 2.0},
    }
    write, alone, together = settings_in(tmp_path, nano_model), tmp_path / "one", tmp_path / "two"
    train(load_run_config(write(alone, accumulation=2, **changes)))
    done = launch(["-m", "impasto", "train", write(together, **changes)], 2)
    assert done.returncode == 0, done.stderr
    # two models, the start and two averages, and of a state two: plain SGD keeps no tensors
    assert_alike(alone, together, files=7)
    (last,) = [m for m in measured(together, "validation_by") if m["step"] == 4]
    assert {row["by"] for row in last["validation_by"]} == {"tag", "subset"}
    assert all("change" in row for row in last["validation_by"])
