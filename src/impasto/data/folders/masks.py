"""Finds the mask file of an image in a folder of masks, and the masks that belong to no image."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from impasto.canonical import sort_key
from impasto.data.folders import formats
from impasto.data.folders.formats import normalized_name
from impasto.data.folders.listing import Unused
from impasto.data.folders.mask_folders import usual_mask_folders
from impasto.data.records import ImageRecord, SkippedFile
from impasto.data.subsets import MaskRules
from impasto.member_paths import TableCell, member_of
from impasto.remote_paths import is_remote

if TYPE_CHECKING:
    from impasto.data.record_table import RecordTable

_FIRST = (".png", ".jpg", ".jpeg", ".webp", ".bmp")  # order of preference among masks of one name
_UNCHANGED_NS = 2_000_000_000  # a listing is cached if its folder was unchanged for this long
_KNOWS_ONE_CASE = sys.platform in {"win32", "darwin"}
_NOT_USED = (
    "a mask that is not used: no image has its name, or another mask of its name is used; give "
    "image and mask the same name"
)


def mask_file(record: ImageRecord) -> Path | None:
    """Return the mask file of an image; None if its subset has no folder of masks or it is missing.

    It has the image's path relative to the folder, or its bare name, with the extension of any
    supported image format in upper or lower case.
    """
    masks = record.subset.masks
    if masks is None or masks.folder is None:
        return None
    below, stem = PurePath(record.file_name), _stem_of_image(record.path)
    folders = [masks.folder] if below.is_absolute() else [masks.folder / below.parent, masks.folder]
    for folder in folders:
        names = _listed(str(folder)).get(stem)
        if names:
            return folder / names[0]
    return None


def masks_of(images: Path, records: Iterable[ImageRecord]) -> tuple[Path | None, int]:
    """Return the usual folder of masks of a folder of images, and how many images have a mask.

    Args:
        images: The folder.
        records: The images found in it, each once.

    Returns:
        The folder, relative to the current one if `images` is; None if no image has a mask.
    """
    folders = [] if is_remote(images) else [p for p in usual_mask_folders(images) if p.is_dir()]
    kept = list(records) if folders else []
    for folder in folders:
        rules = MaskRules(folder=folder)
        subsets = (replace(one, subset=replace(one.subset, masks=rules)) for one in kept)
        number = sum(mask_file(one) is not None for one in subsets)
        if number:
            return (folder if images.is_absolute() else _from_here(folder)), number
    return None, 0


def _from_here(folder: Path) -> Path:
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def unused_masks(records: RecordTable, skipped: Iterable[SkippedFile]) -> list[Unused]:
    """Return the mask files that belong to no image, whether the image is used or skipped."""
    folders = {subset.masks.folder for subset in records.subsets if subset.masks} - {None}
    if not folders:
        return []
    used = {mask_file(record) for record in records}
    excused = {_stem_of_image(item.path) for item in skipped}
    unused: dict[Path, str] = {}
    for top in folders:
        for folder, inner, names in os.walk(top or ""):
            inner[:] = [name for name in inner if not name.startswith(".")]
            for name in names:
                path, ending = Path(folder, name), PurePath(name).suffix.lower()
                reason = _NOT_USED if ending in formats.EXTENSIONS else formats.UNREAD.get(ending)
                is_hidden = name.startswith(".")
                if reason and not is_hidden and path not in used and _stem_of(name) not in excused:
                    unused[path] = reason
    ordered = sorted(unused, key=lambda path: sort_key(str(path)))
    return [Unused(path, unused[path]) for path in ordered]


def _listed(folder: str) -> Mapping[str, list[str]]:
    """Return the images of a folder by stem; listed again if the folder has changed."""
    try:
        changed = os.stat(folder).st_mtime_ns  # noqa: PTH116 - hot path
    except OSError:
        return {}
    is_unchanged = time.time_ns() - changed > _UNCHANGED_NS
    return (_names_in if is_unchanged else _names_in.__wrapped__)(folder, changed)


@functools.lru_cache(maxsize=64)
def _names_in(folder: str, changed: int) -> Mapping[str, list[str]]:  # noqa: ARG001 - part of the cache key
    found: dict[str, list[str]] = {}
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file())
    for name in names:
        if PurePath(name).suffix.lower() in formats.EXTENSIONS and not name.startswith("."):
            found.setdefault(_stem_of(name), []).append(name)
    for alike in found.values():
        alike.sort(key=_rank)
    return found


def _rank(name: str) -> tuple[int, bool]:
    """Return a sort key: usual extensions of masks first, in lower case before upper case."""
    ending = PurePath(name).suffix
    lower = ending.lower()
    return (_FIRST.index(lower) if lower in _FIRST else len(_FIRST)), ending != lower


def _stem_of_image(path: Path) -> str:
    """Return the stem that an image's mask has; a table row has a number, and no extension."""
    is_row = isinstance(member_of(path), TableCell)
    return _stem_of(f"{path.name}.x" if is_row else path.name)


def _stem_of(name: str) -> str:
    stem = normalized_name(os.path.splitext(name)[0] + ".x")  # noqa: PTH122 - hot path
    return stem.casefold() if _KNOWS_ONE_CASE else stem
