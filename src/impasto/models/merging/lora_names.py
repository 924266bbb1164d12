"""How LoRA files name the layers of a model's networks.

kohya-ss/sd-scripts `networks/lora.py` joins the parts of a module's name by underscores, after
`lora_unet` or `lora_te` (`LORA_PREFIX_UNET`, `LORA_PREFIX_TEXT_ENCODER`), for SDXL `lora_te1` and
`lora_te2`. Names of modules are diffusers' for SD 1 and 2, and LDM's for the U-Net of SDXL, whose
network in sd-scripts is `library/sdxl_original_unet.py`. diffusers' own files have the network's
name, a dot and the module's, or for the U-Net alone just the module's; PEFT's have
`base_model.model.` and the module's. LyCORIS used by itself has `lycoris_` (`LORA_PREFIX` of its
`lycoris/wrapper.py`) and the module's, joined by underscores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from impasto.checkpoints.keymap import ComponentKind
from impasto.checkpoints.lora_alphas import PEFT_ROOT
from impasto.models.family import Component, Family
from impasto.models.reading.contents import ModelContents

_WEIGHT = ".weight"
_CLIP_ROOT = "text_model"
_LYCORIS_ROOT = "lycoris_"


@dataclass(frozen=True)
class LayerName:
    """A layer of a model: its network, and the name of its weight in that network."""

    component: str
    tensor: str


def kohya_prefix(family: Family, component: Component) -> str:
    """Return the prefix that sd-scripts gives to the names of a network's layers."""
    if component.kind is not ComponentKind.TEXT:
        return "lora_unet"
    encoders = family.text_encoders
    return "lora_te" if len(encoders) == 1 else f"lora_te{encoders.index(component) + 1}"


def kohya_names(contents: ModelContents) -> dict[LayerName, str]:
    """Return each layer that has a weight -> the name that sd-scripts writes for it."""
    family = contents.identity.family
    return {
        LayerName(
            component.name, f"{module}{_WEIGHT}"
        ): f"{kohya_prefix(family, component)}_{_flat(name)}"
        for component in (family.unet, *family.text_encoders)
        for module, name in _written_names(contents, component).items()
    }


def known_layers(contents: ModelContents) -> dict[str, LayerName]:
    """Return every name that a LoRA may have for a layer, joined by underscores -> the layer."""
    family = contents.identity.family
    known: dict[str, LayerName] = {}
    for component in (family.unet, *family.text_encoders):
        prefix = kohya_prefix(family, component)
        for module in _modules(contents, component):
            layer = LayerName(component.name, f"{module}{_WEIGHT}")
            names = {module} if component.kind is not ComponentKind.TEXT else _clip_names(module)
            for name in names:
                known[f"{prefix}_{_flat(name)}"] = layer
        if component.kind is not ComponentKind.TEXT:
            for module, name in _ldm_names(contents, component).items():
                known.setdefault(
                    f"{prefix}_{_flat(name)}", LayerName(component.name, module + _WEIGHT)
                )
    return known


def find_layers(
    names: Mapping[str, object], contents: ModelContents
) -> dict[str, LayerName | None]:
    """Return each name of a LoRA file -> its layer of the model; None if there is no such layer."""
    known, family = known_layers(contents), contents.identity.family
    prefixes = {
        f"{component.name}.": kohya_prefix(family, component)
        for component in (family.unet, *family.text_encoders)
    }
    return {name: known.get(_as_kohya(name, prefixes)) for name in names}


def _as_kohya(name: str, prefixes: Mapping[str, str]) -> str:
    for root in (PEFT_ROOT, _LYCORIS_ROOT):
        if name.startswith(root):  # such files are for the U-Net alone
            return f"lora_unet_{_flat(name.removeprefix(root))}"
    for own, theirs in prefixes.items():
        if name.startswith(own):
            return f"{theirs}_{_flat(name.removeprefix(own))}"
    return name if name.startswith("lora_") else f"lora_unet_{_flat(name)}"


def _written_names(contents: ModelContents, component: Component) -> dict[str, str]:
    """Return module -> its name in sd-scripts' version of the network."""
    if component.kind is ComponentKind.TEXT:
        return {module: f"{_CLIP_ROOT}.{module}" for module in _modules(contents, component)}
    if contents.identity.family.lora_by_file_names:
        return _ldm_names(contents, component)
    return {module: module for module in _modules(contents, component)}


def _clip_names(module: str) -> set[str]:
    return {module, f"{_CLIP_ROOT}.{module}"}


def _ldm_names(contents: ModelContents, component: Component) -> dict[str, str]:
    """Return module of the U-Net -> its name in a single file, without the prefix."""
    naming = component.naming
    component_map = naming.map_of_ours(contents.components[component.name].keys())
    return {
        module: component_map.to_ldm(module + _WEIGHT)
        .removeprefix(naming.prefix)
        .removesuffix(_WEIGHT)
        for module in _modules(contents, component)
    }


def _modules(contents: ModelContents, component: Component) -> list[str]:
    tensors = contents.components[component.name]
    return [
        name.removesuffix(_WEIGHT)
        for name, tensor in tensors.items()
        if name.endswith(_WEIGHT) and len(tensor.shape) > 1
    ]


def _flat(name: str) -> str:
    return name.replace(".", "_")
