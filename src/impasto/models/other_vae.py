"""Opens a VAE by itself and puts it into a model in place of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from impasto import presence
from impasto.checkpoints.keymap import VAE, VAE_PREFIX
from impasto.checkpoints.kinds import BASE_MODEL, DIFFUSERS_VAE, VAE_ALONE, kind_of
from impasto.checkpoints.ldm import split_ldm
from impasto.checkpoints.reading import TensorFile, open_tensor_file
from impasto.checkpoints.scaled import apply_scales
from impasto.checkpoints.tensors import Tensors
from impasto.errors import ModelError
from impasto.models import diffusers_folder
from impasto.models.configs import UnknownSizeError, configs_in, vae_config
from impasto.models.contents import ModelContents
from impasto.models.families import SD1

TRAINING_LEFTOVERS = ("model_ema.", "loss.")
"""What Stability's VAE files hold besides the VAE; A1111 `modules/sd_vae.py` drops the same."""


@dataclass(frozen=True)
class OpenedVae:
    """A VAE that was opened.

    Attributes:
        tensors: By diffusers' names.
        config: Its configuration, or None where neither the file nor its size tells.
        notes: What a person should know of how it was read.
    """

    tensors: Tensors
    config: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


def with_vae(contents: ModelContents, named: str, path: Path) -> ModelContents:
    """The same model with another VAE.

    Args:
        contents: The model.
        named: What the user called the VAE.
        path: Where that is.

    Raises:
        ModelError: It is no VAE, is damaged, or scales latents otherwise than the model.
    """
    vae = open_vae(path)
    config = vae.config or contents.configs[VAE]  # which then has to fit
    scaling = contents.configs[VAE].get("scaling_factor")
    if config.get("scaling_factor", scaling) != scaling:
        raise ModelError(
            f"The VAE {named} scales latents by {config['scaling_factor']}, the model by "
            f"{scaling}: they do not belong together."
        )
    return replace(
        contents,
        parts={**contents.parts, VAE: vae.tensors},
        configs={**contents.configs, VAE: config},
        notes=(*contents.notes, f"VAE from {named}", *vae.notes),
    )


def open_vae(path: Path) -> OpenedVae:
    """Open a VAE: a file of it alone in either naming, a full model, or a folder of diffusers.

    Raises:
        ModelError: It has no VAE, or cannot be read.
    """
    if presence.is_dir(path):
        inner = path / VAE if presence.is_dir(path / VAE) else path
        return OpenedVae(*diffusers_folder.open_part(inner, VAE))
    file = open_tensor_file(path)
    kind = kind_of(file)
    if kind is DIFFUSERS_VAE:
        return _of_diffusers_file(file)
    if kind not in (BASE_MODEL, VAE_ALONE):
        raise ModelError(f"{path} is {kind.name}; expected a VAE or a full model for model.vae.")
    return _of_ldm_file(file, is_bare=kind is VAE_ALONE)


def _of_ldm_file(file: TensorFile, *, is_bare: bool) -> OpenedVae:
    named = {
        VAE_PREFIX + name.removeprefix(VAE_PREFIX) if is_bare else name: tensor
        for name, tensor in file.tensors.items()
        if not (is_bare and name.startswith(TRAINING_LEFTOVERS))
    }
    inside = {n: t for n, t in named.items() if n.startswith(VAE_PREFIX)}
    unscaled = apply_scales(inside, file.metadata, str(file.path))
    tensors = split_ldm(unscaled.tensors).parts.get(VAE)
    if tensors is None:
        raise ModelError(f"{file.path} has no VAE in it.")
    stated = configs_in(file.metadata, str(file.path))
    config = stated[VAE] if stated is not None else _config_by_shapes(tensors)
    return OpenedVae(tensors, config, unscaled.notes)


def _of_diffusers_file(file: TensorFile) -> OpenedVae:
    """One file out of a Diffusers folder, with or without the configuration beside it."""
    unscaled = apply_scales(file.tensors, file.metadata, str(file.path))
    tensors = diffusers_folder.by_todays_names(unscaled.tensors, VAE)
    beside = file.path.with_name("config.json")
    config = diffusers_folder.read_config(beside) if presence.is_file(beside) else None
    return OpenedVae(tensors, config or _config_by_shapes(tensors), unscaled.notes)


def _config_by_shapes(tensors: Tensors) -> dict[str, Any] | None:
    try:
        return vae_config(tensors, SD1)  # the same in all families
    except (UnknownSizeError, LookupError):
        return None
