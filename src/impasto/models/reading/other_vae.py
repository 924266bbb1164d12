"""Opens a separate VAE and puts it into a model in place of the model's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from impasto import presence
from impasto.checkpoints.keymap import ComponentKind, layout_of
from impasto.checkpoints.kinds import BASE_MODEL, DIFFUSERS_VAE, VAE_ALONE, kind_of
from impasto.checkpoints.ldm import split_ldm
from impasto.checkpoints.reading import TensorFile, open_tensor_file
from impasto.checkpoints.scaled import apply_scales
from impasto.checkpoints.tensors import Tensors
from impasto.errors import ModelError
from impasto.models import families
from impasto.models.family import Family
from impasto.models.reading import diffusers_folder
from impasto.models.reading.configs import (
    UnknownSizeError,
    configs_in,
    require_plain_latents,
    stated_scaling,
    vae_config,
)
from impasto.models.reading.contents import ModelContents
from impasto.models.reading.known_vaes import known_vae

TRAINING_LEFTOVERS = ("model_ema.", "loss.")
"""Prefixes of other tensors in Stability's VAE files; A1111 `modules/sd_vae.py` drops the same."""


@dataclass(frozen=True)
class OpenedVae:
    """A separate VAE, opened and identified.

    Attributes:
        tensors: Tensors by diffusers' names.
        config: Its configuration; None if neither the file nor its size shows it.
        notes: Notes for the user about how it was read.
        scaling: Scaling factor of its latents; None if nothing shows which models it is for.
        called: Description of a recognised VAE in brackets; empty for others.
    """

    tensors: Tensors
    config: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    scaling: float | None = None
    called: str = ""


def with_vae(contents: ModelContents, named: str, path: Path) -> ModelContents:
    """Replace the VAE of a model by another.

    Args:
        contents: The model.
        named: The VAE as the user named it.
        path: Its local path.

    Raises:
        ModelError: It is not a VAE, is damaged, or has a different scaling factor from the model.
    """
    family, own = contents.identity.family, contents.identity.family.vae.name
    vae = open_vae(path, family)
    config = vae.config or contents.configs[own]  # `require_complete` checks that it fits
    scaling = stated_scaling(contents.configs[own], contents.source) or family.scaling_factor
    if vae.scaling not in (None, scaling):
        raise ModelError(
            f"The VAE {named}{vae.called} scales latents by {vae.scaling}, the model by "
            f"{scaling}: they do not belong together. Use a VAE of {family.generation}."
        )
    is_usual = family.scaling_factor == families.SD1.scaling_factor
    is_doubtful = vae.scaling is None and not is_usual  # most bare files are for SD 1
    doubt = (_DOUBT.format(named, family.generation),) if is_doubtful else ()
    return replace(
        contents,
        components={**contents.components, own: vae.tensors},
        configs={**contents.configs, own: {"scaling_factor": scaling, **config}},
        notes=(*contents.notes, f"VAE from {named}", *vae.notes, *doubt),
        vae_source=named,
    )


_DOUBT = (
    "nothing in {} says which models this VAE is for: those of SD 1 and 2 and of SDXL have the "
    "same shapes and different latents. Make sure that it is one of {}"
)


def open_vae(path: Path, family: Family | None = None) -> OpenedVae:
    """Open a VAE: a bare file in either naming, a full model, or a Diffusers folder.

    Args:
        path: Path of the file or folder.
        family: Family that it is for; None if only its tensors are needed.

    Raises:
        ModelError: It has no VAE, or cannot be read.
    """
    row = family or families.FAMILIES[0]
    if presence.is_dir(path):
        inner = path / row.vae.folder
        found = diffusers_folder.open_component(inner if presence.is_dir(inner) else path, row.vae)
        return OpenedVae(*found, stated_scaling(found[1], str(path)))
    file = open_tensor_file(path)
    kind = kind_of(file, families.file_layouts())
    if kind is DIFFUSERS_VAE:
        return _of_diffusers_file(file, row)
    if kind not in (BASE_MODEL, VAE_ALONE):
        raise ModelError(f"{path} is {kind.name}; expected a VAE or a full model for model.vae.")
    return _of_ldm_file(file, row, is_bare=kind is VAE_ALONE)


def _of_ldm_file(file: TensorFile, family: Family, *, is_bare: bool) -> OpenedVae:
    layout = layout_of(file.tensors, families.file_layouts())
    (own,) = layout.of_kind(ComponentKind.VAE)
    prefix = own.naming.prefix
    named = {
        prefix + name.removeprefix(prefix) if is_bare else name: tensor
        for name, tensor in file.tensors.items()
        if not (is_bare and name.startswith(TRAINING_LEFTOVERS))
    }
    inside = {n: t for n, t in named.items() if n.startswith(prefix)}
    unscaled = apply_scales(inside, file.metadata, str(file.path))
    tensors = split_ldm(unscaled.tensors, layout).components.get(own.name)
    if tensors is None:
        raise ModelError(f"{file.path} has no VAE in it.")
    stated = configs_in(file.metadata, [own.name], str(file.path))
    if stated is not None:
        scaling = stated_scaling(stated[own.name], str(file.path))
        return OpenedVae(tensors, stated[own.name], unscaled.notes, scaling)
    config = _config_by_shapes(tensors, family)
    if is_bare:
        scaling, called = _recognised(file)
        return OpenedVae(tensors, config, unscaled.notes, scaling, called)
    whole = next(row for row in families.FAMILIES if row.layout == layout)
    called = f" (of a model of {whole.generation})"
    return OpenedVae(tensors, config, unscaled.notes, whole.scaling_factor, called)


def _recognised(file: TensorFile) -> tuple[float | None, str]:
    """Return the scaling factor and description of a bare VAE, from its metadata or content.

    For an unknown VAE they are None and an empty string.
    """
    said = file.metadata.get("modelspec.architecture", "")
    for row in families.FAMILIES:
        if said == row.architecture or said.startswith(f"{row.architecture}/"):
            return row.scaling_factor, f" (of {row.generation}, as its file says)"
    known = known_vae(file.path)
    return (None, "") if known is None else (known[1], f" ({known[0]})")


def _of_diffusers_file(file: TensorFile, family: Family) -> OpenedVae:
    """Open one file of a Diffusers folder, with or without the configuration beside it."""
    unscaled = apply_scales(file.tensors, file.metadata, str(file.path))
    tensors = diffusers_folder.by_todays_names(unscaled.tensors, family.vae)
    beside = file.path.with_name("config.json")
    config = diffusers_folder.read_config(beside) if presence.is_file(beside) else None
    require_plain_latents(config or {}, str(beside))
    stated = stated_scaling(config, str(beside)) if config else None
    scaling, called = (stated, "") if stated else _recognised(file)
    config = config or _config_by_shapes(tensors, family)
    return OpenedVae(tensors, config, unscaled.notes, scaling, called)


def _config_by_shapes(tensors: Tensors, family: Family) -> dict[str, Any] | None:
    try:
        return vae_config(tensors, family.vae, family)
    except (UnknownSizeError, LookupError):
        return None
