"""The pictures of a run as its settings name them: scanned, split and planned. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from impasto import files
from impasto.config.dataset import DatasetConfig, DatasetPart, SubsetConfig
from impasto.config.run import RunConfig, ValidationConfig
from impasto.data.buckets import novelai_bucket_sizes
from impasto.data.captions import CaptionRules
from impasto.data.metadata import read_metadata
from impasto.data.plan import Plan, joined_plans, plan_images
from impasto.data.probing import Sidecars
from impasto.data.records import ImageRecord, Size
from impasto.data.scan import Scan, joined_scans, require_folder, scan_folder, scan_metadata
from impasto.data.subsets import Augmentation, MaskRules, Subset
from impasto.errors import DatasetError, StorageError
from impasto.progress import Progress, counted
from impasto.randomness import derive_rng


def scan_dataset(config: DatasetConfig, progress: Progress | None = None) -> Scan:
    """Scan all subsets of the settings, for training.

    Raises:
        DatasetError: There is nothing usable, or not a single picture has words.
        StorageError: Derived data cannot be written.
    """
    scan = scan_all(config, progress)
    require_usable(scan, config)
    if scan.uncaptioned == len(scan.records):
        raise DatasetError(
            f"None of the {len(scan.records)} pictures in {scan.place} has words. Put a text file "
            f"beside each, with the same name and the ending .txt or .caption (cat.jpg and "
            f"cat.txt), or name a metadata_file."
        )
    return scan


def scan_all(config: DatasetConfig, progress: Progress | None = None) -> Scan:
    """Scan all subsets of the settings, with words or without.

    Raises:
        DatasetError: There is nothing usable.
        StorageError: Derived data cannot be written.
    """
    sources = list(_sources(config))
    for source in sources:
        if source.config.image_dir is not None:
            require_folder(source.config.image_dir)
    _require_place_for_derived_data(config)
    scans = [_scan_subset(source, config.derived_dir, progress) for source in sources]
    return joined_scans(scans)


def require_usable(scan: Scan, config: DatasetConfig) -> None:
    """Stop at pictures that cannot be used, where the settings ask for it.

    Raises:
        DatasetError: `on_error` is `stop`, and something was set aside.
    """
    if config.on_error == "stop" and scan.set_aside:
        first = scan.set_aside[0]
        raise DatasetError(
            f"{counted(len(scan.set_aside), 'files')} cannot be used; the first is {first.path}: "
            f"{first.reason}. Repair or remove them, or set dataset.on_error to skip."
        )


def plan_dataset(config: DatasetConfig, records: Sequence[ImageRecord]) -> Plan:
    """Plan records by the settings of their data sets."""
    plans = []
    for number, part in enumerate(config.parts):
        own = [record for record in records if record.subset.dataset == number]
        if own:
            plans.append(_plan_part(part, own))
    return joined_plans(plans)


@dataclass(frozen=True)
class Survey:
    """What is known of a run's pictures before one of them is decoded.

    Attributes:
        scan: What is there.
        split: What is trained on, and what is held out.
        plan: Where those go that are trained on.
    """

    scan: Scan
    split: Split
    plan: Plan


def survey(config: RunConfig, progress: Progress | None = None) -> Survey:
    """Scan, hold out, and plan.

    Raises:
        DatasetError: There is nothing to train on.
    """
    scan = scan_dataset(config.dataset, progress)
    split = split_records(scan, config.dataset, config.validation, config.seed)
    return Survey(scan, split, plan_dataset(config.dataset, split.training))


@dataclass(frozen=True)
class Split:
    """The records of a run: those to train on, and those held out to validate on."""

    training: list[ImageRecord]
    held_out: list[ImageRecord]


def split_records(
    scan: Scan, dataset: DatasetConfig, validation: ValidationConfig, seed: int
) -> Split:
    """Hold out a share of each data set, or take the folder that is there for it.

    Raises:
        DatasetError: The split leaves nothing to train on.
    """
    if validation.image_dir is not None:
        subset = Subset(root=validation.image_dir)
        own = scan_folder(validation.image_dir, subset=subset)
        return Split(list(scan.records), list(own.records))
    training, held_out = [], []
    for number, part in enumerate(dataset.parts):
        records = [record for record in scan.records if record.subset.dataset == number]
        share = validation.split if part.validation_split is None else part.validation_split
        chosen = _choose(
            records, share, seed if part.validation_seed is None else part.validation_seed
        )
        training += [record for i, record in enumerate(records) if i not in chosen]
        held_out += [_watched(record) for i, record in enumerate(records) if i in chosen]
    if not training:
        raise DatasetError(
            f"Holding out {len(held_out)} of {len(scan.records)} pictures leaves none to train on. "
            f"Lower validation.split."
        )
    return Split(training, held_out)


def _choose(records: Sequence[ImageRecord], share: float, seed: int) -> set[int]:
    """The indices of the records that are held out."""
    count = round(len(records) * share)
    order = derive_rng(seed, "validation-split").permutation(len(records))
    return {int(i) for i in order[:count]}


def _watched(record: ImageRecord) -> ImageRecord:
    """A record that is held out: always the same picture and words."""
    subset = record.subset
    plain = replace(
        subset, flips=False, augmentation=None, masks=None, captions=subset.captions.steady()
    )
    return replace(record, subset=plain)


@dataclass(frozen=True)
class _Source:
    """A subset's settings, and what its pictures will refer to."""

    config: SubsetConfig
    subset: Subset


