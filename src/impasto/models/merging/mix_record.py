"""The metadata that records how a mixed model was made: files, hashes, formula, ratios."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from impasto import files
from impasto.checkpoints.file_names import model_name
from impasto.models.merging.drawn_as import DrawnAs
from impasto.models.reading.contents import ModelContents
from impasto.models.tokenization.text_metadata import LAYOUT_KEY
from impasto.models.writing.conversion import MERGE_KEY, OF_TRAINING, converted_info, hash_file
from impasto.models.writing.saving import About
from impasto.progress import Progress

_WEIGHTS = (".safetensors", ".bin")


def hash_model(path: Path, progress: Progress | None = None) -> str:
    """Return a hash of a model on the disk, in hexadecimal.

    For a file it is its SHA-256. For a Diffusers folder it is the SHA-256 of lines `HASH  PATH`,
    one per weight file, sorted by path.
    """
    if path.is_file():
        return hash_file(path, progress)
    inner = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.suffix in _WEIGHTS)
    lines = "".join(f"{files.sha256_of(path / name)}  {name}\n" for name in inner)
    return hashlib.sha256(lines.encode()).hexdigest()


def mixed_info(
    models: Sequence[ModelContents],
    target: Path,
    title: str | None,
    record: Mapping[str, Any],
    drawn_as: int = 0,
) -> About:
    """Return the metadata of a mixed model.

    The sampling settings are those of one model. Other texts, such as author and license, are
    retained if all models have the same; those on the training of the first are left out, since
    they are not true of the mixture.

    Args:
        models: Models of the mixture.
        target: Path that the mixture is written to.
        title: Its title; None means its file name.
        record: Record of the mixture, for programs.
        drawn_as: Index of the model whose sampling settings it takes.
    """
    infos = [converted_info(model, target, title) for model in models]
    first = infos[0]
    more = {
        key: text
        for key, text in first.more.items()
        if not key.startswith(OF_TRAINING)
        and key != LAYOUT_KEY
        and all(i.more.get(key) == text for i in infos)
    }
    drawn = DrawnAs.of(models[drawn_as])
    others = {
        key: text
        for key, text in first.others.items()
        if all(info.others.get(key) == text for info in infos)
    }
    names = [entry["file"] for kind in ("models", "loras") for entry in record.get(kind, [])]
    merged = json.dumps(record, ensure_ascii=False, allow_nan=False)
    return About(
        title=title or model_name(target),
        resolution=drawn.resolution,
        encoder_layer=drawn.layer,
        others={**others, "merged_from": ", ".join(names)},
        more={**more, **drawn.more, MERGE_KEY: merged},
    )
