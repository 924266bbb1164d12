"""Finds the images that a metadata file names, in a folder, or in the tars or tables of one."""

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
    """The images that metadata names; in tars or tables where none of them is a file.

    Args:
        metadata: It.
        image_dir: The location that its names are relative to; None means the folder it is in.
        columns: The columns of tables.
        index: A file to keep results in between scans; None keeps nothing.
        progress: Where to show how far it is.
        engine: Runs what is done.
        masks: Folders of masks, in which no images are looked for.

    Returns:
        What found them, then as `_named_images`.

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
    """Path -> entry of what is there; names that lead nowhere; images that have no name."""
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
