"""Finds the pictures of a folder, or of a metadata file, with their words; reads headers only."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from impasto.data import images
from impasto.data.metadata import Metadata, MetadataEntry, PictureFinder
from impasto.data.probing import NO_FILE, Found, ScanIndex, Sidecars, sort_out
from impasto.data.records import ImageRecord, SetAside, no_cycle_collection
from impasto.data.rendering import Decode
from impasto.data.stages import Failure, LocalExecutor, chunks, default_workers
from impasto.data.subsets import PLAIN, Subset
from impasto.errors import DatasetError
from impasto.progress import Progress, SilentProgress


@dataclass(frozen=True)
class Scan:
    """What a data set holds: usable pictures, and those set aside with their reasons.

    Attributes:
        place: What was scanned, for messages.
    """

    place: str
    records: tuple[ImageRecord, ...]
    set_aside: tuple[SetAside, ...]

    @property
    def uncaptioned(self) -> int:
        """How many usable pictures have no words at all."""
        return sum(not record.words.strip() for record in self.records)

    @property
    def with_more_lines(self) -> int:
        """How many captions have lines that are never shown: several, and no wildcards."""
        return sum(
            "\n" in record.words and not record.subset.captions.wildcards for record in self.records
        )


def scan_folder(
    folder: Path,
    *,
    recursive: bool = True,
    index: Path | None = None,
    progress: Progress | None = None,
    subset: Subset = PLAIN,
    sidecars: Sidecars = Sidecars(),  # noqa: B008 - immutable
) -> Scan:
    """List a folder's pictures in order of their paths, with the words beside them.

    Hidden files and folders and AppleDouble files (`._x`) are passed over, and the folder of masks.

    Args:
        folder: Where to look.
        recursive: Also look in sub-folders; links to folders are not followed.
        index: A file to keep results in between scans; None keeps nothing.
        progress: Where to show how far it is.
        subset: How the pictures are used.
        sidecars: The endings of the files with the words.

    Raises:
        DatasetError: The folder is missing, or holds no usable picture.
    """
    require_folder(folder)
    masks = subset.masks.folder if subset.masks else None
    with no_cycle_collection():
        known = ScanIndex(index, f"{folder.absolute()} {' '.join(sidecars)}")
        walk = _find(str(folder), sidecars, recursive=recursive, without=_same(masks))
        found = sorted(walk, key=lambda item: item.path)
    entries = known.probe(found, sidecars, progress or SilentProgress())
    with no_cycle_collection():
        records, set_aside = sort_out(found, entries, subset)
    if not records:
        raise DatasetError(nothing_usable(str(folder), set_aside))
    return Scan(str(folder), tuple(records), tuple(set_aside))


def scan_metadata(
    metadata: Metadata,
    image_dir: Path | None,
    *,
    index: Path | None = None,
    progress: Progress | None = None,
    subset: Subset = PLAIN,
) -> Scan:
    """The pictures that a metadata file names, with its words; sidecars are not read.

    What it names and is not there is set aside, one by one.

    Raises:
        DatasetError: The folder is missing, or none of the pictures can be used.
    """
    if image_dir is not None:
        require_folder(image_dir)
    finder = PictureFinder(image_dir or metadata.file.parent)
    found: list[Found] = []
    of_path: dict[str, MetadataEntry] = {}
    set_aside: list[SetAside] = []
    for entry in metadata.entries:
        path = finder.find(entry.key)
        if isinstance(path, Failure):
            set_aside.append(SetAside(Path(entry.key), path.reason))
        elif path in of_path:
            named = f"metadata names it twice: {of_path[path].key!r} and {entry.key!r}"
            set_aside.append(SetAside(Path(entry.key), named))
        else:
            of_path[path] = entry
            found.append(_look_at(path, {}, Sidecars("", "")))
    known = ScanIndex(index, str(metadata.file.absolute()))
    entries = known.probe(found, Sidecars("", ""), progress or SilentProgress())
    with no_cycle_collection():
        records, unusable = sort_out(found, entries, subset)
    worded = []
    for record in records:
        entry = of_path[str(record.path)]
        worded.append(
            dataclasses.replace(
                record, caption=entry.caption, tags=entry.tags, wanted=entry.train_resolution
            )
        )
    set_aside += unusable
    if not worded:
        raise DatasetError(nothing_usable(str(metadata.file), set_aside))
    return Scan(str(metadata.file), tuple(worded), tuple(set_aside))


def joined_scans(scans: Sequence[Scan]) -> Scan:
    """Several scans as one."""
    places = list(dict.fromkeys(scan.place for scan in scans))
    return Scan(
        ", ".join(places),
        tuple(record for scan in scans for record in scan.records),
        tuple(dict.fromkeys(item for scan in scans for item in scan.set_aside)),
    )


def decode_all(scan: Scan, progress: Progress | None = None) -> Scan:
    """Decode every picture of a scan, and set aside those that their headers did not betray.

    Raises:
        DatasetError: None is left.
    """
    progress = progress or SilentProgress()
    kept, set_aside = [], list(scan.set_aside)
    executor = LocalExecutor(Decode(), workers=default_workers())
    with progress.stage("Decoding pictures", len(scan.records), "pictures") as advance:
        for outcomes in executor.run(chunks(scan.records, 4)):
            for record, outcome in outcomes:
                if isinstance(outcome, Failure):
                    set_aside.append(SetAside(record.path, outcome.reason))
                else:
                    kept.append(record)
            advance(len(outcomes))
    if not kept:
        raise DatasetError(nothing_usable(scan.place, set_aside))
    return Scan(scan.place, tuple(kept), tuple(set_aside))


def require_folder(folder: Path) -> None:
    """Make sure that a folder of pictures is there.

    Raises:
        DatasetError: It is missing, or a file.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise DatasetError(
            f"The picture folder {folder} is not there (found: {found}). Give the path of a folder "
            f"that holds your pictures."
        )


