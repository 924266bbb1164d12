"""Scaled fp8: every known naming is dequantized, and an unknown one is refused."""

import json

import pytest
import torch

from impasto.checkpoints.scaled import QUANTIZATION_KEY, apply_scales
from impasto.checkpoints.tensors import LazyTensor
from impasto.errors import ModelError

ROWS, COLUMNS = 8, 16
WEIGHT = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))


def scaled(scale, dtype=torch.float8_e4m3fn):
    """Return a stored weight whose scale has the given shape."""
    return (WEIGHT / scale).to(dtype)


def applied(tensors, metadata=None):
    lazy = {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}
    return apply_scales(lazy, metadata or {}, "m.safetensors")


def json_tensor(content):
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


PER_TENSOR = WEIGHT.abs().max() / 400
PER_ROW = WEIGHT.abs().amax(1, keepdim=True) / 400
BLOCKS = WEIGHT.reshape(ROWS, 4, 4).abs().amax(2, keepdim=True) / 400


@pytest.mark.parametrize("ending", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize(
    ("stored", "scale"),
    [
        (scaled(PER_TENSOR), PER_TENSOR.reshape(())),
        (scaled(PER_TENSOR), PER_TENSOR.reshape(1)),
        (scaled(PER_TENSOR, torch.float8_e5m2), PER_TENSOR.reshape(1).bfloat16()),
        (scaled(PER_ROW), PER_ROW),
        (scaled(PER_ROW), PER_ROW.reshape(ROWS)),
        ((WEIGHT.reshape(ROWS, 4, 4) / BLOCKS).reshape(ROWS, COLUMNS).to(torch.float8_e4m3fn),
         BLOCKS),
    ],
    ids=["number", "one", "e5m2", "rows", "flat rows", "blocks"],
)  # fmt: skip
def test_a_scale_is_put_back(ending, stored, scale):
    found = applied({"a.weight": stored, f"a.{ending}": scale, "a.scale_input": torch.ones(1)})
    assert set(found.tensors) == {"a.weight"}
    whole = found.tensors["a.weight"]
    assert (whole.dtype, whole.shape) == (torch.float32, (ROWS, COLUMNS))
    error = (whole.read() - WEIGHT).abs().max() / WEIGHT.abs().max()
    assert error < 0.13  # fp8 keeps two or three bits
    assert "1 weights" in found.notes[0]


def test_a_convolution_is_scaled_by_rows():
    weight = WEIGHT.reshape(ROWS, 4, 2, 2)
    stored = (weight / PER_ROW.reshape(ROWS, 1, 1, 1)).to(torch.float8_e4m3fn)
    found = applied({"a.weight": stored, "a.weight_scale": PER_ROW.reshape(ROWS)})
    assert found.tensors["a.weight"].read().shape == (ROWS, 4, 2, 2)


def test_markers_go_and_plain_tensors_stay():
    tensors = {
        "model.scaled_fp8": torch.zeros(2),
        "a.weight": scaled(PER_TENSOR), "a.weight_scale": PER_TENSOR,
        "a.comfy_quant": json_tensor({"format": "float8_e4m3fn"}),
        "b.weight": torch.ones(2).to(torch.float8_e4m3fn), "logit_scale": torch.ones(()),
    }  # fmt: skip
    layers = {QUANTIZATION_KEY: json.dumps({"layers": {"a": {"format": "float8_e4m3fn"}}})}
    assert set(applied(tensors, layers).tensors) == {"a.weight", "b.weight", "logit_scale"}
    assert applied({"b.weight": torch.ones(2)}).notes == ()


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        ({"a.weight_scale_inv": torch.ones(1)}, {}, "a kind that Impasto does not know"),
        ({"a.weight_scale_2": torch.ones(1)}, {}, "weight_scale_2"),
        ({"a.pre_quant_scale": torch.ones(1)}, {}, "pre_quant_scale"),
        ({"a.weight.absmax": torch.ones(1)}, {}, "absmax"),
        ({"a.weight_zero_point": torch.ones(1)}, {}, "zero_point"),
        ({"b.weight_scale": torch.ones(1)}, {}, "but not its weight b.weight"),
        ({"a.weight_scale": torch.ones(3)}, {}, "does not fit a weight"),
        ({"a.weight_scale": torch.ones(ROWS, 3, 1)}, {}, "does not fit a weight"),
        ({"a.comfy_quant": json_tensor({"format": "nvfp4"})}, {}, "nvfp4"),
        ({"a.comfy_quant": torch.ones(3)}, {}, "cannot be read"),
        ({"a.comfy_quant": json_tensor({"format": "float8_e4m3fn"})}, {}, "no scale"),
        ({}, {QUANTIZATION_KEY: "{"}, "cannot be read"),
        ({}, {QUANTIZATION_KEY: '{"layers": {"a": "mxfp8"}}'}, "mxfp8"),
        ({}, {QUANTIZATION_KEY: '{"layers": {"a": "float8_e4m3fn"}}'}, "no scale"),
    ],
)
def test_what_is_not_understood_is_refused(tensors, metadata, words):
    with pytest.raises(ModelError, match=words):
        applied({"a.weight": scaled(PER_TENSOR), **tensors}, metadata)


def test_whole_numbers_with_a_scale_are_refused():
    with pytest.raises(ModelError, match="int8"):
        applied({"a.weight": torch.ones(2, 2, dtype=torch.int8), "a.weight_scale": torch.ones(1)})
