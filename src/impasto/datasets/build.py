"""Scans, splits and plans the images that a run's settings name. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from impasto.config.dataset import DatasetConfig, DatasetEntry
from impasto.data.engines.engine import LOCAL, Engine
from impasto.data.planning.buckets import novelai_bucket_sizes
from impasto.data.planning.plan import BucketRules, Plan, join_plans, plan_images
from impasto.data.planning.regularisation import Balance, balance, count_balance
from impasto.data.record_columns import lean
from impasto.data.record_table import RecordTable
from impasto.data.records import ImageRecord, Size
from impasto.data.scanning.scan import Scan, decode_all, join_scans
from impasto.datasets.engines import open_engine
from impasto.datasets.held_out import (
    Split,
    scan_validation,
    split_records,
    without_augmentation,
)
from impasto.datasets.sources import (
    build_subset,
    columns_of,
    require_sources,
    scan_source,
    sidecars_of,
)
from impasto.errors import DatasetError
from impasto.member_paths import folder_of
from impasto.progress import Progress, counted, none_of
from impasto.remote_paths import shown

if TYPE_CHECKING:
    from impasto.config.run import RunConfig
    from impasto.data.containers.containers import Columns
    from impasto.data.folders.listing import Sidecars
    from impasto.data.subsets import Subset


def scan_dataset(config: DatasetConfig, progress: Progress | None = None) -> Scan:
    """Scan all subsets of a dataset for training.

    Raises:
        DatasetError: There are no usable images, or none of them has a caption.
        StorageError: Derived data cannot be written.
    """
    scan = scan_all(config, progress)
    require_usable(scan, config)
    if scan.uncaptioned_count == len(scan.records):
        raise DatasetError(
            f"{none_of(len(scan.records), 'images')} in {scan.source} has a caption. Put a text "
            f"file beside each, with the same name and the extension .txt or .caption (cat.jpg and "
            "cat.txt) or that of caption_extension, name a metadata_file, or set class_tokens as "
            "the caption of all of them."
        )
    return scan


def scan_all(config: DatasetConfig, progress: Progress | None = None) -> Scan:
    """Scan all subsets of a dataset, whether or not the images have captions.

    Raises:
        DatasetError: There are no usable images.
        StorageError: Derived data cannot be written.
    """
    sources = require_sources(config)
    with open_engine(config, progress) as engine:
        scans = [scan_source(source, config.derived_dir, progress, engine) for source in sources]
    joined = join_scans(scans)
    own = {_absolute(s.config.image_dir) for s in sources if s.config.image_dir is not None}
    unused = tuple(item for item in joined.unused if _absolute(item.path) not in own)
    records = _with_agreed_buckets(config, joined.records, progress)
    return replace(joined, records=records, unused=unused)


def _with_agreed_buckets(
    config: DatasetConfig, records: RecordTable, progress: Progress | None
) -> RecordTable:
    """Drop the buckets that metadata names for datasets in which some image has none.

    This is decided for a whole dataset, since training and held-out images are planned separately
    but must use the same buckets. A note reports the dropped buckets.
    """
    if "wanted" not in records.numbers:
        return records
    wanted = records.column("wanted")
    for number, entry in enumerate(config.entries):
        rows = np.flatnonzero(records.subset_numbers == number)
        missing = int((wanted[rows, 0] == 0).sum())
        if entry.bucket_table != "metadata" or missing == len(rows):
            continue
        if not missing:
            _tell_overridden(entry, len(rows), progress)
            continue
        wanted = wanted.copy()
        wanted[rows] = 0
        if progress is not None:
            progress.note(
                f"{missing:,} of {counted(len(rows), 'images')} have no train_resolution in their "
                f'metadata, so bucket_table = "metadata" is ignored: all of them get buckets made '
                f"from the resolution."
            )
    numbers = lean({**records.numbers, "wanted": wanted})
    return RecordTable(
        records.texts, records.rows, numbers, records.uses, distinct=records.is_distinct
    )


def _tell_overridden(entry: DatasetEntry, images: int, progress: Progress | None) -> None:
    """Note which bucket settings have no effect because metadata names the buckets.

    sd-scripts ignores these settings in that case too.
    """
    asked = {
        "enable_bucket = false": not entry.enable_bucket,
        "bucket_no_upscale": entry.bucket_no_upscale,
    }
    ignored = [name for name, is_given in asked.items() if is_given]
    if ignored and progress is not None:
        progress.note(
            f"The metadata of {counted(images, 'images')} names a bucket for each (bucket_table = "
            f'"metadata"), so {" and ".join(ignored)} {"have" if len(ignored) > 1 else "has"} no '
            f"effect."
        )


def decode_scanned(config: DatasetConfig, scan: Scan, progress: Progress | None = None) -> Scan:
    """Decode the images that were not decoded before, and skip damaged ones.

    Every command that only inspects a dataset then shows the same counts; caching and training
    decode the images anyway.

    Raises:
        DatasetError: There are no usable images.
        StorageError: Derived data cannot be written.
    """
    with open_engine(config, progress) as engine:
        memory = config.derived_dir / "decoded.json"
        return decode_all(scan, progress, memory=memory, engine=engine)


def _absolute(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - compared as text


def require_usable(scan: Scan, config: DatasetConfig) -> None:
    """Raise an error if any file was skipped and `on_error` is `stop`.

    Raises:
        DatasetError: `on_error` is `stop`, and a file was skipped.
    """
    if config.on_error == "stop" and scan.skipped:
        first = scan.skipped[0]
        raise DatasetError(
            f"{counted(len(scan.skipped), 'files')} cannot be used; the first is "
            f"{shown(first.path)}: {first.reason}. Repair or remove them, or set dataset.on_error "
            f"to skip."
        )


def plan_dataset(config: DatasetConfig, records: Sequence[ImageRecord]) -> Plan:
    """Plan records with the settings of their datasets: a bucket and a crop for each image."""
    plans, table = [], RecordTable.of(records)
    numbers = table.subset_numbers
    for number, entry in enumerate(config.entries):
        rows = np.flatnonzero(numbers == number)
        if len(rows):
            own = table if len(rows) == len(table) else table.select(rows)
            plans.append(_plan_entry(entry, own))
    return join_plans(plans)


@dataclass(frozen=True)
class Survey:
    """A run's images after scanning, splitting and planning, before they are encoded.

    Attributes:
        scan: All images found, and the files that were skipped.
        split: Training images and held-out images.
        plan: Buckets and crops of the training images, with as many regularisation images as
            balance them.
    """

    scan: Scan
    split: Split
    plan: Plan

    @property
    def balance(self) -> Balance | None:
        """The balance of regularisation and training images; None without regularisation."""
        return balance_of(self.split.training, self.plan)


def survey(config: RunConfig, progress: Progress | None = None, *, decode: bool = False) -> Survey:
    """Scan a run's images, hold some out for validation, and plan the rest.

    Args:
        config: The settings of a run.
        progress: Shows progress and notes.
        decode: Decode all images now to find damaged ones. Training leaves this False: it finds
            them when it encodes its images, so it holds out the same images whenever it is started.

    Raises:
        DatasetError: There are no images to train on.
    """
    with open_engine(config.dataset, progress, validation_folders(config)) as engine:
        scan = scan_dataset(config.dataset, progress)
        if decode:
            scan = decode_scanned(config.dataset, scan, progress)
            require_usable(scan, config.dataset)
        split = hold_out(scan, config, progress, engine)
    found = Survey(scan, split, plan_dataset(config.dataset, balance(split.training)))
    told = found.balance
    if progress is not None and told is not None and told.used < told.images:
        progress.note(
            f"{counted(told.images - told.used, 'regularisation images')} of {told.images:,} are "
            f"not used: the others are shown as often as the training images, which is "
            f"{told.trained:,} times per epoch."
        )
    return found


def validation_folders(config: RunConfig) -> list[Path]:
    """Return the folders that a run reads images from in addition to those of its dataset."""
    return [] if config.validation.image_dir is None else [folder_of(config.validation.image_dir)]


def hold_out(
    scan: Scan, config: RunConfig, progress: Progress | None = None, engine: Engine = LOCAL
) -> Split:
    """Split the images into those a run trains on and those it validates on.

    Args:
        scan: All images.
        config: The settings of the run.
        progress: Receives notes about copies.
        engine: Runs the work on files.

    Raises:
        DatasetError: As `split_records`.
    """
    like, text_sources = _of_first(config.dataset)
    return split_records(scan, config, like, text_sources, progress, engine)


def scan_of_validation(scan: Scan, config: RunConfig, engine: Engine = LOCAL) -> Scan:
    """Return all images that a run may validate on, with augmentation off.

    They are those of the validation folder if the settings name one, else all images of the
    dataset. Copies are not searched for, so only headers and captions are read.

    Args:
        scan: The images of the dataset.
        config: The settings of the run.
        engine: Runs the work on files.
    """
    folder = config.validation.image_dir
    found = scan if folder is None else scan_validation(folder, *_of_first(config.dataset), engine)
    return replace(found, records=found.records.with_subsets(without_augmentation))


def _of_first(config: DatasetConfig) -> tuple[Subset, tuple[Sidecars, Columns]]:
    """Return the first subset that is not for regularisation, and its caption files and columns."""
    subsets = config.entries[0].subsets
    first = next((subset for subset in subsets if not subset.is_reg), subsets[0])
    return build_subset(first, 0, 0), (sidecars_of(first), columns_of(first))


def split_of_source(
    scan: Scan, run: RunConfig | None, config: DatasetConfig, progress: Progress | None = None
) -> Split:
    """Split the images of a source; without settings of a run, nothing is held out.

    A separate folder of validation images takes no images from the dataset, and is not read here.

    Args:
        scan: All images.
        run: The settings of a run, or None for a dataset alone.
        config: The settings of the dataset, with the command line's changes.
        progress: Receives notes about copies.

    Raises:
        DatasetError: As `split_records`.
    """
    if run is None or run.validation.image_dir is not None:
        return Split(scan.records, scan.records[:0])
    with open_engine(config, progress) as engine:
        return hold_out(scan, run.model_copy(update={"dataset": config}), progress, engine)


def balance_of(records: Sequence[ImageRecord], plan: Plan) -> Balance | None:
    """Return the balance of regularisation images of `records` in a plan; None if there is none."""
    return count_balance(records, plan.table.records)


def _plan_entry(entry: DatasetEntry, records: RecordTable) -> Plan:
    return plan_images(
        records,
        Size(*entry.width_height),
        rules=BucketRules(
            enable_bucket=entry.enable_bucket,
            min_side=entry.min_bucket_reso,
            max_side=entry.max_bucket_reso,
            step=entry.bucket_reso_steps,
            buckets=_bucket_table(entry),
            selection=entry.bucket_selection,
            no_upscale=entry.bucket_no_upscale,
            as_requested=entry.bucket_table == "metadata"
            and bool(records.column("wanted")[:, 0].any()),
        ),
    )


def _bucket_table(entry: DatasetEntry) -> list[Size] | None:
    """Return the bucket sizes that are listed or named; None if they follow from the resolution."""
    tables = {"novelai": novelai_bucket_sizes()}
    return [Size(*size) for size in entry.buckets] or tables.get(entry.bucket_table)
