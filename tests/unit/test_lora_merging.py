"""LoRAs merged into a model: strengths, names of other programs, kernels, and what is refused."""

import json
import math

import pytest
import torch
from loras import TO_Q, as_file, extracted, merge, of_a_lora, tuned
from safetensors.torch import load_file, save_file

from impasto.checkpoints.lora import read_lora
from impasto.checkpoints.reading import open_tensor_file
from impasto.errors import ModelError
from impasto.models import families


@pytest.fixture(scope="module")
def base(nano_model, tmp_path_factory):
    return as_file(nano_model, tmp_path_factory.mktemp("base") / "base.safetensors")


def test_loras_are_added_with_their_strengths(base, tmp_path):
    """Twice, once with a negative strength: 0.5 - 0.25 of the difference."""
    model = tuned(base, tmp_path / "tuned.safetensors", of=of_a_lora)
    lora = tmp_path / "l.safetensors"
    extracted(base, model, lora)
    rows = merge(base, [f"{lora}:0.5", f"{lora}:-0.25"], tmp_path / "m.safetensors")
    assert "at 0.5" in rows["LoRA"]
    assert "at -0.25" in rows["LoRA"]
    a, b, made = map(load_file, (base, model, tmp_path / "m.safetensors"))
    for name, tensor in made.items():
        wanted = 0.75 * a[name] + 0.25 * b[name]
        torch.testing.assert_close(tensor, wanted, rtol=1e-5, atol=1e-6)
    record = json.loads(open_tensor_file(tmp_path / "m.safetensors").metadata["impasto.merge"])
    assert [entry["strength"] for entry in record["loras"]] == [0.5, -0.25]
    assert "formula" not in record


PEFT = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("down", "up", "metadata", "scale"),
    [
        (f"unet.{PEFT}.lora_A.weight", f"unet.{PEFT}.lora_B.weight", {}, 1.0),
        (
            f"unet.{PEFT}.lora_A.weight", f"unet.{PEFT}.lora_B.weight",
            {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 6})}, 3.0,
        ),
        (
            f"unet.{PEFT}.lora_A.weight", f"unet.{PEFT}.lora_B.weight",
            {"lora_adapter_metadata": json.dumps(
                {"unet.lora_alpha": 6, "unet.alpha_pattern": {"attn1.to_q": 4}})}, 2.0,
        ),
        (
            f"base_model.model.{PEFT}.lora_A.default.weight",
            f"base_model.model.{PEFT}.lora_B.default.weight", {}, 1.0,
        ),
        (f"unet.{PEFT}.lora.down.weight", f"unet.{PEFT}.lora.up.weight", {}, 1.0),
        (
            f"{PEFT.removesuffix('.to_q')}.processor.to_q_lora.down.weight",
            f"{PEFT.removesuffix('.to_q')}.processor.to_q_lora.up.weight", {}, 1.0,
        ),
        (f"{TO_Q}.lora_down.weight", f"{TO_Q}.lora_up.weight", {}, 1.0),
        (
            "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
            "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_up.weight", {}, 1.0,
        ),
    ],
)  # fmt: skip
def test_names_of_other_programs(base, tmp_path, down, up, metadata, scale):
    generator = torch.Generator().manual_seed(3)
    pair = {down: torch.randn(2, 8, generator=generator), up: torch.ones(8, 2)}
    save_file(pair, tmp_path / "l.safetensors", metadata)
    merge(base, [tmp_path / "l.safetensors"], tmp_path / "m.safetensors")
    a, made = load_file(base), load_file(tmp_path / "m.safetensors")
    changed = [name for name in a if not torch.equal(a[name], made[name])]
    name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    assert changed == [name]
    torch.testing.assert_close(made[name], a[name] + scale * pair[up] @ pair[down])


def test_a_tucker_convolution(base, tmp_path):
    """up * mid * down, as LyCORIS rebuilds it: a 3x3 kernel between two 1x1."""
    generator = torch.Generator().manual_seed(4)
    name = "lora_unet_mid_block_resnets_0_conv1"
    parts = {
        f"{name}.lora_down.weight": torch.randn(3, 16, 1, 1, generator=generator),
        f"{name}.lora_mid.weight": torch.randn(3, 3, 3, 3, generator=generator),
        f"{name}.lora_up.weight": torch.randn(16, 3, 1, 1, generator=generator),
        f"{name}.alpha": torch.tensor(1.5),
    }
    save_file(parts, tmp_path / "l.safetensors")
    merge(base, [tmp_path / "l.safetensors"], tmp_path / "m.safetensors")
    a, made = load_file(base), load_file(tmp_path / "m.safetensors")
    weight = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    x = torch.randn(1, 16, 5, 5, generator=generator)
    conv = torch.nn.functional.conv2d
    down, mid, up = (parts[f"{name}.lora_{k}.weight"] for k in ("down", "mid", "up"))
    wanted = 0.5 * conv(conv(conv(x, down), mid, padding=1), up)
    found = conv(x, made[weight] - a[weight], padding=1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({f"{TO_Q}.lora_down.weight": (2, 8)}, "has no up matrix"),
        ({f"{TO_Q}.lora_down.weight": (2, 9), f"{TO_Q}.lora_up.weight": (8, 2)}, "does not fit"),
        ({f"{TO_Q}.lora_down.weight": (2, 8), f"{TO_Q}.lora_up.weight": (8, 3)}, "does not fit"),
        (
            {"lora_unet_elsewhere.lora_down.weight": (2, 8), "lora_unet_elsewhere.lora_up.weight":
             (8, 2)},
            "does not have 1: lora_unet_elsewhere",
        ),
        ({f"{TO_Q}.hada_w1_a": (2, 8)}, "a file with LoHa in it"),
        ({f"{TO_Q}.lokr_w1": (2, 8)}, "a file with LoKr in it"),
        (
            {f"{TO_Q}.lora_down.weight": (2, 8), f"{TO_Q}.lora_up.weight": (8, 2),
             f"{TO_Q}.dora_scale": (8, 1)},
            "a file with DoRA in it",
        ),
    ],
)  # fmt: skip
def test_loras_that_do_not_fit_or_are_of_another_kind(base, tmp_path, tensors, words):
    file = tmp_path / "l.safetensors"
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, file)
    with pytest.raises(ModelError, match=words) as caught:
        merge(base, [file], tmp_path / "m.safetensors")
    assert str(file) in str(caught.value)
    assert not (tmp_path / "m.safetensors").exists()


def test_a_model_as_lora_and_a_lora_as_model(base, nano_sd2_model, tmp_path):
    lora = tmp_path / "l.safetensors"
    extracted(base, tuned(base, tmp_path / "t.safetensors", of=of_a_lora), lora)
    with pytest.raises(ModelError, match="is a Stable Diffusion checkpoint, not a LoRA"):
        merge(base, [base], tmp_path / "m")
    with pytest.raises(ModelError, match="is a LoRA or LyCORIS"):
        merge(lora, [lora], tmp_path / "m")
    with pytest.raises(ModelError, match="is a LoRA or LyCORIS"):
        extracted(base, lora, tmp_path / "m.safetensors")
    tensors = load_file(lora)
    tensors[f"{TO_Q}.lora_up.weight"][0, 0] = math.nan
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(ModelError, match=f"the up of {TO_Q} holds NaN"):
        read_lora(tmp_path / "nan.safetensors", families.file_layouts())
    assert not (tmp_path / "m").exists()
