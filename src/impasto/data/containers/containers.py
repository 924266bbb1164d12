"""Finds the files of a location that hold many images each: tars, Parquet and Arrow tables.

A location is one such file, a name with wildcards, or a folder: of webdataset shards, one written
by `datasets.save_to_disk`, or a copy of a dataset of the Hugging Face Hub. No file is opened but
the `state.json` of a `save_to_disk` folder.

Sources: huggingface/datasets, `src/datasets/arrow_dataset.py`, save_to_disk (`state.json` names
the Arrow files of a folder), and `src/datasets/data_files.py` (the names of splits).
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from impasto.canonical import sort_key
from impasto.data.folders import formats
from impasto.data.folders.found_image import FoundImage
from impasto.data.folders.listing import Unused
from impasto.data.folders.object_tree import ObjectTree, tree_of
from impasto.data.folders.skipped_folders import SkippedFolders
from impasto.data.folders.stamping import stat_image
from impasto.errors import DatasetError
from impasto.member_paths import CONTAINERS, TAR, WILD, is_container, is_named
from impasto.parsing import parse_json, read_object
from impasto.progress import counted
from impasto.remote_paths import is_remote, shown
from impasto.storage import objects

_STATE = "state.json"
_TRAIN = frozenset({"train", "training"})
_SPLIT = re.compile(
    r"(?:^|[^a-zA-Z])(train|training|validation|valid|val|dev|test|testing|eval|evaluation)"
    r"(?![a-zA-Z])"
)
CAPTION_NAMES = ("caption", "text", "prompt", "captions", "txt", "tags")
"""Usual names of columns with captions, and of keys in a sample's JSON file."""

NAMES = {".tar": "tar shards", ".parquet": "Parquet tables", ".arrow": "Arrow tables"}


@dataclass(frozen=True)
class Columns:
    """The names of columns in tables; None searches for the usual names.

    Attributes:
        image: The column of images.
        caption: The column of captions.
    """

    image: str | None = None
    caption: str | None = None


class Container(NamedTuple):
    """A file that holds many images: its path, its size in bytes, and its modification stamp."""

    path: str
    size: int
    stamp: int


@dataclass
class Containers:
    """The files of a location that hold its images.

    Attributes:
        ending: The file extension of all of them.
        files: The files, in the order of their paths.
        faults: Missing or unreadable files.
        unused: Files of the location that are not used, with advice.
    """

    ending: str
    files: list[Container]
    faults: list[FoundImage] = field(default_factory=list)
    unused: list[Unused] = field(default_factory=list)

    @property
    def described(self) -> str:
        """The number and kind of the files, as a text for the user."""
        return counted(len(self.files), NAMES[self.ending])


def named_containers(location: Path) -> Containers:
    """Return the file at a location, or the files that match its wildcards.

    Raises:
        DatasetError: No file was found, or files of several kinds.
        StorageError: They are in an object store that cannot be used.
    """
    is_there = (
        not is_remote(location) and location.is_file()
    )  # for example `cats[1].tar`, which is then not a pattern
    if is_there or not WILD.search(location.name):
        found = [_stat(str(location), None)]
    else:
        tree = tree_of(location.parent)
        listed = _below(location.parent, tree, recursive=False)
        own = [path for path in listed if fnmatch.fnmatchcase(Path(path).name, location.name)]
        found = [_stat(path, tree) for path in sorted(own, key=sort_key) if is_container(path)]
    files = [item for item in found if isinstance(item, Container)]
    faults = [item for item in found if isinstance(item, FoundImage)]
    endings = {Path(item.path).suffix.lower() for item in found}
    if not found:
        raise DatasetError(
            f"{shown(location)} matches no file. Expected a folder of images, or names of files "
            f"ending in {' '.join(CONTAINERS)}."
        )
    if len(endings) > 1:
        raise DatasetError(
            f"{shown(location)} matches files of several kinds ({' '.join(sorted(endings))}). Give "
            f"each kind as a separate subset, as in *{min(endings)}."
        )
    return Containers(endings.pop(), files, faults)


def containers_below(folder: Path, *, recursive: bool) -> Containers | None:
    """Return the files of a folder that hold images, of one kind only; None if there are none.

    Tars take precedence over tables, which in img2dataset's output describe the tars. If there are
    files of a training split, those of other splits are left out.

    Raises:
        StorageError: The folder is in an object store that cannot be used.
    """
    tree = tree_of(folder)
    paths = sorted(
        (path for path in _below(folder, tree, recursive=recursive) if is_container(path)),
        key=sort_key,
    )
    if not paths:
        return None
    ending = next(e for e in CONTAINERS if any(p.lower().endswith(e) for p in paths))
    chosen = Containers(ending, [])
    own = [path for path in paths if path.lower().endswith(ending)]
    reason = f"not used beside {NAMES[ending]}; give it as the image_dir of a separate subset"
    others = (path for path in paths if not path.lower().endswith(ending))
    chosen.unused += [Unused(Path(path), reason) for path in others]
    if ending != TAR:
        own = _of_state(own, tree, chosen)
    for path in _of_training(own, folder, chosen):
        item = _stat(path, tree)
        if isinstance(item, Container):
            chosen.files.append(item)
        else:
            chosen.faults.append(item)
    return chosen


