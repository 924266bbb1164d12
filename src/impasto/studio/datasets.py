"""Finds the datasets and images that the studio shows, and resolves their names in addresses."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from impasto import files
from impasto.canonical import sort_key
from impasto.data.folders.formats import EXTENSIONS
from impasto.data.folders.mask_folders import images_of_masks, is_of_masks
from impasto.data.folders.skipped_folders import why_no_images
from impasto.data.inspecting.image_list import is_hidden
from impasto.member_paths import is_container
from impasto.runs import RunDirectory
from impasto.studio.folders import Folders, path_of

LEVELS = 3
"""Number of levels below a given folder that are searched for datasets."""

FOLDERS_AT_MOST = 3000
"""Maximum number of folders below a given one that are searched for datasets."""

NEW_MARK = Path(files.DERIVED_DIR) / "uploads"
"""The subfolder that marks a folder as a dataset while it has no image yet."""

_KEPT_THERE = (
    "thumbnails", "thumbnails/content", "studio", "studio/images.jsonl", "studio/report.html",
    "studio/report.json", "uploads", "views",
)  # fmt: skip
_SHOWN = 4


@dataclass(frozen=True)
class DatasetSummary:
    """A folder with images directly in it.

    Attributes:
        path: The folder.
        count: Number of images directly in the folder, without those in its subfolders.
        first: The first few of these images.
        packed: Number of tars or tables of images if it has those instead; the studio does not open
            them.
    """

    path: Path
    count: int
    first: list[Path] = field(default_factory=list)
    packed: int = 0


def dataset_of(folders: Folders, name: str) -> Path | None:
    """Return the dataset folder that an address names, or None if there is none to show."""
    path = path_of(folders.data, name)
    if path is None:
        return None
    try:
        inside = next(path.relative_to(f) for f in folders.data if path.is_relative_to(f))
        is_ours = not is_hidden(_below(inside)) and path.is_dir()
    except (OSError, ValueError, StopIteration):
        return None
    return path if is_ours else None


def image_of(dataset: Path, name: str) -> Path | None:
    """Return the image of a dataset that an address names.

    None if the file has no image extension, is hidden, leads out of the dataset, or is missing.
    """
    path = path_of([dataset], name)
    if path is None or path.suffix.lower() not in EXTENSIONS:
        return None
    try:
        is_ours = not is_hidden(_below(path.relative_to(dataset))) and path.is_file()
    except (OSError, ValueError):
        return None
    return path if is_ours else None


def _below(inside: Path) -> str:
    """Return a relative path as text with slashes; the folder itself gives an empty text."""
    text = inside.as_posix()
    return "" if text == "." else text


def find_datasets(folders: Folders) -> list[DatasetSummary]:
    """Return the datasets of all folders in the order of their paths, without packed ones."""
    return [summary for summary in find_all(folders) if not summary.packed]


def find_all(folders: Folders, cut: list[Path] | None = None) -> list[DatasetSummary]:
    """Return the datasets and the folders of tars or tables, in the order of their paths.

    Hidden folders, links to folders, run directories (whose images are samples) and folders of
    masks beside the images are left out. A folder created by the studio counts as a dataset even if
    it has no image yet.

    Args:
        folders: The folders that are shown.
        cut: A list to which folders are added that have too many subfolders to search them all.
    """
    found: dict[Path, DatasetSummary] = {}
    for top in folders.data:
        left = FOLDERS_AT_MOST
        waiting: list[tuple[Path, int, Path | None]] = [(top, 0, None)]
        while waiting and left > 0:
            left -= 1
            folder, level, masked = waiting.pop()
            names, inner = _listed(folder)
            if "config.toml" in names and RunDirectory(folder).is_there():
                continue
            of_masks = masked is not None and is_of_masks(names, masked)
            summary = None if of_masks else _summary(folder, names) or _packed(folder, names)
            if summary is not None:
                found[folder] = summary
            if level < LEVELS:
                waiting += [
                    (folder / name, level + 1, _images_of(folder / name, masked)) for name in inner
                ]
        if waiting and cut is not None:
            cut.append(top)
    return sorted(found.values(), key=lambda summary: sort_key(str(summary.path)))


def image_files(dataset: Path, *, recursive: bool = True) -> list[str]:
    """Return the relative paths of a dataset's image files, with slashes, found by extension alone.

    They are in the order in which a scan lists them.
    """
    found: list[str] = []
    start = len(os.path.join(dataset, ""))  # noqa: PTH118 - hot path
    for folder, inner, names in os.walk(dataset):
        inner[:] = [
            name
            for name in inner
            if recursive and not name.startswith(".") and why_no_images(Path(folder, name)) is None
        ]
        found += [
            sort_key(os.path.join(folder, name)[start:])  # noqa: PTH118 - hot path
            for name in names
            if _is_image(name)
        ]
    return sorted(found)


def derived_of(dataset: Path, home: Path) -> Path:
    """Return the folder for data derived from a dataset: in it, or in `home` if it is read-only.

    `home` is also used if the folder of derived data, or a file or folder that the studio keeps in
    it, is a link that leads out of the dataset, since a dataset may come from an untrusted source.
    """
    own, real = dataset / files.DERIVED_DIR, files.real_path(dataset)
    kept = (own, *(own / name for name in _KEPT_THERE))
    if all(files.real_path(path).is_relative_to(real) for path in kept) and os.access(
        own if own.is_dir() else dataset, os.W_OK
    ):
        return own
    mark = hashlib.sha256(os.fsencode(real)).hexdigest()[:16]
    return home / "datasets" / mark


def _images_of(folder: Path, above: Path | None) -> Path | None:
    """Return the image folder whose masks `folder` may hold, judged by its name or its parent's."""
    return images_of_masks(folder) if above is None else above / folder.name


def _listed(folder: Path) -> tuple[set[str], list[str]]:
    """Return the names of files and of subfolders to search; none if the folder is unreadable."""
    names, inner = set(), []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name == files.DERIVED_DIR:
                        names.add(entry.name)
                    elif not entry.name.startswith("."):
                        inner.append(entry.name)
                else:
                    names.add(entry.name)
    except OSError:
        pass
    return names, sorted(inner)


def _summary(folder: Path, names: set[str]) -> DatasetSummary | None:
    images = sorted(name for name in names if _is_image(name))
    if not images and not (files.DERIVED_DIR in names and (folder / NEW_MARK).is_dir()):
        return None
    return DatasetSummary(folder, len(images), [folder / name for name in images[:_SHOWN]])


def _packed(folder: Path, names: set[str]) -> DatasetSummary | None:
    """Return the summary of a folder of tars or tables, found by extension; None if it has none."""
    count = sum(is_container(name) and not name.startswith(".") for name in names)
    return DatasetSummary(folder, 0, packed=count) if count else None


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS  # noqa: PTH122 - hot path
