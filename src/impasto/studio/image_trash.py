"""Images that were put into the trash of their dataset, with what is beside them, and put back.

An entry of the trash, `.image-trash/20261127-201500-0`, holds files by their paths below the
dataset, and masks by their paths below the folder of masks. No scan looks into hidden folders. A
trash may be a stranger's: only entries with such names count, and no link in their place is
followed.
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
"""Not that of models (`trash.py`): one folder may be given for both."""

_ENTRY = re.compile(r"\d{8}-\d{6}-\d+", re.ASCII)
_MASKS = (".masks-beside", ".masks-inside")  # in an entry, as `usual_mask_folders` has the folders
_ENCODED = re.compile(r"(?=(_\d+x\d+(_\w+)?|_te_outputs)?\.npz\Z)", re.ASCII)
"""Where an image's name may end in one of a file of its latents or of its encoded captions, by
sd-scripts' names of every era."""


@dataclass(frozen=True)
class TrashedImages:
    """An entry of the trash: what was put there at once.

    Attributes:
        dataset: The dataset.
        path: The folder of the entry.
    """

    dataset: Path
    path: Path

    @property
    def name(self) -> str:
        """How addresses name it."""
        return self.path.name

    @property
    def images(self) -> list[str]:
        """The images, by their paths below the dataset."""
        found = (path.relative_to(self.path) for path in _files_below(self.path))
        return [
            printable(path.as_posix())
            for path in found
            if path.parts[0] not in _MASKS and path.suffix.lower() in EXTENSIONS
        ]

    @property
    def size(self) -> int:
        """The bytes of all files in it."""
        found = 0
        for path in _files_below(self.path):
            with contextlib.suppress(OSError):  # it went just now
                found += path.lstat().st_size
        return found


def put_away(dataset: Path, images: Sequence[Path], within: Sequence[Path]) -> TrashedImages:
    """Move images into the trash of their dataset, with all that belongs to them.

    That is captions, also encoded ones, crops, latents and masks. What another image of the same
    name needs too stays.

    Args:
        dataset: The dataset.
        images: Images in it.
        within: The folders that may be changed; masks elsewhere stay.

    Raises:
        DatasetError: The trash is no folder of the dataset.
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
    """What is in the trash of a dataset, the newest first."""
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
    """Move what is in an entry to where it was; nothing is replaced.

    Args:
        entry: It.
        within: The folders that may be changed.

    Raises:
        DatasetError: Something has one of the names by now, or a folder leads elsewhere: nothing
            was moved.
        StorageError: A file cannot be moved; those before it are back.
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
                f"{target} is already there and is not replaced: nothing was restored. Rename it "
                f"first."
            )
    for path, target in moves:
        _move(path, target)
    remove_entry(entry)


def remove_entry(entry: TrashedImages) -> None:
    """Remove an entry with all that is in it, for good; of links, the links alone.

    Raises:
        StorageError: Something is held open or read-only.
    """
    with storage_errors.reported(entry.path):
        shutil.rmtree(entry.path)


def _new_entry(dataset: Path) -> Path:
    trash, stamp, number = dataset / TRASH, time.strftime("%Y%m%d-%H%M%S"), 0
    if trash.is_symlink() or (presence.exists(trash) and not trash.is_dir()):
        raise DatasetError(f"{trash} is no folder, so nothing was moved. Remove it.")
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
    """The names of the files in a folder, read once and kept true while files are moved away.

    Attributes:
        files: All of them.
        images: Stem -> the images that have it.
        encoded: Stem -> the files that may be latents or encoded captions of an image with it.
    """

    files: set[str] = field(default_factory=set)
    images: dict[str, set[str]] = field(default_factory=dict)
    encoded: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> _FolderNames:
        """The names in a folder; none of one that is not there.

        Raises:
            StorageError: It may not be read.
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
        """The files that belong to an image alone."""
        stem = Path(image).stem
        found = [image + CROP]
        if self.images.get(stem, set()) <= {image}:
            found += [stem + CAPTION, stem + TAGS, *self.encoded.get(stem, ())]
        return [name for name in dict.fromkeys(found) if name in self.files]

    def forget(self, name: str) -> None:
        """Take out a file that was moved away."""
        self.files.discard(name)
        self.images.get(Path(name).stem, set()).discard(name)


def _origin_of(inside: Path, entry: TrashedImages) -> Path:
    """Where a file of an entry belongs."""
    first, *rest = inside.parts
    if first in _MASKS:
        return usual_mask_folders(entry.dataset)[_MASKS.index(first)].joinpath(*rest)
    return entry.dataset / inside


def _files_below(folder: Path) -> Iterator[Path]:
    for above, inner, names in os.walk(folder):
        inner.sort()
        yield from (Path(above, name) for name in sorted(names))


def _move(path: Path, target: Path) -> None:
    """Rename a file, but never over another, into a folder that is made for it.

    Raises:
        StorageError: It cannot be moved, or something has the name.
    """
    with storage_errors.reported(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        move_to_new_name(path, target)
