"""Reads LoRA and LoCon files: pairs of matrices whose product is added to a layer's weight.

delta W = (alpha / rank) * up @ down (Hu et al. 2021, arXiv:2106.09685, section 4.1). For
convolutions `down` has the kernel and `up` is 1x1; with a `mid` in between both are 1x1 (LyCORIS'
LoCon in Tucker form). Files of kohya's sd-scripts, LyCORIS, diffusers and PEFT name the same four
tensors in different ways; other kinds of small networks (LoHa, LoKr, DoRA and so on) are refused by
name. `models/merging/lora_names.py` maps the layers' names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from impasto.checkpoints.keymap import FileLayout
from impasto.checkpoints.kinds import LORA, kind_of
from impasto.checkpoints.lora_alphas import Alphas, finite_alpha
from impasto.checkpoints.reading import TensorFile, open_tensor_file
from impasto.checkpoints.tensors import LazyTensor
from impasto.checkpoints.untrusted import untrusted
from impasto.checkpoints.writing import is_finite
from impasto.errors import ModelError

_TENSOR_NAME = re.compile(
    r"(?P<layer>.+?)"
    r"(?:\.lora_(?P<kohya>down|up|mid)\.weight"
    r"|\.lora_(?P<peft>A|B)(?:\.[A-Za-z]\w*)?\.weight"
    r"|\.(?:lora|lora_linear_layer)\.(?P<linear>down|up)\.weight"
    r"|\.processor\.(?P<to>to_[qkv]|to_out)_lora\.(?P<processor>down|up)\.weight"
    r"|\.(?P<alpha>alpha))"
)
_OTHER_KINDS = {
    ".hada_": "LoHa", ".lokr_": "LoKr", ".oft_": "OFT", ".boft_": "BOFT", ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA", ".diff": "a difference in full", ".w_norm": "a trained norm",
    ".b_norm": "a trained norm", ".on_input": "IA3", ".a1.": "GLoRA",
}  # fmt: skip


@dataclass(frozen=True)
class LoraLayer:
    """The change that a LoRA adds to one layer.

    Attributes:
        down: `[rank, in, ...]`.
        up: `[out, rank, ...]`.
        mid: `[rank, rank, height, width]`, between two 1x1 convolutions; None in most files.
        alpha: The product is multiplied by `alpha / rank`; None means the rank.
    """

    down: LazyTensor
    up: LazyTensor
    mid: LazyTensor | None = None
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """The rank of the layer's change: the number of rows of `down`."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """The factor of the product: `alpha / rank`."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether the product has the shape of a weight of this shape."""
        down, up = self.down.shape, self.up.shape
        if not 2 <= len(up) == len(down) or not 0 < up[1] == down[0] or math.prod(up[2:]) != 1:
            return False
        kernel = down[2:]
        if self.mid is not None:
            mid = self.mid.shape
            if len(mid) != 4 or mid[:2] != (down[0], down[0]) or math.prod(kernel) != 1:
                return False
            kernel = mid[2:]
        spatial = shape[2:]
        if len(kernel) != len(spatial):  # a linear layer is a 1x1 convolution too
            is_alike = math.prod(kernel) == math.prod(spatial) == 1
        else:
            is_alike = kernel == spatial
        return is_alike and (up[0], down[1]) == shape[:2]

    def delta(self, shape: tuple[int, ...]) -> Tensor:
        """Return the change of a weight of this shape at strength 1, in float32."""
        up, down = (tensor.read().float().flatten(1) for tensor in (self.up, self.down))
        if self.mid is None:
            return (up @ down).reshape(shape) * self.scale
        whole = torch.einsum("or,rshw,si->oihw", up, self.mid.read().float(), down)
        return whole.reshape(shape) * self.scale


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file that is open: its layers by the weights that they change, and its metadata.

    Attributes:
        path: The file.
        layers: Name of a layer in the file -> the change of that layer.
        metadata: Metadata texts of the file.
    """

    path: Path
    layers: Mapping[str, LoraLayer]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_lora(path: Path, layouts: tuple[FileLayout, ...]) -> LoraFile:
    """Open a LoRA or LoCon file.

    Each matrix is read once to check that its values are finite, but not retained: it is read again
    when it is needed.

    Args:
        path: The file.
        layouts: How single files name the networks of models, to distinguish a model from a LoRA.

    Raises:
        ModelError: It is missing, damaged, not a LoRA, of an unsupported kind, or incomplete.
    """
    file = open_tensor_file(path)
    kind = kind_of(file, layouts)
    if kind is not LORA:
        raise ModelError(
            f"{path} is {kind.name}, not a LoRA. A model is named without --lora, beside the "
            f"others that are mixed."
        )
    with untrusted(path):
        return LoraFile(path, _layers_of(file), file.metadata)


def _layers_of(file: TensorFile) -> dict[str, LoraLayer]:
    found: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in file.tensors.items():
        layer, role = _split_name(name, file.path)
        roles = found.setdefault(layer, {})
        if role in roles:
            raise ModelError(
                f"{file.path} has the {role} of {layer} twice, under names of two programs or of "
                f"two adapters; {name} is one of them. Save one adapter alone."
            )
        roles[role] = tensor
    alphas = Alphas.of(file)
    return {layer: _whole(layer, roles, alphas, file.path) for layer, roles in found.items()}


def _split_name(name: str, path: Path) -> tuple[str, str]:
    """Return a tensor's layer and its role in that layer.

    Raises:
        ModelError: It belongs to another kind of network.
    """
    match = _TENSOR_NAME.fullmatch(name)
    if match is None:
        kind = next((kind for mark, kind in _OTHER_KINDS.items() if mark in name), None)
        what = f"a file with {kind} in it" if kind else "no LoRA or LoCon alone"
        raise ModelError(
            f"{path} is {what}: {name}. Only LoRA and LoCon can be added to a model; use "
            f"this file in a program that reads it."
        )
    layer = match["layer"]
    if match["to"]:
        layer = f"{layer}.{'to_out.0' if match['to'] == 'to_out' else match['to']}"
    if match["peft"]:
        return layer, {"A": "down", "B": "up"}[match["peft"]]
    return layer, match["kohya"] or match["linear"] or match["processor"] or "alpha"


def _whole(layer: str, roles: Mapping[str, LazyTensor], alphas: Alphas, path: Path) -> LoraLayer:
    for role in ("down", "up"):
        if role not in roles:
            raise ModelError(
                f"{path} is incomplete: {layer} has no {role} matrix. Download or copy it again."
            )
    for role, tensor in roles.items():
        if not is_finite(tensor.read()):
            raise ModelError(
                f"{path}: the {role} of {layer} holds NaN or infinite values. The file is damaged; "
                f"use another copy of it."
            )
    alpha = (
        finite_alpha(float(roles["alpha"].read()), path)
        if "alpha" in roles
        else alphas.of_layer(layer)
    )
    return LoraLayer(roles["down"], roles["up"], roles.get("mid"), alpha)
