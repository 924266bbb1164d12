"""Opens the parts of a Diffusers folder by today's names, whichever version wrote it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto.checkpoints.keymap import PARTS, TEXT_ENCODER
from impasto.checkpoints.links import require_links_inside
from impasto.checkpoints.reading import open_tensor_file
from impasto.checkpoints.tensors import LazyTensor, Tensors
from impasto.errors import ModelError
from impasto.models.configs import Configs
from impasto.models.families import FAMILIES
from impasto.parsing import parse_json

LDM_ONLY_FILE = "ldm_only.safetensors"
METADATA_FILE = "impasto.json"
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", TEXT_ENCODER: "model"}
PART_FILES = {part: f"{part}/{stem}.safetensors" for part, stem in STEMS.items()}
UNET_FILE, VAE_FILE, TEXT_ENCODER_FILE = (PART_FILES[part] for part in PARTS)
OLD_STEMS = {TEXT_ENCODER: "pytorch_model"}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_ATTENTION_NAME = re.compile(r"(mid_block\.attentions\.0\.)(query|key|value|proj_attn)\.")


@dataclass(frozen=True)
class DiffusersFolder:
    """What a Diffusers folder holds."""

    parts: Mapping[str, Tensors]
    configs: Configs
    scheduler_config: dict[str, Any]
    ldm_only: Tensors
    tokenizer_files: dict[str, bytes]
    metadata: dict[str, str]
    notes: tuple[str, ...]


def open_folder(path: Path, weights: str = "auto", variant: str | None = None) -> DiffusersFolder:
    """Open all parts.

    Raises:
        ModelError: It is no Diffusers folder of Stable Diffusion, or something in it is missing or
            damaged.
    """
    if not (path / "model_index.json").is_file():
        raise ModelError(
            f"{path} is a folder without model_index.json; expected a Diffusers folder with "
            f"model_index.json, unet, vae, text_encoder, tokenizer and scheduler in it, or the "
            f"path of one .safetensors or .ckpt file."
        )
    require_links_inside(path)
    index = read_config(path / "model_index.json")
    if "text_encoder_2" in index or "transformer" in index:
        raise ModelError(
            f"{path} is a {index.get('_class_name')} (SDXL or later), not Stable Diffusion 1.x or "
            f"2.x. Give a base model of these."
        )
    parts, configs, notes = {}, {}, []
    for part in PARTS:
        tensors, configs[part], note = _open_part(path / part, part, weights, variant)
        parts[part] = tensors
        notes += [note] if note else []
    if weights == "ema" and not any(_with_suffix(path / "unet", "unet", "non_ema")):
        raise ModelError(f"{path} has no averaged (EMA) weights. Set model.weights to auto.")
    rest = path / LDM_ONLY_FILE
    return DiffusersFolder(
        parts,
        configs,
        read_config(path / "scheduler" / "scheduler_config.json"),
        open_tensor_file(rest).tensors if rest.is_file() else {},
        _read_tokenizer(path / "tokenizer"),
        _read_metadata(path / METADATA_FILE),
        tuple(notes),
    )


def open_part(folder: Path, part: str) -> tuple[Tensors, dict[str, Any]]:
    """Open one part by its own folder.

    Raises:
        ModelError: It is not there or damaged.
    """
    require_links_inside(folder)
    tensors, config, _ = _open_part(folder, part, "auto", None)
    return tensors, config


def read_config(file: Path) -> dict[str, Any]:
    """Read one of a Diffusers folder's JSON files.

    Raises:
        ModelError: It is missing or not JSON.
    """
    try:
        config = parse_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"The model is incomplete: {file} is not there. Download or copy it again."
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {error}.") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file} holds a {type(config).__name__}; expected names and values.")
    return config


def is_open_clip(text_config: Mapping[str, Any], path: Path) -> bool:
    """Whether a text encoder is open_clip's, by its activation.

    Raises:
        ModelError: It is neither OpenAI's nor open_clip's.
    """
    activation = text_config.get("hidden_act", "quick_gelu")
    rows = [row for row in FAMILIES if row.text_activation == activation]
    if not rows:
        raise ModelError(
            f"{path} is not a Stable Diffusion 1.x or 2.x model: its text encoder uses "
            f"{activation!r}; expected quick_gelu (1.x) or gelu (2.x)."
        )
    return rows[0].open_clip


def _open_part(
    folder: Path, part: str, weights: str, variant: str | None
) -> tuple[Tensors, dict[str, Any], str | None]:
    config = read_config(folder / "config.json")
    wanted = [variant] if variant else []
    if weights == "plain":
        wanted.append("non_ema")
    candidates = [f for name in wanted for f in _with_suffix(folder, part, name)]
    plain = _with_suffix(folder, part, None)
    found = candidates or plain or _with_suffix(folder, part, "fp16")
    if not found:
        raise ModelError(
            f"The model is incomplete: {folder} has no {STEMS[part]}.safetensors and no .bin file. "
            f"Download or copy it again."
        )
    file = found[0]
    note = None if file in plain[:1] else f"{part} from {file.name}"
    tensors = {_modern(n, part): t for n, t in open_tensor_file(file).tensors.items()}
    kept = {n: t for n, t in tensors.items() if not n.endswith("embeddings.position_ids")}
    return {n: _without_spare_axes(n, t) for n, t in kept.items()}, config, note


def _with_suffix(folder: Path, part: str, variant: str | None) -> list[Path]:
    """The weight files of a part that are there: safetensors first, then `.bin`."""
    middle = f".{variant}" if variant else ""
    stems = [STEMS[part], *([OLD_STEMS[part]] if part in OLD_STEMS else [])]
    names = [f"{stem}{middle}{end}" for end in (".safetensors", ".bin") for stem in stems]
    return [folder / name for name in names if (folder / name).is_file()]


def _modern(name: str, part: str) -> str:
    """CLIP without transformers 4's prefix, the VAE's attention as diffusers 0.17 renamed it."""
    if part == TEXT_ENCODER:
        return name.removeprefix("text_model.")
    return _OLD_ATTENTION_NAME.sub(lambda m: f"{m[1]}{_OLD_ATTENTION[m[2]]}.", name)


def _without_spare_axes(name: str, tensor: LazyTensor) -> LazyTensor:
    """Early folders kept the VAE's attention as 1x1 convolutions."""
    is_attention = "mid_block.attentions.0.to_" in name and len(tensor.shape) == 4
    return tensor.reshaped(tensor.shape[:2]) if is_attention else tensor


def _read_tokenizer(folder: Path) -> dict[str, bytes]:
    if not folder.is_dir():
        return {}
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def _read_metadata(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    return {key: text for key, text in read_config(file).items() if isinstance(text, str)}
