"""Adds LoRAs to a model: W + strength * (alpha / rank) * up @ down, one layer at a time.

Each product is computed when its layer is written, so memory is needed for one layer only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from impasto.checkpoints.lora import LoraFile, LoraLayer, read_lora
from impasto.checkpoints.tensors import LazyTensor
from impasto.checkpoints.untrusted import untrusted
from impasto.errors import ModelError
from impasto.models import families
from impasto.models.merging.lora_names import LayerName, find_layers
from impasto.models.merging.mixing import finite_values
from impasto.models.reading.completeness import listed
from impasto.models.reading.contents import ModelContents
from impasto.models.reading.opening import local_file, named_by
from impasto.progress import counted
from impasto.remote_paths import shown
from impasto.strengths import path_and_strength


@dataclass(frozen=True)
class WeightedLora:
    """A LoRA and its strength.

    Attributes:
        file: The LoRA's local file.
        strength: Factor of its matrices.
        source: Path or URL that it was given by.
    """

    file: LoraFile
    strength: float
    source: Path

    @property
    def description(self) -> str:
        """The LoRA with its number of layers and its strength, for messages."""
        layers = counted(len(self.file.layers), "layers")
        return f"{shown(self.source)} at {self.strength:g} ({layers})"

    @property
    def named(self) -> tuple[str, float]:
        """The name that A1111 knows the LoRA by, and its strength."""
        return self.file.path.stem, self.strength


Added = list[tuple[WeightedLora, LoraLayer]]


def open_loras(specs: Sequence[str]) -> list[WeightedLora]:
    """Open LoRAs given as `FILE` or `FILE:STRENGTH`, where FILE may be a URL.

    Raises:
        ConfigError: A strength is not a number.
        ModelError: A file is missing, damaged or not a LoRA.
    """
    return [_open_lora(path, strength) for path, strength in map(path_and_strength, specs)]


def _open_lora(path: Path, strength: float) -> WeightedLora:
    file = local_file(path)
    with named_by(path, file):
        return WeightedLora(read_lora(file, families.file_layouts()), strength, path)


def with_loras(contents: ModelContents, loras: Sequence[WeightedLora]) -> ModelContents:
    """Return the model with LoRAs added to its layers; changed tensors are computed in float32.

    Raises:
        ModelError: A LoRA has a layer that the model does not have, or of another shape.
    """
    added: dict[LayerName, Added] = {}
    for lora in loras:
        for target, layer in _by_target(lora.file, contents).items():
            added.setdefault(target, []).append((lora, layer))
    components = {component: dict(tensors) for component, tensors in contents.components.items()}
    for target, layers in added.items():
        own = components[target.component][target.tensor]
        components[target.component][target.tensor] = LazyTensor(
            own.shape,
            torch.float32,
            partial(_sum, own, layers, contents.source, target),
            owns_memory=True,
        )
    return replace(contents, components=components)


def _by_target(file: LoraFile, contents: ModelContents) -> dict[LayerName, LoraLayer]:
    """Return the layers of a LoRA by the layer of the model that each changes.

    Raises:
        ModelError: The LoRA is for another model.
    """
    found = find_layers(file.layers, contents)
    targets = {name: target for name, target in found.items() if target is not None}
    for_another = (
        f"The LoRA is for another model than {contents.name} "
        f"({contents.identity.family.generation}). Nothing was written."
    )
    if unknown := sorted(found.keys() - targets.keys()):
        raise ModelError(
            f"{file.path} has {counted(len(found), 'layers')}, of which {contents.source} does not "
            f"have {len(unknown)}: {listed(unknown)}. {for_another}"
        )
    taken: dict[LayerName, str] = {}
    for name, target in targets.items():
        if (other := taken.setdefault(target, name)) != name:
            raise ModelError(
                f"{file.path} has two layers for {target.tensor} of {contents.source}: {other} and "
                f"{name}. Nothing was written. Use a file that has each layer once."
            )
        layer, shape = file.layers[name], contents.components[target.component][target.tensor].shape
        if not layer.fits(shape):
            raise ModelError(
                f"{file.path}: {name} is {layer.up.shape} by {layer.down.shape}, which does not "
                f"fit {target.tensor} of {contents.source}, {shape}. {for_another}"
            )
    return {target: file.layers[name] for name, target in targets.items()}


def _sum(own: LazyTensor, layers: Added, source: str, target: LayerName) -> Tensor:
    values = finite_values(own, source, target.component, target.tensor).clone()
    for lora, layer in layers:
        with untrusted(lora.file.path):
            values += layer.delta(own.shape) * lora.strength
    return values
