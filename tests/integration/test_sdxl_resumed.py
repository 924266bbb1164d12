"""A killed SDXL run continues to the last bit; shards learn what a whole model does.

SD 1's runs have no second text encoder, sizes of images or pooled text. If this failed, an
interrupted run would continue differently.
"""

import json

import pytest
import torch
from component_files import UNET_FILE
from conftest import draw_images
from runs import exported, killed_copy
from safetensors.torch import load_file
from test_processes import launch
from test_sharing import FSDP, recorded_losses

from impasto.training.trainer import resume, train

FILES = (UNET_FILE, "text_encoder/model.safetensors", "text_encoder_2/model.safetensors")
BOTH = {"train_text_encoder": True}
BF16 = {"mixed_precision": "bf16", "weight_dtype": "bf16"}
REGULARISED = (
    "one encoder learns, velocity to pure noise, fp16 weights, several chunks, regularisation"
)


def augmented(pictures, balls):
    """Return subsets with different repeats, one of them for regularisation."""
    subsets = [
        {"image_dir": str(pictures), "random_crop": True, "flip_aug": True, "color_aug": True},
        {"image_dir": str(balls), "is_reg": True, "class_tokens": "a ball"},
    ]
    return {"datasets": [{"prior_loss_weight": 0.5, "subsets": subsets}]}


VARIANTS = {
    "U-Net alone, captions on disk and left out, blocks at rates of their own": {
        "method": {"block_lrs": {"add_embedding": 1e-4, "down_blocks.1.attentions.0": 0}},
        "training": {"cache_text_to_disk": True},
        "dataset": {"caption_dropout_rate": 0.5},
    },
    "both encoders at rates of their own, for a while, bf16 weights with an average": {
        "method": {
            **BOTH,
            "text_encoder_lrs": {"text_encoder": 1e-4, "text_encoder_2": 5e-4},
            "text_encoder_from_step": 1,
            "text_encoder_until_step": 3,
        },
        "training": {**BF16, "ema_decay": 0.9},
        "saving": {"average": "beside"},
    },
    REGULARISED: {
        "model": {"prediction_type": "v_prediction", "max_tokens": 150},
        "method": {**BOTH, "text_encoder_lrs": {"text_encoder_2": 0}},
        "noise": {"zero_terminal_snr": True, "offset": 0.1},
        "loss": {"min_snr_gamma": 5.0},
        "schedule": {"kind": "cosine", "warmup_steps": 2},
        "training": {
            "mixed_precision": "fp16",
            "weight_dtype": "fp16",
            "gradient_accumulation_steps": 2,
            "ema_decay": 0.9,
            "ema_power": 0.75,
            "ema_on_cpu": True,
        },
        "logging": {"image_losses": True},
    },
    "Adafactor in the backward pass by the norm before, bf16 with stochastic rounding": {
        "method": BOTH,
        "optimizer": {
            "kind": "adafactor",
            "arguments": {"scale_parameter": False, "relative_step": False, "warmup_init": False},
        },
        "training": {
            **BF16, "optimizer_in_backward": "last_norm", "max_grad_norm": 0.01,
            "gradient_checkpointing": True,
        },
    },
    "8-bit, what rounding took is remembered, accumulation": {
        "method": BOTH,
        "optimizer": {"kind": "adamw8bit"},
        "training": {**BF16, "rounding": "kahan", "gradient_accumulation_steps": 2},
    },
}  # fmt: skip

COMPARED = ("step", "samples_seen", "loss", "grad_norm", "lr")


@pytest.fixture
def sdxl_config(train_config, nano_sdxl_model):
    def build(**changes):
        sections = {
            "model": {"path": str(nano_sdxl_model)},
            "saving": {"state_every_steps": 2, "keep_states": 9},
            "training": {"max_steps": 4},
        }
        for name, values in sections.items():
            changes[name] = {**values, **changes.get(name, {})}
        return train_config(**changes)

    return build


def assert_resumed_exactly(whole, run):
    assert exported(run) == exported(whole)
    assert last_state(run) == last_state(whole)
    ours, theirs = (
        [{k: v for k, v in line.items() if k.startswith(COMPARED)} for line in r.read_metrics()]
        for r in (run, whole)
    )
    assert ours == theirs
    assert [record["step"] for record in ours if "loss" in record] == [1, 2, 3, 4]


def last_state(run):
    """Return the hashes of the last state's values and tensors."""
    return json.loads((run.states / "step-00000004" / "hashes.json").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_run_continues_bit_for_bit(
    sdxl_config, run_values, pictures, tmp_path, nano_sdxl_model, variant
):
    """Killed between the states of steps 2 and 4; an epoch has four batches."""
    changes = VARIANTS[variant]
    if variant == REGULARISED:
        balls = draw_images(tmp_path / "balls", 5, seed=3, captions=False)
        del run_values["dataset"]["image_dir"]
        changes = {**changes, "dataset": augmented(pictures, balls)}
    whole = train(sdxl_config(**changes))
    run = resume(killed_copy(whole.path, tmp_path / "killed", after=2))
    assert_resumed_exactly(whole, run)
    method = changes.get("method", {})
    frozen = {name for name, rate in method.get("text_encoder_lrs", {}).items() if rate == 0}
    for number, file in enumerate(FILES):
        name = file.partition("/")[0]
        learns = number == 0 or (method.get("train_text_encoder", False) and name not in frozen)
        before, after = load_file(nano_sdxl_model / file), load_file(run.exported_model() / file)
        moved = any(not torch.equal(after[key], tensor) for key, tensor in before.items())
        assert moved == learns, name
    if variant == REGULARISED:
        ours, theirs = (r.image_losses_file.read_text(encoding="utf-8") for r in (run, whole))
        assert "balls" in theirs, "loss weights must follow their samples"
        assert sorted(ours.splitlines()) == sorted(theirs.splitlines())


@pytest.mark.usefixtures("fresh_accelerate")
def test_shards_learn_what_a_whole_model_does(train_config, run_file, nano_sdxl_model, tmp_path):
    """Both encoders learn; two processes with half of each tensor equal one that accumulates."""
    shared = {
        "model": {"path": str(nano_sdxl_model)},
        "method": {**BOTH, "text_encoder_lrs": {"text_encoder": 0.05, "text_encoder_2": 0.2}},
        "optimizer": {"kind": "SGD", "lr": 0.1, "arguments": {"momentum": 0.9}},
    }
    training = {"max_steps": 2, "max_grad_norm": 0.05, "ema_decay": 0.9, "batch_size": 2}
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    alone = {**training, "gradient_accumulation_steps": 2}
    train(train_config(output_dir=str(whole), training=alone, **shared))
    file = run_file(output_dir=str(shards), training=training, **shared)
    result = launch(["-m", "impasto", "train", file], 2, **FSDP)
    assert result.returncode == 0, result.stderr
    assert "of 2 processes holds a shard" in result.stderr + result.stdout
    for name in FILES:
        before = load_file(nano_sdxl_model / name)
        first, second = (load_file(run / "export" / "model" / name) for run in (whole, shards))
        assert max(float((first[key] - before[key]).abs().max()) for key in first) > 1e-4
        for key, tensor in first.items():
            torch.testing.assert_close(second[key], tensor, atol=1e-6, rtol=1e-4)
    assert recorded_losses(shards) == pytest.approx(recorded_losses(whole), rel=1e-4)
