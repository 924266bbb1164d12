"""Writes LoRAs in the form of sd-scripts' files, which A1111, Forge, ComfyUI and diffusers load.

Keys are `NAME.lora_down.weight`, `NAME.lora_up.weight` and `NAME.alpha`; strength 1 is the whole
difference. The metadata is that which kohya-ss/sd-scripts' `networks/extract_lora_from_models.py`
writes (`ss_...`), and modelspec's.
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
"""Metadata key for the two models of an extracted LoRA, and the rank and error of each layer."""


@dataclass(frozen=True)
class Sources:
    """The two models of a difference.

    Attributes:
        base: Model that is subtracted.
        tuned: Model that it is subtracted from.
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
        StorageError: The disk is full or the folder cannot be written; an earlier `target` is
            unchanged.
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
    """Return the tensors of the LoRA's file by name."""
    found = {}
    for name, layer in extraction.layers.items():
        found[f"{name}.lora_down.weight"] = LazyTensor.of(layer.down)
        found[f"{name}.lora_up.weight"] = LazyTensor.of(layer.up)
        found[f"{name}.alpha"] = LazyTensor.of(torch.tensor(layer.alpha))
    return found


def _digest(tensors: Mapping[str, LazyTensor]) -> str:
    """Return the SHA-256 of the file without its header: A1111 identifies LoRAs by it."""
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
    """Return the rank that all layers have, `Dynamic` if they differ, None if there are none."""
    found = set(ranks)
    if not found:
        return None
    return str(found.pop()) if len(found) == 1 else "Dynamic"


def _is_spatial(down: torch.Tensor) -> bool:
    return down.dim() > 2 and down.shape[2:].numel() > 1


def _record(extraction: Extraction, sources: Sources) -> dict[str, Any]:
    """Return the record of the extraction for the file; of paths it has only the names."""
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
