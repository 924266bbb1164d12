"""LoRAs merged into a model: strengths, names of other programs, kernels, and refusals."""

import json
import math
import re

import pytest
import torch
from loras import TO_Q, as_file, extracted, merge, of_a_lora, tuned
from safetensors.torch import load_file, save_file

from impasto.checkpoints.lora import read_lora
from impasto.checkpoints.lora_alphas import Alphas
from impasto.checkpoints.reading import open_tensor_file
from impasto.errors import ModelError
from impasto.models import families
from impasto.models.reading.opening import OpenOptions
from impasto.models.writing.conversion import convert_model


@pytest.fixture(scope="module")
def base(nano_model, tmp_path_factory):
    return as_file(nano_model, tmp_path_factory.mktemp("base") / "base.safetensors")


def test_loras_are_added_with_their_strengths(base, tmp_path):
    """Added twice, once with a negative strength: 0.5 - 0.25 of the difference."""
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
            f"base_model.model.{PEFT}.lora_B.default.weight",
            {"adapter_config.json": json.dumps({"lora_alpha": 6, "r": 2})}, 3.0,
        ),
        (
            f"base_model.model.{PEFT}.lora_A.weight", f"base_model.model.{PEFT}.lora_B.weight",
            {"adapter_config.json": json.dumps(
                {"lora_alpha": 6, "alpha_pattern": {"^attn1.to_q": 2, "n1.to_q": 2,
                 "attn1.to_q": 4}})}, 2.0,
        ),
        (f"lycoris_{TO_Q.removeprefix('lora_unet_')}.lora_down.weight",
         f"lycoris_{TO_Q.removeprefix('lora_unet_')}.lora_up.weight", {}, 1.0),
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
    if settings := metadata.get("adapter_config.json"):
        (tmp_path / "adapter_config.json").write_text(settings, encoding="utf-8")
    save_file(pair, tmp_path / "l.safetensors", {} if settings else metadata)
    merge(base, [tmp_path / "l.safetensors"], tmp_path / "m.safetensors")
    a, made = load_file(base), load_file(tmp_path / "m.safetensors")
    changed = [name for name in a if not torch.equal(a[name], made[name])]
    name = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    assert changed == [name]
    torch.testing.assert_close(made[name], a[name] + scale * pair[up] @ pair[down])


