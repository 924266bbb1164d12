"""Finds the images that a metadata file names, in a folder, or in its tars or tables."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from impasto.data.containers.container_listing import MemberTree, list_containers
from impasto.data.containers.containers import Columns, containers_below, named_containers
from impasto.data.engines.engine import Engine
from impasto.data.engines.stages import Failure
from impasto.data.folders.finding import ImageFinder
from impasto.data.folders.listing import Sidecars, Unused
from impasto.data.folders.metadata import Metadata, MetadataEntry
from impasto.data.records import SkippedFile
from impasto.member_paths import folder_of, is_named
from impasto.parsing import printable
from impasto.progress import Progress

_Named = tuple[dict[str, MetadataEntry], list[SkippedFile], list[Unused]]


def look_up(
    metadata: Metadata,
    image_dir: Path | None,
    columns: Columns,
    index: Path | None,
    progress: Progress | None,
    engine: Engine,
    masks: Sequence[Path] = (),
) -> tuple[ImageFinder, dict[str, MetadataEntry], list[SkippedFile], list[Unused]]:
    """Find the images that metadata names, as files or, if none is found, in tars or tables.

    Args:
        metadata: The metadata.
        image_dir: The location that its names are relative to; None means the metadata's folder.
        columns: The columns of tables.
        index: A file to store results in between scans; None stores nothing.
        progress: Shows progress.
        engine: Runs the work on files.
        masks: Folders of masks, in which no images are searched for.

    Returns:
        The finder that found them, then the results of `_named_images`.

    Raises:
        DatasetError: The location names no tar or table.
        StorageError: It is in an object store that cannot be used.
    """
    location = image_dir or metadata.file.parent
    finder = ImageFinder(folder_of(location), masks=masks)
    named: _Named = (
        ({}, [], []) if is_named(location) else _named_images(metadata, image_dir, finder)
    )
    if named[0]:
        return finder, *named
    containers = (
        named_containers(location)
        if is_named(location)
        else containers_below(location, recursive=True)
    )
    if containers is None:
        return finder, *named
    no_sidecars = Sidecars("", "")
    found, _ = list_containers(containers, no_sidecars, columns, index, progress, engine)
    finder = ImageFinder(folder_of(location), MemberTree(found))
    return finder, *_named_images(metadata, image_dir, finder)


def _named_images(metadata: Metadata, image_dir: Path | None, finder: ImageFinder) -> _Named:
    """Map the path of each image found to its entry; list unmatched names and unnamed images."""
    of_path: dict[str, MetadataEntry] = {}
    spelt: dict[str, str] = {}
    skipped: list[SkippedFile] = []
    outcomes = finder.find_all([entry.key for entry in metadata.entries])
    for entry, path in zip(metadata.entries, outcomes, strict=True):
        if isinstance(path, Failure):
            skipped.append(SkippedFile(Path(printable(entry.key)), path.reason))
            continue
        other = spelt.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
        if path in of_path or (other != path and _is_same_file(other, path)):
            first = of_path[path if path in of_path else other]
            reason = f"metadata names it twice: {first.key!r} and {entry.key!r}"
            skipped.append(SkippedFile(Path(entry.key), reason))
        else:
            of_path[path] = entry
    unused = [Unused(metadata.file, remark) for remark in finder.remarks]
    if image_dir is not None:
        reason = "an image that the metadata file does not name"
        unused += [Unused(Path(path), reason) for path in finder.find_unnamed(set(of_path))]
    return of_path, skipped, unused


def _is_same_file(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)  # noqa: PTH121 - hot path
    except OSError:
        return False
