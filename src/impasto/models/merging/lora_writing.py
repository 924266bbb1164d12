"""Writes a LoRA as sd-scripts' own files are, so that A1111, Forge, ComfyUI and diffusers load it.

Keys are `NAME.lora_down.weight`, `NAME.lora_up.weight` and `NAME.alpha`; strength 1 is the whole
difference. Texts are those that kohya-ss/sd-scripts'
`networks/extract_lora_from_models.py` writes (`ss_...`), and modelspec's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from impasto.checkpoints.modelspec import ModelSpec
from impasto.checkpoints.tensors import LazyTensor
from impasto.checkpoints.writing import in_file_order, write_safetensors
from impasto.models.merging.extraction import Extraction
from impasto.models.reading.contents import ModelContents
from impasto.models.reading.native_size import native_size

EXTRACTED_KEY = "impasto.extracted"
"""Where what was extracted from what, and each layer's rank and error, is in a file's metadata."""


@dataclass(frozen=True)
class Sources:
    """The two models of a difference.

    Attributes:
        base: The one it is counted from.
        tuned: The other.
        hashes: Their hashes, in this order.
    """

    base: ModelContents
    tuned: ModelContents
    hashes: tuple[str, str]


def write_lora(
    target: Path, extraction: Extraction, sources: Sources, title: str | None = None
) -> None:
    """Write the layers of a LoRA with their metadata as a safetensors file.

    Raises:
        StorageError: The disk is full or the folder cannot be written; `target` is as it was.
    """
    tensors = lora_tensors(extraction)
    digest = _digest(tensors)
    texts = {
        **_sd_scripts_texts(extraction, sources.base),
        "sshs_model_hash": digest,
        "ss_output_name": target.stem,
        EXTRACTED_KEY: _json(_record(extraction, sources)),
    }
    spec = ModelSpec(
        architecture=f"{sources.base.identity.family.architecture}/lora",
        prediction_type=sources.base.identity.prediction.name,
        title=title or target.stem,
        resolution="{}x{}".format(*native_size(sources.tuned)),
    )
    write_safetensors(target, tensors, {"format": "pt", **texts, **spec.metadata("ldm")})


def lora_tensors(extraction: Extraction) -> dict[str, LazyTensor]:
    """The tensors of the file by name."""
    found = {}
    for name, layer in extraction.layers.items():
        found[f"{name}.lora_down.weight"] = LazyTensor.of(layer.down)
        found[f"{name}.lora_up.weight"] = LazyTensor.of(layer.up)
        found[f"{name}.alpha"] = LazyTensor.of(torch.tensor(layer.alpha))
    return found


def _digest(tensors: Mapping[str, LazyTensor]) -> str:
    """SHA-256 of what follows the header of the file: A1111 knows LoRAs by it."""
    digest = hashlib.sha256()
    for name in in_file_order(tensors):
        digest.update(tensors[name].read().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sd_scripts_texts(extraction: Extraction, base: ModelContents) -> dict[str, str]:
    family = base.identity.family
    spatial = _same(layer.rank for layer in extraction.layers.values() if _is_spatial(layer.down))
    linear = _same(
        layer.rank for layer in extraction.layers.values() if not _is_spatial(layer.down)
    )
    alpha = f"{next(iter(extraction.layers.values())).alpha:g}"
    arguments = {} if spatial is None else {"conv_dim": spatial, "conv_alpha": alpha}
    return {
        "ss_v2": str(family.base_version.startswith("sd_v2")),
        "ss_base_model_version": family.base_version,
        "ss_sd_model_name": base.name,
        "ss_network_module": "networks.lora",
        "ss_network_dim": linear or "Dynamic",
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps(arguments),
    }


def _json(record: Any) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def _same(ranks: Any) -> str | None:
    """The one rank that all have, `Dynamic` where they differ, None where there are none."""
    found = set(ranks)
    if not found:
        return None
    return str(found.pop()) if len(found) == 1 else "Dynamic"


def _is_spatial(down: torch.Tensor) -> bool:
    return down.dim() > 2 and down.shape[2:].numel() > 1


def _record(extraction: Extraction, sources: Sources) -> dict[str, Any]:
    """What was extracted, as the file says it; of paths only the names are told."""
    base, tuned = (
        {"file": model.name, "sha256": digest}
        for model, digest in zip((sources.base, sources.tuned), sources.hashes, strict=True)
    )
    return {
        "base": base,
        "model": tuned,
        "error": round(extraction.error, 6),
        "error_with_what_is_left_out": round(extraction.whole_error, 6),
        "layers": {
            name: [layer.rank, round(layer.error, 6)] for name, layer in extraction.layers.items()
        },
    }
