"""Finds images of a dataset that are copies of one another: byte for byte, or by their looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from impasto.data.engines.engine import LOCAL, Engine
from impasto.data.inspecting.likeness import PerceptualHashes, near_duplicates
from impasto.data.pixels.content_hashes import ContentHashes
from impasto.data.record_table import RecordTable
from impasto.data.records import ImageRecord
from impasto.progress import Progress, counted

MOST_COMPARED = 10_000
"""Largest number of images in a dataset whose looks are compared: each must be decoded once for
that."""

_AT_ONCE = 1 << 18  # images whose hashes are looked up together
_EVEN = 32  # bits set in the perceptual hash of an image, unless parts of it are perfectly flat


@dataclass(frozen=True)
class Copies:
    """The number of copies that a dataset has.

    Attributes:
        images: Image files that have a copy.
        groups: Groups of such files.
        near: Whether files that look the same count as copies, or only files with equal bytes.
    """

    images: int
    groups: int
    near: bool


NO_COPIES = Copies(0, 0, near=False)


def group_copies(
    records: RecordTable,
    derived: Path,
    progress: Progress,
    *,
    near: bool,
    engine: Engine = LOCAL,
) -> np.ndarray:
    """Group the images that are copies of one another.

    An image that looks the same only after mirroring or cropping is not a copy here.

    Args:
        records: The images.
        derived: Folder in which hashes of files are cached.
        progress: Shows progress and notes.
        near: Whether to compare looks, in datasets of up to `MOST_COMPARED` images.
        engine: Runs the work on files.

    Returns:
        [images]: the index of an image, the same for all copies of one another.
    """
    hashes = ContentHashes.kept_in(derived)
    groups = group_byte_copies(records, hashes, progress, engine)
    if not near:
        return groups
    if not _are_compared(records):
        progress.note(
            f"Only files with equal bytes are found as copies: with more than {MOST_COMPARED:,} "
            f"images, looks are not compared."
        )
        return groups
    different = records.select(np.unique(groups))
    return _joined(groups, _near_copies(different, hashes, derived, progress, engine))


def count_copies(groups: np.ndarray, records: RecordTable, *, near: bool) -> Copies:
    """Count the image files that have copies, and the groups that these form."""
    _, counts = np.unique(groups[records.first_of_paths()], return_counts=True)
    several = counts[counts > 1]
    return Copies(int(several.sum()), len(several), near and _are_compared(records))


def _are_compared(records: RecordTable) -> bool:
    """Return whether there are few enough files to compare looks; a file may be several records."""
    return len(records) <= MOST_COMPARED or int(records.first_of_paths().sum()) <= MOST_COMPARED


def describe(copies: Copies, images: int) -> str:
    """Return a sentence about the copies among `images` files; empty string if there are none."""
    if not copies.images:
        return ""
    what = (
        "copies of one another, or look the same" if copies.near else "byte copies of one another"
    )
    return (
        f"{copies.images:,} of {images:,} images are {what}, in "
        f"{counted(copies.groups, 'groups')}: each group is held out as a whole or not at all."
    )


def group_byte_copies(
    records: Sequence[ImageRecord],
    hashes: ContentHashes,
    progress: Progress,
    engine: Engine = LOCAL,
) -> np.ndarray:
    """Group the images whose files are equal byte for byte.

    Only files of equal size are read. An unreadable file is equal to no other.

    Args:
        records: The images; one that is in two subsets appears twice.
        hashes: Caches the hashes of files.
        progress: Shows progress.
        engine: Runs the work on files.

    Returns:
        [images]: the index of an image, the same for all whose files are equal.
    """
    table = RecordTable.of(records)
    firsts = table.path_firsts()
    files = np.flatnonzero(firsts == np.arange(len(table)))
    _, codes, counts = np.unique(
        table.numbers["size_bytes"][files], return_inverse=True, return_counts=True
    )
    alike = files[counts[codes.ravel()] > 1]
    numbers = np.arange(len(table))
    known: dict[str, int] = {}
    for start in range(0, len(alike), _AT_ONCE):
        rows = alike[start : start + _AT_ONCE]
        portion = table.select(rows)
        stamps = {record.path: record.stamp for record in portion}
        found = hashes.of(stamps, progress, tidy=False, engine=engine)
        for row, record in zip(rows.tolist(), portion, strict=True):
            key = found.get(record.path, str(record.path))
            numbers[row] = known.setdefault(key, row)
    hashes.tidy()
    return numbers[firsts]


def _near_copies(
    different: RecordTable,
    hashes: ContentHashes,
    derived: Path,
    progress: Progress,
    engine: Engine,
) -> list[list[int]]:
    """Return groups of rows of `different` whose images look the same.

    Images that cannot be decoded are in no group, and neither are flat ones: the perceptual hash of
    a plain surface carries no information, and is the same for all of them.
    """
    records = list(different)
    digests = hashes.of({record.path: record.stamp for record in records}, progress, engine=engine)
    looks, _ = PerceptualHashes(derived / "looks.json").of(records, digests, progress, engine)
    told = {path: look for path, look in looks.items() if look.bit_count() == _EVEN}
    with progress.stage("Comparing images", len(told), "images") as advance:
        alike = near_duplicates(told, advance)
    indices = {record.path: index for index, record in enumerate(records)}
    return [[indices[path] for path in group] for group in alike]


def _joined(groups: np.ndarray, alike: Sequence[Sequence[int]]) -> np.ndarray:
    """Merge groups: `alike` lists positions among the sorted group labels that belong together."""
    labels = np.unique(groups)
    found = labels.copy()
    for indices in alike:
        found[list(indices)] = labels[min(indices)]
    return found[np.searchsorted(labels, groups)]
