"""What can be chosen in forms: the folders of images and the models that the studio was given."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from impasto.data.formats import EXTENSIONS
from impasto.parsing import is_text

MOST = 200
"""Choices that are offered at most."""

_LEVELS = 3
_MODEL_ENDINGS = (".safetensors", ".ckpt")
_MODEL_INDEX = "model_index.json"
_LOOKED_AT = 20_000  # entries of folders, so that a whole disk takes no minute


def image_folders(folders: Sequence[Path]) -> list[str]:
    """The folders with images in them, up to three levels deep."""
    return _first(path for path, names in _walk(folders) if any(map(_is_image, names)))


def model_paths(folders: Sequence[Path]) -> list[str]:
    """Files and Diffusers folders that may be models, up to three levels deep."""

    def found() -> Iterator[str]:
        for path, names in _walk(folders):
            if _MODEL_INDEX in names:
                yield path
            elif not _is_inside_model(path):
                yield from (
                    os.path.join(path, name)  # noqa: PTH118 - thousands of them
                    for name in sorted(names)
                    if name.lower().endswith(_MODEL_ENDINGS)
                )

    return _first(found())


def _walk(folders: Sequence[Path]) -> Iterator[tuple[str, set[str]]]:
    """Folders and the names of the files in them; hidden ones and links are passed over."""
    looked_at = 0
    waiting = [(str(folder), 0) for folder in folders]
    while waiting and looked_at < _LOOKED_AT:
        path, level = waiting.pop(0)
        names, inner = set(), []
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    looked_at += 1
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        inner.append(entry.path)
                    else:
                        names.add(entry.name)
        except OSError:
            continue
        if level < _LEVELS:
            waiting += [(folder, level + 1) for folder in sorted(inner)]
        yield path, names


def _first(paths: Iterator[str]) -> list[str]:
    found: list[str] = []
    for path in paths:
        if len(found) == MOST:
            break
        if is_text(path) and path not in found:
            found.append(path)
    return found


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS  # noqa: PTH122 - thousands of them


def _is_inside_model(path: str) -> bool:
    return os.path.exists(os.path.join(os.path.dirname(path), _MODEL_INDEX))  # noqa: PTH110, PTH118, PTH120