def nothing_usable(place: str, set_aside: Sequence[SetAside]) -> str:
    """What to say where no picture can be used."""
    if not set_aside:
        kinds = " ".join(sorted(ext[1:] for ext in images.EXTENSIONS))
        return (
            f"{place} holds no pictures. Expected files ending in {kinds} (upper or lower case), "
            f"each with a .txt or .caption of the same name beside it."
        )
    first = set_aside[0]
    return (
        f"None of the {len(set_aside)} pictures of {place} can be read; the first is "
        f"{first.path.name}: {first.reason}."
    )


def _same(folder: Path | None) -> str:
    return "" if folder is None else os.path.abspath(folder)  # noqa: PTH100 - compared as text


def _find(folder: str, sidecars: Sidecars, *, recursive: bool, without: str) -> Iterator[Found]:
    """Yield the picture files below `folder` with the stamps of the files that belong to them."""
    pictures: list[str] = []
    words: dict[str, tuple[int, int]] = {}
    folders: list[str] = []
    try:
        listing = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield Found(folder, [], f"a folder that cannot be read ({error.strerror or error})")
        return
    for entry in (entry for entry in listing if not entry.name.startswith(".")):
        extension = os.path.splitext(entry.name)[1]  # noqa: PTH122 - hot path
        if entry.is_dir(follow_symlinks=False):
            folders.append(entry.path)
        elif extension.lower() in images.EXTENSIONS:
            pictures.append(entry.path)
        elif extension and extension in sidecars:
            with contextlib.suppress(OSError):
                words[entry.path] = _stamp(entry.stat())
    for path in pictures:
        yield _look_at(path, words, sidecars)
    for sub_folder in folders if recursive else ():
        if not without or os.path.abspath(sub_folder) != without:  # noqa: PTH100 - text
            yield from _find(sub_folder, sidecars, recursive=True, without=without)


def _look_at(path: str, words: dict[str, tuple[int, int]], sidecars: Sidecars) -> Found:
    try:
        own = _stamp(os.stat(path))  # noqa: PTH116 - hot path
    except OSError as error:
        return Found(path, [], f"cannot be read ({error.strerror or error})")
    stem = os.path.splitext(path)[0]  # noqa: PTH122 - hot path
    caption = words.get(stem + sidecars.caption, NO_FILE)
    return Found(path, [*own, *caption, *words.get(stem + sidecars.tags, NO_FILE)])


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