def _sources(config: DatasetConfig) -> Iterator[_Source]:
    for dataset, part in enumerate(config.parts):
        for number, subset in enumerate(part.subsets):
            if subset.num_repeats == 0:
                continue
            yield _Source(subset, build_subset(subset, dataset, number))


def build_subset(config: SubsetConfig, dataset: int, number: int) -> Subset:
    """What the pictures of a subset refer to."""
    root = config.image_dir or (config.metadata_file or Path()).parent
    varied = Augmentation(config.random_crop, config.color_aug, config.face_crop_aug_range)
    masks = MaskRules(config.alpha_mask, config.mask_dir)
    if config.mask_dir is not None:
        require_folder(config.mask_dir)
    return Subset(
        root=root,
        dataset=dataset,
        number=number,
        repeats=config.num_repeats,
        captions=build_caption_rules(config),
        flips=config.flip_aug,
        flip_safe=config.flip_safe,
        augmentation=None if varied == Augmentation() else varied,
        masks=None if masks == MaskRules() else masks,
        interpolation=config.resize_interpolation,
        reads_npz=config.latents_from_npz,
    )


def build_caption_rules(config: SubsetConfig) -> CaptionRules:
    """What becomes of a subset's captions."""
    return CaptionRules(
        prefix=config.caption_prefix,
        suffix=config.caption_suffix,
        dropout_rate=config.caption_dropout_rate,
        dropout_every_n_epochs=config.caption_dropout_every_n_epochs,
        wildcards=config.enable_wildcard,
        separator=config.caption_separator,
        keep_tokens=config.keep_tokens,
        keep_tokens_separator=config.keep_tokens_separator,
        secondary_separator=config.secondary_separator,
        shuffle=config.shuffle_caption,
        tag_dropout_rate=config.caption_tag_dropout_rate,
        warmup_min=config.token_warmup_min,
        warmup_steps=config.token_warmup_step,
    )


def _scan_subset(source: _Source, derived: Path, progress: Progress | None) -> Scan:
    config, subset = source.config, source.subset
    if config.metadata_file is not None:
        metadata = read_metadata(config.metadata_file)
        index = _index_file(derived, config.metadata_file)
        return scan_metadata(
            metadata, config.image_dir, index=index, progress=progress, subset=subset
        )
    assert config.image_dir is not None  # noqa: S101 - the settings hold one of the two
    ending = config.caption_extension
    sidecars = Sidecars() if ending is None else Sidecars(f".{ending.lstrip('.').lower()}", "")
    return scan_folder(
        config.image_dir,
        recursive=config.recursive,
        index=_index_file(derived, config.image_dir),
        progress=progress,
        subset=subset,
        sidecars=sidecars,
    )


def _index_file(derived: Path, place: Path) -> Path:
    digest = hashlib.sha256(str(place.absolute()).encode("utf-8")).hexdigest()[:8]
    return derived / f"scan-{digest}.json"


def _require_place_for_derived_data(config: DatasetConfig) -> None:
    try:
        files.require_writable(config.derived_dir)
    except StorageError as error:
        raise StorageError(f"{error} dataset.cache_dir names a place for derived data.") from error


def _plan_part(part: DatasetPart, records: Sequence[ImageRecord]) -> Plan:
    return plan_images(
        records,
        Size(*part.width_height),
        enable_bucket=part.enable_bucket,
        min_side=part.min_bucket_reso,
        max_side=part.max_bucket_reso,
        step=part.bucket_reso_steps,
        buckets=_bucket_table(part),
        selection=part.bucket_selection,
        no_upscale=part.bucket_no_upscale,
        as_wanted=part.bucket_table == "metadata" and all(record.wanted for record in records),
    )


def _bucket_table(part: DatasetPart) -> list[Size] | None:
    """The table that is named or given; None means the one made from the resolution."""
    tables = {"novelai": novelai_bucket_sizes()}
    return [Size(*size) for size in part.buckets] or tables.get(part.bucket_table)
