"""The pictures of a run as its settings name them: scanned, split and planned. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from impasto import files
from impasto.config.dataset import DatasetConfig
from impasto.config.run import ValidationConfig
from impasto.data.buckets import novelai_bucket_sizes
from impasto.data.plan import Plan, plan_images
from impasto.data.records import ImageRecord, Size
from impasto.data.scan import Scan, scan_folder
from impasto.errors import DatasetError, StorageError
from impasto.progress import Progress
from impasto.randomness import derive_rng


def scan_dataset(config: DatasetConfig, progress: Progress | None = None) -> Scan:
    """Scan the data set of the settings.

    Raises:
        DatasetError: There is nothing usable, or not a single picture has words.
        StorageError: Derived data cannot be written.
    """
    if config.image_dir.is_dir():
        _require_place_for_derived_data(config)
    index = config.derived_dir / "scan.json"
    scan = scan_folder(config.image_dir, recursive=config.recursive, index=index, progress=progress)
    if scan.uncaptioned == len(scan.records):
        raise DatasetError(
            f"None of the {len(scan.records)} pictures in {config.image_dir} has words. Put a "
            f"text file beside each, with the same name and the ending .txt or .caption "
            f"(cat.jpg and cat.txt)."
        )
    return scan


def _require_place_for_derived_data(config: DatasetConfig) -> None:
    try:
        files.require_writable(config.derived_dir)
    except StorageError as error:
        raise StorageError(f"{error} dataset.cache_dir names a place for derived data.") from error


def plan_dataset(config: DatasetConfig, records: Sequence[ImageRecord]) -> Plan:
    """Plan records by the settings of the data set."""
    return plan_images(
        records,
        Size(*config.width_height),
        enable_bucket=config.enable_bucket,
        min_side=config.min_bucket_reso,
        max_side=config.max_bucket_reso,
        step=config.bucket_reso_steps,
        buckets=_bucket_table(config),
        selection=config.bucket_selection,
        no_upscale=config.bucket_no_upscale,
    )


def _bucket_table(config: DatasetConfig) -> list[Size] | None:
    """The table that is named or given; None means the one made from the resolution."""
    tables = {"novelai": novelai_bucket_sizes()}
    return [Size(*size) for size in config.buckets] or tables.get(config.bucket_table)


def held_out_records(
    scan: Scan, config: ValidationConfig, seed: int
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """Split the records into those to train on and those to validate on.

    Raises:
        DatasetError: The split leaves nothing to train on.
    """
    records = list(scan.records)
    if config.image_dir is not None:
        return records, list(scan_folder(config.image_dir).records)
    count = round(len(records) * config.split)
    if count == len(records):
        raise DatasetError(
            f"validation.split {config.split} of {len(records)} pictures leaves none to train on."
        )
    chosen = set(derive_rng(seed, "validation-split").permutation(len(records))[:count].tolist())
    training = [record for i, record in enumerate(records) if i not in chosen]
    return training, [records[i] for i in sorted(chosen)]