def test_a_tucker_convolution(base, tmp_path):
    """The result is up * mid * down, as in LyCORIS: a 3x3 kernel between two 1x1 kernels."""
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


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (None, r"adapter_config\.json is missing, damaged or without lora_alpha"),
        ("{", "missing, damaged or without"),
        ('{"r": 4}', "missing, damaged or without"),
        ('{"lora_alpha": 4, "use_rslora": true}', "PEFT's use_rslora"),
        ('{"lora_alpha": 4, "use_dora": true}', "PEFT's use_dora"),
        ('{"lora_alpha": NaN}', "an alpha is 'nan'; expected a finite number"),
        ('{"lora_alpha": [1]}', "expected a finite number"),
        ('{"lora_alpha": 4, "alpha_pattern": {"(a+)+": 1}}', "not a plain layer name"),
        (json.dumps({"lora_alpha": 4, "alpha_pattern": {"a" * 300: 1}}), "not a plain layer name"),
        ('{"lora_alpha": 4, "alpha_pattern": [1]}', "its alpha_pattern is not a table of layers"),
        ('{"lora_alpha": 4, "alpha_pattern": {"to_q": Infinity}}', "an alpha is 'inf'"),
    ],
)
def test_peft_adapters_without_a_scale_that_is_known(tmp_path, settings, words):
    """PEFT's files have no alpha among the tensors, and a guess is wrong by a factor of 2 or 8."""
    file = tmp_path / "adapter_model.safetensors"
    save_file(
        {f"base_model.model.{PEFT}.lora_{half}.weight": torch.ones(2, 2) for half in "AB"}, file
    )
    if settings is not None:
        (tmp_path / "adapter_config.json").write_text(settings, encoding="utf-8")
    with pytest.raises(ModelError, match=words) as caught:
        read_lora(file, families.file_layouts())
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "key", ["to_q", "attn1.to_q", "^attn1.to_q", "n1.to_q", "1.to.q", "0.attn1.to_q"]
)
def test_alpha_patterns_are_matched_as_peft_does(key):
    """PEFT's `get_pattern_key` is `re.match(rf"(.*\\.)?({key})$", name)`."""
    for name in ("attn1.to_q", "blocks.0.attn1.to_q", "attn1.to_q.0", "attn1xto_q"):
        theirs = re.match(rf"(.*\.)?({key})$", name) is not None
        alphas = Alphas({"": (1.0, {key: 2.0})})
        assert (alphas.of_layer(f"base_model.model.{name}") == 2.0) == theirs, name


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (
            {"lora_down": (2, 16, 3, 3), "lora_mid": (2, 2, 3, 3), "lora_up": (16, 2, 1, 1)},
            "does not fit",
        ),
        (
            {"lora_down": (2, 16, 1, 1), "lora_mid": (2, 2, 3), "lora_up": (16, 2, 1, 1)},
            "does not fit",
        ),
        ({"lora_down": (2, 16, 3, 3), "lora_up": (16, 2)}, "does not fit"),
        ({"lora_down": (2, 16, 3), "lora_up": (16, 2, 1)}, "does not fit"),
    ],
)
def test_convolutions_of_odd_shapes(base, tmp_path, tensors, words):
    name = "lora_unet_mid_block_resnets_0_conv1"
    file = tmp_path / "l.safetensors"
    save_file({f"{name}.{role}.weight": torch.ones(shape) for role, shape in tensors.items()}, file)
    with pytest.raises(ModelError, match=words):
        merge(base, [file], tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


def test_two_names_for_one_layer_are_refused(base, tmp_path):
    """One of the two would silently be lost."""
    file, pair = tmp_path / "l.safetensors", (("lora_down", (2, 8)), ("lora_up", (8, 2)))
    other = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    both = {f"{n}.{role}.weight": torch.ones(s) for n in (TO_Q, other) for role, s in pair}
    save_file(both, file)
    with pytest.raises(ModelError, match="has two layers for") as caught:
        merge(base, [file], tmp_path / "m.safetensors")
    assert TO_Q in str(caught.value)
    assert other in str(caught.value)
    again = {f"unet.{PEFT}.lora_A{a}.weight": torch.ones(2, 8) for a in ("", ".default")}
    save_file(again, file)
    with pytest.raises(ModelError, match=rf"has the down of unet\.{PEFT} twice"):
        read_lora(file, families.file_layouts())


def test_a_fused_attention_in_8_bits_is_lifted_as_a_whole(nano_sd2_model, tmp_path):
    """SD 2's files have query, key and value in one tensor, of which only one changes here."""
    small = tmp_path / "small.safetensors"
    dtypes = {families.BY_SETTING["text_encoder"]: torch.float8_e4m3fn}
    convert_model(str(nano_sd2_model), small, "safetensors", dtypes, OpenOptions())
    name = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    before = load_file(small)
    fused = "cond_stage_model.model.transformer.resblocks.{}.attn.in_proj_weight"
    width = before[fused.format(0)].shape[1]
    pair = {
        f"{name}.lora_down.weight": torch.ones(2, width),
        f"{name}.lora_up.weight": torch.ones(width, 2),
    }
    save_file(pair, tmp_path / "l.safetensors")
    merge(small, [tmp_path / "l.safetensors"], tmp_path / "m.safetensors")
    made = load_file(tmp_path / "m.safetensors")
    assert made[fused.format(0)].dtype == torch.float16
    assert made[fused.format(1)].dtype == torch.float8_e4m3fn
    change = made[fused.format(0)].float() - before[fused.format(0)].float()
    torch.testing.assert_close(change[:width], torch.full((width, width), 2.0), rtol=0, atol=2e-3)
    assert not change[width:].any()