def holds_containers(location: Path, *, recursive: bool = True, masks: Path | None = None) -> bool:
    """Return whether the images of a location on this machine are in tars or tables.

    The result is the same as a scan's. The search ends at the first readable image file.

    Args:
        location: A folder, a file or a name with wildcards.
        recursive: Whether to search sub-folders.
        masks: The folder of masks, which is skipped.
    """
    if is_named(location):
        return True
    found = False
    for path in _below(location, None, recursive=recursive, without=masks):
        is_image = os.path.splitext(path)[1].lower() in formats.EXTENSIONS  # noqa: PTH122 - hot path
        if is_image and not stat_image(path).fault:
            return False
        found = found or is_container(path)
    return found


def _below(
    folder: Path, tree: ObjectTree | None, *, recursive: bool, without: Path | None = None
) -> Iterator[str]:
    """Yield the files in a folder, and in sub-folders if `recursive`, except hidden ones."""
    left_out = SkippedFolders([] if without is None else [without])
    walk = os.walk(folder) if tree is None else tree.walk()
    for above, folders, names in walk:
        folders[:] = [
            name
            for name in sorted(folders if recursive else ())
            if not name.startswith(".") and left_out.reason(os.path.join(above, name)) is None  # noqa: PTH118
        ]
        yield from (os.path.join(above, name) for name in names if not name.startswith("."))  # noqa: PTH118
        if not recursive:
            return


def _stat(path: str, tree: ObjectTree | None) -> Container | FoundImage:
    """Return a file's size and stamp, or the fault if it cannot be examined."""
    if is_remote(path):
        stored = objects.look_up(Path(path)) if tree is None else tree.stored(path)
        if stored is None:
            return FoundImage(path, [], fault="does not exist")
        return Container(path, stored.size, stored.identity)
    try:
        status = os.stat(path)  # noqa: PTH116 - hot path
    except OSError as error:
        return FoundImage(path, [], fault=f"cannot be read ({error.strerror or error})")
    if not stat.S_ISREG(status.st_mode):
        return FoundImage(path, [], fault="not a regular file")
    return Container(path, status.st_size, status.st_mtime_ns)


def _of_state(paths: Sequence[str], tree: ObjectTree | None, chosen: Containers) -> list[str]:
    """Return the tables to use: those named by the folder's `state.json`, or all if it has none."""
    kept: list[str] = []
    folders: dict[str, list[str]] = {}
    for path in paths:
        folders.setdefault(os.path.dirname(path), []).append(path)  # noqa: PTH120
    for folder, own in folders.items():
        named = _named_by_state(folder, tree)
        if named is None:
            kept += own
            continue
        reason = f"not among the files of the dataset that {_STATE} names"
        for path in own:
            if os.path.basename(path) in named:  # noqa: PTH119
                kept.append(path)
            else:
                chosen.unused.append(Unused(Path(path), reason))
        for name in sorted(named - {os.path.basename(path) for path in own}):  # noqa: PTH119
            fault = f"{_STATE} names it, but it does not exist"
            chosen.faults.append(FoundImage(os.path.join(folder, name), [], fault=fault))  # noqa: PTH118
    return kept


def _named_by_state(folder: str, tree: ObjectTree | None) -> set[str] | None:
    """Return the names of the files that `save_to_disk` wrote into a folder; None if it did not."""
    file = Path(folder, _STATE)
    if tree is None:
        content = read_object(file) if file.is_file() else None
    else:
        try:
            content = parse_json(objects.read(file)) if tree.has(str(file)) else None
        except (OSError, ValueError):
            content = None
    items = content.get("_data_files") if isinstance(content, dict) else None
    if not isinstance(items, list):
        return None
    names = [item.get("filename") for item in items if isinstance(item, dict)]
    return {name for name in names if isinstance(name, str) and "/" not in name and name} or None


def _of_training(paths: Sequence[str], folder: Path, chosen: Containers) -> list[str]:
    """Return the files of the training split and those of no split; all if none is of training."""
    splits = {path: _split_of(os.path.relpath(path, folder)) for path in paths}
    if not _TRAIN & set(splits.values()):
        return list(paths)
    reason = "of another split than train, and not used; name it to use it, as in data/test-*"
    others = [path for path, split in splits.items() if split and split not in _TRAIN]
    chosen.unused += [Unused(Path(path), reason) for path in others]
    return [path for path, split in splits.items() if not split or split in _TRAIN]


def _split_of(below: str) -> str:
    """Return the name of the split in a path relative to the dataset's folder; empty if none."""
    for name in reversed(Path(below).parts):
        found = _SPLIT.search(name)
        if found:
            return found[1]
    return ""
