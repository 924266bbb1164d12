"""Reads a base model from a Diffusers folder, strictly: every tensor present and of its shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from impasto.diffusion.schedule import BETA_END, BETA_START, NUM_TRAIN_TIMESTEPS, NoiseSchedule
from impasto.errors import ModelError
from impasto.models.families import Identity, identify

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
TEXT_ENCODER_FILE = "text_encoder/model.safetensors"


@dataclass(frozen=True)
class BaseModel:
    """The parts of a Stable Diffusion model in float32, on the CPU, with no gradients asked.

    Attributes:
        source: The Diffusers folder it was read from.
        unet: diffusers' UNet2DConditionModel.
        vae: diffusers' AutoencoderKL.
        text_encoder: transformers' CLIPTextModel.
        tokenizer: transformers' CLIPTokenizer.
        schedule: The forward process it was trained with.
        scheduler_config: The scheduler's configuration, for samplers.
        identity: Family and prediction, with the evidence.
        scaling_factor: Scaled latents = this times the VAE's.
    """

    source: Path
    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    schedule: NoiseSchedule
    scheduler_config: dict[str, Any]
    identity: Identity
    scaling_factor: float


def load_base_model(path: Path) -> BaseModel:
    """Read a Diffusers folder.

    Raises:
        ModelError: A file is missing or damaged, a tensor is missing or of a wrong shape, or the
            model is not one of Stable Diffusion 1.x or 2.x.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    _require_folder(path)
    unet_config = read_config(path / "unet" / "config.json")
    text_config = read_config(path / "text_encoder" / "config.json")
    vae_config = read_config(path / "vae" / "config.json")
    scheduler_config = read_config(path / "scheduler" / "scheduler_config.json")
    identity = identify(text_config, scheduler_config)
    if unet_config.get("in_channels") != 4:
        raise ModelError(
            f"{path} is an inpainting or editing model: its U-Net takes "
            f"{unet_config.get('in_channels')} channels, and only plain models with 4 are trained."
        )
    unet = _build(path / UNET_FILE, lambda: UNet2DConditionModel.from_config(unet_config))
    vae = _build(path / VAE_FILE, lambda: AutoencoderKL.from_config(vae_config))
    text_encoder = _build(
        path / TEXT_ENCODER_FILE, lambda: CLIPTextModel(CLIPTextConfig(**text_config))
    )
    return BaseModel(
        source=path,
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(path / "tokenizer"),
        schedule=_schedule_of(scheduler_config, path),
        scheduler_config=scheduler_config,
        identity=identity,
        scaling_factor=vae_config.get("scaling_factor", identity.family.scaling_factor),
    )


def read_config(file: Path) -> dict[str, Any]:
    """Read one of a Diffusers folder's JSON files.

    Raises:
        ModelError: It is missing or not JSON.
    """
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"The base model is incomplete: {file} is not there. Download or copy it again."
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {error}.") from error
    return config


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ModelError: It is missing, truncated or not safetensors.
    """
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except FileNotFoundError as error:
        raise ModelError(
            f"The base model is incomplete: {file} is not there. Download or copy it again; files "
            f"ending in .bin have to be converted to safetensors first."
        ) from error
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file} is damaged or not a safetensors file ({error}). Download or copy it again."
        ) from error
    return tensors


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Put tensors into a module as float32; every name and every shape has to fit.

    transformers 4 wrote CLIP's names with the prefix `text_model.`, transformers 5 has none.

    Raises:
        ModelError: With the names that are missing, unknown, or of another shape.
    """
    expected = dict(module.state_dict())
    tensors = {_as_named_in(expected, name): tensor for name, tensor in tensors.items()}
    tensors = {n: t for n, t in tensors.items() if not n.endswith("embeddings.position_ids")}
    missing = sorted(expected.keys() - tensors.keys() - {"embeddings.position_ids"})
    unknown = sorted(tensors.keys() - expected.keys())
    wrong = [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if expected[name].shape != tensors[name].shape
    ]
    faults = [*_listed("missing", missing), *_listed("unknown", unknown), *wrong[:3]]
    if faults:
        more = f" and {len(wrong) - 3} more of a wrong shape" if len(wrong) > 3 else ""
        raise ModelError(
            f"{file} does not fit its config.json: {'; '.join(faults)}{more}. The file is damaged "
            f"or belongs to another model."
        )
    module.load_state_dict({n: t.float() for n, t in tensors.items()}, strict=False, assign=True)


def _require_folder(path: Path) -> None:
    if not path.exists():
        raise ModelError(
            f"The base model {path} is not there. Give the path of a Diffusers folder, the one "
            f"that has model_index.json in it."
        )
    if not (path / "model_index.json").is_file():
        what = "a file" if path.is_file() else "a folder without model_index.json"
        raise ModelError(
            f"The base model {path} is {what}; expected a Diffusers folder with model_index.json, "
            f"unet, vae, text_encoder, tokenizer and scheduler in it."
        )


def _build(file: Path, construct: Callable[[], nn.Module]) -> nn.Module:
    """Make an empty module without spending time on random weights, then fill it from `file`."""
    tensors = read_tensors(file)
    with torch.device("meta"):
        module = construct()
    load_strictly(module, tensors, file)
    _materialise_buffers(module)
    return module.requires_grad_(requires_grad=False).eval()


def _materialise_buffers(module: nn.Module) -> None:
    """Recreate the one buffer that is computed, not stored: CLIP's position ids."""
    for child in module.modules():
        for name, buffer in list(child.named_buffers(recurse=False)):
            if buffer.is_meta:
                values = torch.arange(buffer.shape[-1]).expand(buffer.shape).clone()
                child.register_buffer(name, values, persistent=False)


def _as_named_in(expected: dict[str, Tensor], name: str) -> str:
    if name in expected:
        return name
    stripped = name.removeprefix("text_model.")
    if stripped != name:
        return stripped
    return f"text_model.{name}" if f"text_model.{name}" in expected else name


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"{what}: {', '.join(names[:3])}{more}"]


def _schedule_of(config: dict[str, Any], path: Path) -> NoiseSchedule:
    shape = config.get("beta_schedule", "scaled_linear")
    if shape != "scaled_linear":
        raise ModelError(
            f"{path / 'scheduler'}: beta_schedule is {shape!r}; Stable Diffusion 1.x and 2.x have "
            f"scaled_linear."
        )
    return NoiseSchedule.scaled_linear(
        config.get("beta_start", BETA_START),
        config.get("beta_end", BETA_END),
        config.get("num_train_timesteps", NUM_TRAIN_TIMESTEPS),
    )
