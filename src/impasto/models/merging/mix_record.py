"""What a mixed model's file says of how it was made: files, hashes, formula, ratios."""

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
    """A hash of a model on the disk, in hexadecimal.

    Of a file it is its SHA-256. Of a Diffusers folder it is the SHA-256 of lines `HASH  PATH`, one
    for each file of weights in it, sorted by path.
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
    """The metadata of a mixed model.

    How it is drawn is one model's. Other texts, such as author and license, are kept where all
    models say the same; how the first was trained is left out, since it is not true of the
    mixture.

    Args:
        models: What was mixed.
        target: Where the mixture is written.
        title: Its name; None is that of the file.
        record: What was mixed, for programs.
        drawn_as: The index of the model that it is drawn as.
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
