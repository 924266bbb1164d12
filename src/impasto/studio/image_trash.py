"""Moves images with their captions, crops, latents and masks into the trash, and restores them.

An entry of the trash, `.image-trash/20261127-201500-0`, stores files under their paths relative to
the dataset, and masks under their paths relative to the mask folder. Scans do not enter hidden
folders. The trash may come from an untrusted source: only entries with such names count, and links
in their place are not followed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from impasto import files, presence, storage_errors
from impasto.data.folders.formats import EXTENSIONS
from impasto.data.folders.listing import CAPTION, CROP, TAGS
from impasto.data.folders.mask_folders import mask_names, usual_mask_folders
from impasto.errors import DatasetError
from impasto.parsing import printable
from impasto.studio.moving import move_to_new_name

TRASH = ".image-trash"
"""The trash folder of a dataset; distinct from that of models (`trash.py`), since a folder can hold
both."""

_ENTRY = re.compile(r"\d{8}-\d{6}-\d+", re.ASCII)
_MASKS = (".masks-beside", ".masks-inside")  # in an entry, in the order of `usual_mask_folders`
_ENCODED = re.compile(r"(?=(_\d+x\d+(_\w+)?|_te_outputs)?\.npz\Z)", re.ASCII)
"""Matches where the stem of an image may end in the name of its file of latents or of encoded
captions, for the naming schemes of all sd-scripts versions."""


@dataclass(frozen=True)
class TrashedImages:
    """An entry of the trash: the files that one request moved there.

    Attributes:
        dataset: The dataset.
        path: The folder of the entry.
    """

    dataset: Path
    path: Path

    @property
    def name(self) -> str:
        """The name of the entry in addresses."""
        return self.path.name

    @property
    def images(self) -> list[str]:
        """The printable paths of the images, relative to the dataset."""
        found = (path.relative_to(self.path) for path in _files_below(self.path))
        return [
            printable(path.as_posix())
            for path in found
            if path.parts[0] not in _MASKS and path.suffix.lower() in EXTENSIONS
        ]

    @property
    def size(self) -> int:
        """The size of all files in the entry, in bytes."""
        found = 0
        for path in _files_below(self.path):
            with contextlib.suppress(OSError):  # it was removed meanwhile
                found += path.lstat().st_size
        return found


def put_away(dataset: Path, images: Sequence[Path], within: Sequence[Path]) -> TrashedImages:
    """Move images into the trash of their dataset, with all files that belong to them.

    These are captions, encoded captions, crops, latents and masks. Files that another image with
    the same stem needs too are not moved.

    Args:
        dataset: The dataset.
        images: Images of the dataset.
        within: The folders that may be changed; masks elsewhere are not moved.

    Raises:
        DatasetError: The trash is a link or not a folder.
        StorageError: A file cannot be moved; those before it are in the trash.
    """
    entry, known = TrashedImages(dataset, _new_entry(dataset)), mask_names(dataset, within)
    listed = functools.cache(_FolderNames.of)  # a folder may have thousands of files
    for image in images:
        folder, inside = image.parent, image.parent.relative_to(dataset)
        for name in (*listed(folder).beside(image.name), image.name):
            if name == image.name or files.is_inside(folder / name, dataset):
                _move(folder / name, entry.path / inside / name)
                listed(folder).forget(name)
        if known is None or listed(folder).images.get(image.stem):
            continue  # another image has that name too
        masks = known.folder / inside
        if not files.is_inside(masks, known.folder):
            continue
        kept = _MASKS[usual_mask_folders(dataset).index(known.folder)]
        for name in sorted(listed(masks).images.get(image.stem, ())):
            _move(masks / name, entry.path / kept / inside / name)
    return entry


def trashed(dataset: Path) -> list[TrashedImages]:
    """Return the entries in the trash of a dataset, the newest first."""
    trash = dataset / TRASH
    if trash.is_symlink() or not presence.is_dir(trash):
        return []
    try:
        found = sorted(trash.iterdir(), reverse=True)
    except OSError:
        return []
    kept = (p for p in found if _ENTRY.fullmatch(p.name) and not p.is_symlink() and p.is_dir())
    return [TrashedImages(dataset, path) for path in kept]


def put_back(entry: TrashedImages, within: Sequence[Path]) -> None:
    """Move the files of an entry back to their original paths, without replacing any file.

    Args:
        entry: The entry.
        within: The folders that may be changed.

    Raises:
        DatasetError: One of the original paths exists, or is outside `within`; nothing was moved.
        StorageError: A file cannot be moved; those before it have been restored.
    """
    moves = [(path, _origin_of(path.relative_to(entry.path), entry)) for path in
             _files_below(entry.path)]  # fmt: skip
    for _, target in moves:
        if not any(files.is_inside(target, folder) for folder in within):
            raise DatasetError(
                f"{target} is in none of the studio's folders: nothing was restored."
            )
        if os.path.lexists(target):
            raise DatasetError(
                f"{target} already exists and is not replaced: nothing was restored. Rename it "
                f"first."
            )
    for path, target in moves:
        _move(path, target)
    remove_entry(entry)


def remove_entry(entry: TrashedImages) -> None:
    """Delete an entry permanently with all its contents; links are removed, not their targets.

    Raises:
        StorageError: A file is held open or read-only.
    """
    with storage_errors.reported(entry.path):
        shutil.rmtree(entry.path)


def _new_entry(dataset: Path) -> Path:
    trash, stamp, number = dataset / TRASH, time.strftime("%Y%m%d-%H%M%S"), 0
    if trash.is_symlink() or (presence.exists(trash) and not trash.is_dir()):
        raise DatasetError(f"{trash} is not a folder, so nothing was moved. Remove it.")
    with storage_errors.reported(trash):
        trash.mkdir(exist_ok=True)
        while True:
            try:
                (trash / f"{stamp}-{number}").mkdir()
            except FileExistsError:
                number += 1
            else:
                return trash / f"{stamp}-{number}"


@dataclass(frozen=True)
class _FolderNames:
    """The names of the files in a folder, read once and updated when files are moved away.

    Attributes:
        files: The names of all files.
        images: Stem -> names of the images with this stem.
        encoded: Stem -> names of files that may be latents or encoded captions of such an image.
    """

    files: set[str] = field(default_factory=set)
    images: dict[str, set[str]] = field(default_factory=dict)
    encoded: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> _FolderNames:
        """Read the names in a folder; a missing folder gives none.

        Raises:
            StorageError: The folder may not be read.
        """
        found = cls()
        with storage_errors.reported(folder):
            try:
                with os.scandir(folder) as entries:
                    found.files.update(entry.name for entry in entries if entry.is_file())
            except (FileNotFoundError, NotADirectoryError):
                return found
        for name in sorted(found.files):
            stem, ending = os.path.splitext(name)  # noqa: PTH122 - hot path
            if ending.lower() in EXTENSIONS:
                found.images.setdefault(stem, set()).add(name)
            for match in _ENCODED.finditer(name):
                found.encoded.setdefault(name[: match.start()], []).append(name)
        return found

    def beside(self, image: str) -> list[str]:
        """Return the names of the files that belong only to this image."""
        stem = Path(image).stem
        found = [image + CROP]
        if self.images.get(stem, set()) <= {image}:
            found += [stem + CAPTION, stem + TAGS, *self.encoded.get(stem, ())]
        return [name for name in dict.fromkeys(found) if name in self.files]

    def forget(self, name: str) -> None:
        """Remove the name of a file that was moved away."""
        self.files.discard(name)
        self.images.get(Path(name).stem, set()).discard(name)


def _origin_of(inside: Path, entry: TrashedImages) -> Path:
    """Return the original path of a file of an entry."""
    first, *rest = inside.parts
    if first in _MASKS:
        return usual_mask_folders(entry.dataset)[_MASKS.index(first)].joinpath(*rest)
    return entry.dataset / inside


def _files_below(folder: Path) -> Iterator[Path]:
    for above, inner, names in os.walk(folder):
        inner.sort()
        yield from (Path(above, name) for name in sorted(names))


def _move(path: Path, target: Path) -> None:
    """Rename a file without replacing another; missing folders of its new path are created.

    Raises:
        StorageError: The file cannot be moved, or the new path exists.
    """
    with storage_errors.reported(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        move_to_new_name(path, target)
