"""Lists images of a dataset with their sizes, buckets, captions and copies. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from impasto import files
from impasto.canonical import canonical, sort_key
from impasto.config.dataset import DatasetConfig
from impasto.data.columns.remembered import recall, write_cached
from impasto.data.engines.engine import Engine
from impasto.data.engines.stages import chunks
from impasto.data.folders.masks import mask_file
from impasto.data.inspecting.image_list import ImageList, ListedImage, caption_tags, folders_below
from impasto.data.inspecting.likeness import PerceptualHashes, exact_duplicates, near_duplicates
from impasto.data.pixels.content_hashes import ContentHashes, stamp_of
from impasto.data.pixels.decoded import DecodeCache
from impasto.data.pixels.rendering import Decode
from impasto.data.records import ImageRecord, PlannedImage, SkippedFile
from impasto.data.scanning.scan import Scan, damaged, no_usable_images
from impasto.datasets.build import plan_dataset, scan_all
from impasto.datasets.engines import open_engine
from impasto.errors import DatasetError, StorageError
from impasto.member_paths import folder_of, plain
from impasto.progress import Progress

_NAMED_UNUSED = 500
_NEAR_FILE, _NEAR_VERSION = "near.json", 1


def list_images(
    config: DatasetConfig,
    source: Path,
    progress: Progress,
    *,
    options: Mapping[str, Any],
    copies: bool = False,
) -> ImageList:
    """List the images, used or skipped; later calls open only files that have changed.

    Args:
        config: The settings of the dataset.
        source: The folder that paths are given relative to; paths outside it are given in full.
        progress: Shows progress and notes.
        options: The options that the list was made with, stored in it.
        copies: Read and decode images that were not compared before. Otherwise only images whose
            hashes and looks are cached are compared.

    Raises:
        DatasetError: There are no usable images.
        StorageError: Derived data cannot be written.
    """
    derived, own = config.derived_dir, config.machine_dir
    files.require_writable(own)  # creates it first: that changes a folder's time, read below
    folders = folders_below(source) if source.is_dir() else {}
    with open_engine(config, progress) as engine:
        scan = _without_damaged(scan_all(config, progress), DecodeCache(derived / "decoded.json"))
        scan, likeness = _compare(scan, derived, own, progress, engine, copies=copies)
    if not scan.records:
        raise DatasetError(no_usable_images(scan.source, scan.skipped))
    plan = plan_dataset(config, scan.records)
    found = {image.record.path: _used(image, source, likeness) for image in plan.images}
    for item in scan.skipped:
        found.setdefault(item.path, _skipped(item, source))
    return ImageList(
        [found[path] for path in sorted(found, key=lambda path: sort_key(str(path)))],
        options,
        folders,
        len(likeness.looks),
        [(_name(u.path, source), u.reason) for u in scan.unused[:_NAMED_UNUSED]],
    )


@dataclass(frozen=True)
class _Likeness:
    """Hashes and looks of images, and the number of each one's group of equal or similar images."""

    digests: Mapping[Path, str] = field(default_factory=dict)
    looks: Mapping[Path, int] = field(default_factory=dict)
    copies: Mapping[Path, int] = field(default_factory=dict)
    near: Mapping[Path, int] = field(default_factory=dict)


def _compare(
    scan: Scan, derived: Path, own: Path, progress: Progress, engine: Engine, *, copies: bool
) -> tuple[Scan, _Likeness]:
    """Find equal and similar images, and drop those that turn out to be damaged.

    Hashes of files are cached where training caches them; data that only lists need is cached on
    this machine, in `own`.
    """
    records = list({record.path: record for record in scan.records}.values())
    stamps = {record.path: record.stamp for record in records}
    hashes, looks = ContentHashes.kept_in(derived), PerceptualHashes(derived / "looks.json")
    if copies:
        digests = hashes.of(stamps, progress, engine=engine)
        known, faults = looks.of(records, digests, progress, engine)
        _remember_damaged(records, faults, derived, engine)
        scan = scan.without(faults)
    else:
        digests = hashes.known(stamps)
        known = looks.known(digests)
    equal = exact_duplicates(digests)
    twice = {path for group in equal for path in group[1:]}
    compared = {path: look for path, look in known.items() if path not in twice}
    near = _near(compared, own, progress)
    return scan, _Likeness(digests, known, _numbers(equal), _numbers(near))


