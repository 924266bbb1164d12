"""Scaled fp8 weights: multiplies each weight by its scale, or refuses an unknown scaling.

Programs that store weights in 8 bits store a scale beside each of them: `weight = stored * scale`.
Names, such as `scale_weight` and `weight_scale`: ComfyUI `comfy/utils.py` (`convert_old_quants`)
and `QUANTIZATION.md`; sd-scripts `library/fp8_optimization_utils.py`, which also scales blocks of a
row. `models/reading/opening.py` and `models/reading/diffusers_folder.py` call this for every file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from impasto.checkpoints.tensors import LazyTensor, Tensors
from impasto.errors import ModelError
from impasto.parsing import parse_json

QUANTIZATION_KEY = "_quantization_metadata"
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
FORMATS = ("float8_e4m3fn", "float8_e5m2")
SCALES = ("scale_weight", "weight_scale")
UNUSED = ("scale_input", "input_scale")
"""Scales of a layer's inputs, for programs that compute in 8 bits; weights do not need them."""

MARKER = "scaled_fp8"
LAYER_FORMAT = "comfy_quant"
_SCALING = re.compile(r"scale|zero|quant|absmax|\bSCB\b|\bg_idx\b", re.IGNORECASE)


@dataclass(frozen=True)
class Unscaled:
    """A file's tensors after their scales were applied.

    Attributes:
        tensors: Tensors without scales; scaled weights are float32.
        notes: Sentences about the scaling; empty if nothing was scaled.
    """

    tensors: Tensors
    notes: tuple[str, ...] = ()


def apply_scales(tensors: Tensors, metadata: Mapping[str, str], source: str) -> Unscaled:
    """Return tensors whose scaled weights are multiplied by their scales when they are read.

    Args:
        tensors: All tensors of a file by name.
        metadata: Metadata of the file, which may name the format of each layer.
        source: Path of the file, for messages.

    Raises:
        ModelError: A scale has no weight, does not fit it, or is of an unknown kind.
    """
    scales = {name: scaled for name in tensors if (scaled := _weight_of(name, SCALES)) is not None}
    dropped = {n for n in tensors if _last(n) in (*UNUSED, MARKER, LAYER_FORMAT)}
    _require_known(tensors, {*scales, *dropped}, source)
    _require_formats(tensors, metadata, set(scales.values()), source)
    kept = {n: t for n, t in tensors.items() if n not in scales and n not in dropped}
    for name, weight in scales.items():
        if weight not in tensors:
            raise ModelError(
                f"{source} is incomplete: it has the scale {name}, but not its weight {weight}. "
                f"Download or copy it again."
            )
        kept[weight] = _multiplied(tensors[weight], tensors[name], weight, source)
    if not scales:
        return Unscaled(kept)
    return Unscaled(kept, (f"scaled fp8: {len(scales)} weights were multiplied by their scales",))


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _weight_of(name: str, endings: tuple[str, ...]) -> str | None:
    module, _, last = name.rpartition(".")
    return f"{module}.weight" if module and last in endings else None


def _require_known(tensors: Tensors, known: set[str], source: str) -> None:
    """Refuse tensors that look like scales of weights and are of no known kind.

    Raises:
        ModelError: There is such a tensor.
    """
    for name in tensors:
        module, _, last = name.rpartition(".")
        beside = f"{module}.weight" in tensors or module.endswith(".weight")
        if name not in known and beside and last != "weight" and _SCALING.search(last):
            raise ModelError(
                f"{source}: {name} looks like a scale of a quantized weight, of a kind that "
                f"Impasto does not know; without it the weights would be wrong. Use an fp16, bf16 "
                f"or fp32 version of this model."
            )


def _require_formats(
    tensors: Tensors, metadata: Mapping[str, str], scaled: set[str], source: str
) -> None:
    """Check that the stated formats of the layers are known and that their scales exist.

    Raises:
        ModelError: A format is unknown, or a scale is missing.
    """
    stated = {**_stated_in_metadata(metadata, source)}
    for name, tensor in tensors.items():
        if _last(name) == LAYER_FORMAT:
            stated[name.rpartition(".")[0]] = _stated_in(tensor, name, source)
    for layer, stated_format in stated.items():
        if stated_format not in FORMATS:
            raise ModelError(
                f"{source}: {layer} is quantized as {stated_format!r}; of such formats only "
                f"{' and '.join(FORMATS)} can be read. Use an fp16, bf16 or fp32 version."
            )
        has_weight = f"{layer}.weight" in tensors
        if has_weight and f"{layer}.weight" not in scaled:
            raise ModelError(
                f"{source} is incomplete: it says that {layer} is scaled {stated_format}, but has "
                f"no scale for it. Download or copy it again."
            )


def _stated_in_metadata(metadata: Mapping[str, str], source: str) -> dict[str, Any]:
    if QUANTIZATION_KEY not in metadata:
        return {}
    try:
        layers = parse_json(metadata[QUANTIZATION_KEY])["layers"]
        return {str(layer): _format_of(said) for layer, said in layers.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{source}: its metadata {QUANTIZATION_KEY} cannot be read, so the meaning of its "
            f"weights is not known. Use an fp16, bf16 or fp32 version of this model."
        ) from error


def _stated_in(tensor: LazyTensor, name: str, source: str) -> Any:
    try:
        return _format_of(parse_json(bytes(tensor.read().flatten().tolist())))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{source}: {name} cannot be read, so the meaning of its weight is not known. Use an "
            f"fp16, bf16 or fp32 version of this model."
        ) from error


def _format_of(said: Any) -> Any:
    return said.get("format") if isinstance(said, dict) else said


def _multiplied(weight: LazyTensor, scale: LazyTensor, name: str, source: str) -> LazyTensor:
    if weight.dtype not in FP8 or not scale.dtype.is_floating_point:
        raise ModelError(
            f"{source}: {name} is {weight.dtype} with a scale of {scale.dtype} beside it; expected "
            f"fp8 and a floating-point scale. Use an fp16, bf16 or fp32 version of this model."
        )
    blocks = _blocks(weight.shape, scale.shape)
    if blocks is None:
        raise ModelError(
            f"{source}: the scale of {name} is {list(scale.shape)}, which does not fit a weight of "
            f"{list(weight.shape)}; expected one number, one per row, or one per block of a row."
        )
    grouped, factors = blocks

    def read() -> Tensor:
        values = weight.read().to(torch.float32).reshape(grouped)
        return (values * scale.read().to(torch.float32).reshape(factors)).reshape(weight.shape)

    return LazyTensor(weight.shape, torch.float32, read, owns_memory=True)


def _blocks(
    weight: tuple[int, ...], scale: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return shapes in which a weight and its scale can be multiplied, or None if they do not fit.

    The scale is one number for all, one per row (`[out]`, `[out, 1]`, ...), or one per block of a
    row (`[out, blocks, 1]` or `[out, blocks]`).
    """
    numbers = torch.Size(scale).numel()
    if numbers == 1:
        return weight, (1,) * len(weight)
    rows, columns = weight[0] if weight else 0, torch.Size(weight[1:]).numel()
    if not weight or scale[0] != rows:
        return None
    if numbers == rows:
        return (rows, columns), (rows, 1)
    if len(weight) == 2 and len(scale) in (2, 3) and numbers == rows * scale[1]:
        blocks = scale[1]
        if blocks and columns % blocks == 0:
            return (rows, blocks, columns // blocks), (rows, blocks, 1)
    return None
