"""Writes a Diffusers folder: trained parts in the precision asked for, the rest byte for byte."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from impasto import files
from impasto.models.loading import TEXT_ENCODER_FILE, UNET_FILE

PART_FILES = {"unet": UNET_FILE, "text_encoder": TEXT_ENCODER_FILE}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def export_diffusers(
    source: Path,
    target: Path,
    trained: Mapping[str, Mapping[str, Tensor]],
    *,
    dtype: torch.dtype,
) -> None:
    """Copy a Diffusers folder with the trained parts replaced; all of it appears at once.

    Args:
        source: The base model's folder.
        target: Where the model goes; replaced whole if it exists.
        trained: Part (`unet`, `text_encoder`) -> its tensors by name.
        dtype: Precision of the trained parts.

    Raises:
        StorageError: The disk is full or the folder cannot be written; `target` is as before.
    """
    replaced = {PART_FILES[part] for part in trained}
    with files.replace_folder(target) as partial:
        for file in sorted(p for p in source.rglob("*") if p.is_file()):
            relative = file.relative_to(source)
            hidden = any(name.startswith(".") for name in relative.parts)
            if hidden or relative.as_posix() in replaced:
                continue
            (partial / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, partial / relative)
        for part, tensors in trained.items():
            save_file(
                {n: t.detach().to("cpu", dtype).contiguous() for n, t in tensors.items()},
                partial / PART_FILES[part],
                metadata={"format": "pt"},
            )