def _near(looks: Mapping[Path, int], derived: Path, progress: Progress) -> list[list[Path]]:
    """Return groups of images that look alike; cached until an image changes.

    The cache matters because each image is compared with every other.
    """
    rows = sorted((str(path), look) for path, look in looks.items())
    version = [_NEAR_VERSION, hashlib.sha256(canonical(rows).encode("ascii")).hexdigest()]
    known = recall(derived / _NEAR_FILE, version)
    if known is not None:
        return [[Path(path) for path in group] for group in known]
    with progress.stage("Comparing images", len(looks), "images") as advance:
        found = near_duplicates(looks, advance)
    try:
        write_cached(derived / _NEAR_FILE, version, [list(map(str, group)) for group in found])
    except StorageError as error:  # the groups are right nevertheless
        progress.note(f"The next list will compare all images again: {error}")
    return found


def _numbers(groups: Iterable[Sequence[Path]]) -> dict[Path, int]:
    """Return the number of each image's group, counted from 1 in the order of first paths."""
    ordered = sorted(groups, key=lambda group: sort_key(str(group[0])))
    return {path: number for number, group in enumerate(ordered, 1) for path in group}


def _without_damaged(scan: Scan, known: DecodeCache) -> Scan:
    """Return a scan without images that an earlier decoding found damaged."""
    return scan.without(damaged(scan.records, known))


def _remember_damaged(
    records: Sequence[ImageRecord], faults: Sequence[SkippedFile], derived: Path, engine: Engine
) -> None:
    """Record damaged images, so that the next list, which decodes nothing, skips them too."""
    paths = {item.path for item in faults}
    damaged = [record for record in records if record.path in paths]
    if not damaged:
        return
    memory = DecodeCache(derived / "decoded.json")
    executor = engine.executor(Decode())
    for outcomes in executor.run(chunks(damaged, 4)):
        for record, outcome in outcomes:
            memory.add(record, outcome)
    memory.write()


def _used(image: PlannedImage, source: Path, likeness: _Likeness) -> ListedImage:
    record = image.record
    path, caption = record.path, record.fixed_caption
    mask = mask_file(record)
    enlarged = image.resized.width / record.size.width
    return ListedImage(
        path=_name(path, source),
        size_bytes=record.stamp.size_bytes,
        mtime_ns=record.stamp.mtime_ns,
        width=record.size.width,
        height=record.size.height,
        bucket=str(image.bucket),
        resized=image.resized.wh,
        crop=image.crop.ltrb,
        cropped=round(image.cropped_fraction, 4),
        enlarged=round(enlarged, 3) if image.resized.area > record.size.area else 0.0,
        caption=caption,
        tags=len(caption_tags(caption, record.subset.captions.separator)),
        captioned=bool(record.caption_text.strip()),
        copies=likeness.copies.get(path, 0),
        near=likeness.near.get(path, 0),
        mask="" if mask is None else _name(mask, source),
        sha256=likeness.digests.get(path, ""),
    )


def _skipped(item: SkippedFile, source: Path) -> ListedImage:
    stamp = stamp_of(item.path)
    return ListedImage(
        path=_name(item.path, source),
        size_bytes=stamp.size_bytes if stamp else 0,
        mtime_ns=stamp.mtime_ns if stamp else 0,
        skipped=item.reason,
    )


def _name(path: Path, source: Path) -> str:
    """Return the name of a file in a list: relative to `source` if below it, else the whole path.

    Bytes that are not valid text are retained, so that the name still finds the file.
    """
    path, folder = Path(plain(path)), folder_of(source)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()
