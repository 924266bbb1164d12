"""Finds the images of a dataset, subset by subset, as its settings name them.

Settings become the plain rules that records refer to here; `build.py` scans, splits and plans.
Imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from impasto import files, temporary_names
from impasto.config.dataset import DatasetConfig, SubsetConfig
from impasto.data.captions import CaptionRules
from impasto.data.containers.containers import Columns, holds_containers
from impasto.data.engines.engine import Engine
from impasto.data.folders.listing import Sidecars
from impasto.data.folders.metadata import read_metadata
from impasto.data.scanning.image_locations import require_folder, require_images
from impasto.data.scanning.scan import Scan, scan_folder, scan_metadata
from impasto.data.subsets import Augmentation, MaskRules, Subset
from impasto.errors import DatasetError, StorageError
from impasto.member_paths import folder_of
from impasto.parsing import is_text, printable
from impasto.progress import Progress
from impasto.remote_paths import absolute, is_remote
from impasto.storage import objects


@dataclass(frozen=True)
class Source:
    """The settings of a subset, and the plain rules that its records refer to."""

    config: SubsetConfig
    subset: Subset


def require_sources(config: DatasetConfig) -> list[Source]:
    """Return the subsets of the settings, after checking that their folders exist.

    Checks too that derived data can be written. Subsets with no repeats are left out.

    Raises:
        DatasetError: A folder is missing or has no images, or a column is set that cannot be used.
        StorageError: Derived data cannot be written.
    """
    sources = list(_sources(config))
    for source in sources:
        _require_names_as_text(source.config, config.cache_dir)
        if source.config.image_dir is not None:
            require_images(source.config.image_dir)
    _require_columns_used([source.config for source in sources])
    _require_room_for_derived_data(config)
    return sources


def _sources(config: DatasetConfig) -> Iterator[Source]:
    for dataset, entry in enumerate(config.entries):
        for number, subset in enumerate(entry.subsets):
            if subset.num_repeats == 0:
                continue
            weight = subset.loss_weight * (entry.prior_loss_weight if subset.is_reg else 1.0)
            yield Source(subset, replace(build_subset(subset, dataset, number), loss_weight=weight))


def build_subset(config: SubsetConfig, dataset: int, number: int) -> Subset:
    """Build the rules for a subset's images; the loss weight stays 1, and callers set it."""
    root = folder_of(config.image_dir or (config.metadata_file or Path()).parent)
    varied = Augmentation(config.random_crop, config.color_aug, config.face_crop_aug_range)
    masks = MaskRules(config.alpha_mask, config.mask_dir)
    if config.mask_dir is not None:
        require_folder(config.mask_dir, "folder of masks")
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
        class_tokens=config.class_tokens or "",
        is_reg=config.is_reg,
    )


def build_caption_rules(config: SubsetConfig) -> CaptionRules:
    """Build the rules by which a subset's captions are changed."""
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


def scan_source(source: Source, derived: Path, progress: Progress | None, engine: Engine) -> Scan:
    """Scan the images of a subset, in a folder or as its metadata lists them.

    Args:
        source: The subset.
        derived: The folder that the scan's index is stored in.
        progress: Shows progress.
        engine: Runs the work of opening files.

    Raises:
        DatasetError: There are no usable images.
        StorageError: Derived data cannot be written.
    """
    config, subset = source.config, source.subset
    if config.metadata_file is not None:
        metadata = read_metadata(config.metadata_file)
        index = _index_file(derived, config.metadata_file)
        return scan_metadata(
            metadata,
            config.image_dir,
            index=index,
            progress=progress,
            subset=subset,
            columns=columns_of(config),
            engine=engine,
        )
    assert config.image_dir is not None  # noqa: S101 - the settings hold one of the two
    return scan_folder(
        config.image_dir,
        recursive=config.recursive,
        index=_index_file(derived, config.image_dir),
        progress=progress,
        subset=subset,
        sidecars=sidecars_of(config),
        columns=columns_of(config),
        engine=engine,
    )


def _require_names_as_text(config: SubsetConfig, *others: Path | None) -> None:
    """Check that paths are valid UTF-8, since they are written into settings and indexes.

    The whole absolute path is checked, folders above included.

    Raises:
        DatasetError: A path is not UTF-8.
    """
    for path in (config.image_dir, config.metadata_file, config.mask_dir, *others):
        if path is not None and not is_text(str(absolute(path))):
            raise DatasetError(
                f"The name of {printable(str(absolute(path)))} is not UTF-8, as happens after "
                f"unpacking a zip from another system. Rename it."
            )


def sidecars_of(config: SubsetConfig) -> Sidecars:
    """Return the extensions of a subset's caption files."""
    ending = config.caption_extension
    return Sidecars() if ending is None else Sidecars(f".{ending.lstrip('.')}", "")


def columns_of(config: SubsetConfig) -> Columns:
    """Return the columns of tables that hold a subset's images and captions."""
    return Columns(config.image_column, config.caption_column)


def _require_columns_used(subsets: Sequence[SubsetConfig]) -> None:
    """Check that columns are only set if there are tables; an object store is not checked.

    Raises:
        DatasetError: All images are plain files, outside of tables and tars.
    """
    if all(columns_of(subset) == Columns() for subset in subsets):
        return
    locations = [s.image_dir or (s.metadata_file or Path()).parent for s in subsets]
    for location, subset in zip(locations, subsets, strict=True):
        if is_remote(location) or holds_containers(location, masks=subset.mask_dir):
            return  # also in sub-folders that are not scanned: the scan reports those
    raise DatasetError(
        f"image_column and caption_column name columns of Parquet or Arrow tables, and keys of "
        f"JSON in tars; {locations[0]} has none of these. Remove them."
    )


def _index_file(derived: Path, location: Path) -> Path:
    digest = hashlib.sha256(str(absolute(location)).encode("utf-8")).hexdigest()[:8]
    return derived / f"scan-{digest}.json"


def _require_room_for_derived_data(config: DatasetConfig) -> None:
    if is_remote(config.derived_dir):
        if files.writes_caches():
            objects.require_writable(config.derived_dir)
        return
    try:
        files.require_writable(config.derived_dir)
        if files.writes_caches():
            temporary_names.remove_leftovers(config.derived_dir)  # left by a killed scan
    except StorageError as error:
        raise StorageError(
            f"{error} Set dataset.cache_dir (--cache-dir on a command line) to a writable folder."
        ) from error
