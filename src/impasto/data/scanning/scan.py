"""Scans a folder or a metadata file for images and captions; reads headers only."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from impasto.data.containers.containers import (
    Columns,
)
from impasto.data.engines.engine import LOCAL, Engine
from impasto.data.engines.stages import in_chunks
from impasto.data.folders.found import found_of
from impasto.data.folders.listing import (
    Sidecars,
    Unused,
)
from impasto.data.folders.masks import unused_masks
from impasto.data.folders.metadata import Metadata
from impasto.data.pixels import images
from impasto.data.pixels.decoded import DecodeCache
from impasto.data.pixels.rendering import Decode
from impasto.data.record_table import RecordTable, join_records
from impasto.data.records import SkippedFile, no_cycle_collection
from impasto.data.scanning.image_locations import list_location, require_images
from impasto.data.scanning.probing import ScanIndex, split_usable
from impasto.data.scanning.tally import Tally, count_images
from impasto.data.subsets import PLAIN, Subset
from impasto.errors import DatasetError
from impasto.member_paths import is_member, plain
from impasto.progress import Progress, SilentProgress, none_of
from impasto.remote_paths import absolute, shown

_NAMED = 3  # names written out per reason


@dataclass(frozen=True)
class Scan:
    """The usable images of a dataset, and those skipped with their reasons.

    Attributes:
        source: What was scanned, for messages.
        records: The images, as columns; one that is in two subsets appears twice.
        skipped: Images that cannot be used.
        unused: Other files and folders that look like images or captions.
    """

    source: str
    records: RecordTable
    skipped: tuple[SkippedFile, ...]
    unused: tuple[Unused, ...] = ()

    @cached_property
    def tally(self) -> Tally:
        """The counts of usable and skipped images."""
        return count_images(self.records, self.skipped, len(self.unused))

    @property
    def uncaptioned_count(self) -> int:
        """How many usable images have no caption at all."""
        return self.tally.without_words

    @property
    def multiline_captions(self) -> int:
        """How many captions have several lines of which only the first is used (no wildcards)."""
        records = self.records
        some = records.matches("caption", _has_lines) | records.matches("tags", _has_lines)
        some |= records.per_use(lambda use: "\n" in use.class_tokens).astype(np.bool_)
        return sum(
            "\n" in record.caption_text and not record.subset.captions.wildcards
            for record in records.select(some)
        )

    def without(self, skipped: Iterable[SkippedFile]) -> Scan:
        """Return the scan without some images that turned out to be unusable."""
        fresh = {item.path: item for item in skipped}
        known = {item.path for item in self.skipped}
        return dataclasses.replace(
            self,
            records=self.records.without(list(fresh)),
            skipped=(
                *self.skipped,
                *(item for path, item in fresh.items() if path not in known),
            ),
        )

    def describe_unused(self) -> list[str]:
        """Return a line per reason why files are not used, with their number and first names."""
        kinds: dict[str, list[str]] = {}
        for item in self.unused:
            kinds.setdefault(item.reason, []).append(item.path.name)
        lines = []
        for reason, names in kinds.items():
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            lines.append(f"Also found: {', '.join(names[:_NAMED])}{more}: {reason}")
        return lines


def scan_folder(
    folder: str | Path,
    *,
    recursive: bool = True,
    index: Path | None = None,
    progress: Progress | None = None,
    subset: Subset = PLAIN,
    sidecars: Sidecars = Sidecars(),  # noqa: B008 - immutable
    columns: Columns = Columns(),  # noqa: B008 - immutable
    engine: Engine = LOCAL,
) -> Scan:
    """List a folder's images in order of their paths, with their captions.

    Hidden files and folders, AppleDouble files (`._x`), folders of masks and runs of Impasto below
    the folder are skipped.

    Args:
        folder: A folder of images or of tars or tables with images, or such a file, or several by
            wildcards (`containers.py`).
        recursive: Also search sub-folders; links to folders are not followed.
        index: A file to store results in between scans; None stores nothing.
        progress: Shows progress.
        subset: How the images are used.
        sidecars: The extensions of caption files.
        columns: The columns of tables with the images and their captions.
        engine: Runs the work on files.

    Raises:
        DatasetError: The folder is missing, or has no usable images.
        StorageError: It is in an object store that cannot be used.
    """
    folder = Path(folder)
    require_images(folder)
    said = f"{absolute(folder)} {' '.join(sidecars)}"
    with no_cycle_collection():
        known = ScanIndex(index, said if columns == Columns() else f"{said} {columns}")
    found, unused = list_location(
        folder, subset, sidecars, columns, index, progress, engine, recursive=recursive
    )
    entries = known.probe(found, progress or SilentProgress(), engine)
    with no_cycle_collection():
        records, skipped = split_usable(found, entries, subset)
    if not records:
        raise DatasetError(no_usable_images(shown(folder), skipped, unused))
    return Scan(shown(folder), records, tuple(skipped), tuple(unused))


def scan_metadata(
    metadata: Metadata,
    image_dir: Path | None,
    *,
    index: Path | None = None,
    progress: Progress | None = None,
    subset: Subset = PLAIN,
    columns: Columns = Columns(),  # noqa: B008 - immutable
    engine: Engine = LOCAL,
) -> Scan:
    """List the images that a metadata file names, with its captions; sidecar files are not read.

    Named images that are missing are skipped one by one.

    Raises:
        DatasetError: The folder is missing, or none of the images can be used.
    """
    from impasto.data.scanning.named_images import (
        look_up,  # imports readers of tars, which most folders do not need
    )

    if image_dir is not None:
        require_images(image_dir)
    masks = [subset.masks.folder] if subset.masks and subset.masks.folder else []
    finder, of_path, skipped, unused = look_up(
        metadata, image_dir, columns, index, progress, engine, masks
    )
    found = found_of([finder.stat_image(path) for path in of_path])
    known = ScanIndex(index, str(absolute(metadata.file)))
    entries = known.probe(found, progress or SilentProgress(), engine)
    with no_cycle_collection():
        records, unusable = split_usable(found, entries, subset)
    paths = (path for chunk in records.text_chunks("path") for path in chunk)
    named = [of_path[os.path.normpath(plain(p)) if is_member(p) else p] for p in paths]
    with_captions = records.with_captions(
        [entry.caption for entry in named],
        [entry.tags for entry in named],
        [entry.train_resolution for entry in named],
    )
    skipped += unusable
    if not with_captions:
        raise DatasetError(no_usable_images(shown(metadata.file), skipped))
    return Scan(shown(metadata.file), with_captions, tuple(skipped), tuple(unused))


def join_scans(scans: Sequence[Scan]) -> Scan:
    """Join several scans into one, and report masks that none of them uses."""
    sources = list(dict.fromkeys(scan.source for scan in scans))
    records = join_records([scan.records for scan in scans])
    skipped = tuple(dict.fromkeys(item for scan in scans for item in scan.skipped))
    unused = [item for scan in scans for item in scan.unused]
    unused += unused_masks(records, skipped)
    return Scan(", ".join(sources), records, skipped, tuple(dict.fromkeys(unused)))


def decode_all(
    scan: Scan,
    progress: Progress | None = None,
    *,
    memory: Path | None = None,
    engine: Engine = LOCAL,
) -> Scan:
    """Decode every image of a scan, and skip damaged ones whose headers were good.

    Args:
        scan: The images.
        progress: Shows progress.
        memory: A file to store the outcomes in: images decoded before are not decoded again.
        engine: Runs the work on files.

    Raises:
        DatasetError: No usable images are left.
    """
    progress = progress or SilentProgress()
    known = DecodeCache(memory)
    unknown = np.array([outcome is None for outcome in known.outcomes(scan.records)], np.bool_)
    waiting = scan.records.select(unknown & scan.records.first_of_paths())
    executor = engine.executor(Decode())
    if waiting:
        with progress.stage("Decoding images", len(waiting), "images") as advance:
            for outcomes in executor.run(in_chunks(waiting, 4)):
                for record, outcome in outcomes:
                    known.add(record, outcome)
                advance(len(outcomes))
        known.write()
    left = scan.without(damaged(scan.records, known))
    if not left.records:
        raise DatasetError(no_usable_images(scan.source, left.skipped))
    return left


def damaged(records: RecordTable, known: DecodeCache) -> list[SkippedFile]:
    """Return the images that an earlier decoding found damaged, with reasons."""
    outcomes = known.outcomes(records)
    indices = [index for index, reason in enumerate(outcomes) if reason]
    return [SkippedFile(records[index].path, outcomes[index] or "") for index in indices]


def _has_lines(text: str) -> bool:
    return "\n" in text or "\r" in text


def no_usable_images(
    source: str, skipped: Sequence[SkippedFile], unused: Sequence[Unused] = ()
) -> str:
    """Return the message for a source without usable images."""
    if not skipped:
        kinds = " ".join(sorted(ext[1:] for ext in images.EXTENSIONS))
        near = f" {unused[0].path.name}: {unused[0].reason}." if unused else ""
        return (
            f"{source} holds no images. Expected files with the extensions {kinds} (in any case), "
            f"each with a .txt or .caption file of the same name; or tars, Parquet or Arrow tables "
            f"of images.{near}"
        )
    first = skipped[0]
    return (
        f"{none_of(len(skipped), 'images')} of {source} can be read; the first is "
        f"{first.path.name}: {first.reason}."
    )
