"""Chooses the images held out for validation, none of which is trained on.

Regularisation images are neither held out nor counted for the fraction, nor are surplus ones. A
copy of a held-out image among the training images would turn the validation loss into a second
training loss, so copies stay on one side: equal files, and images that look the same (`copies.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from impasto.data.containers.containers import Columns
from impasto.data.engines.engine import LOCAL, Engine
from impasto.data.folders.listing import Sidecars
from impasto.data.record_table import RecordTable, join_records
from impasto.data.records import SkippedFile
from impasto.data.scanning.scan import Scan, no_usable_images, scan_folder
from impasto.data.subsets import Subset
from impasto.datasets.copies import NO_COPIES, Copies, count_copies, describe, group_copies
from impasto.errors import DatasetError
from impasto.member_paths import folder_of
from impasto.progress import Progress, SilentProgress
from impasto.randomness import derive_rng
from impasto.remote_paths import shown

if TYPE_CHECKING:
    from impasto.config.run import RunConfig

Bools = npt.NDArray[np.bool_]
_MOST_NAMED = 10
"""Most files that are named one by one; the rest are counted."""


@dataclass(frozen=True)
class Split:
    """The records of a run: those to train on, and those held out for validation.

    Attributes:
        training: Records to train on.
        held_out: Records to validate on.
        alike: Held-out images with copies among the held-out ones -> a group number that copies
            share.
        copies: The copies counted in the whole dataset.
    """

    training: RecordTable
    held_out: RecordTable
    alike: Mapping[Path, int] = field(default_factory=dict)
    copies: Copies = NO_COPIES


def split_records(
    scan: Scan,
    config: RunConfig,
    like: Subset,
    text_sources: tuple[Sidecars, Columns],
    progress: Progress | None = None,
    engine: Engine = LOCAL,
) -> Split:
    """Hold out a fraction of each dataset, or use the separate validation folder.

    Args:
        scan: All images.
        config: The settings.
        like: The subset whose settings apply to images of the validation folder.
        text_sources: The extensions of caption files, and the column names of tables.
        progress: Receives notes about copies.
        engine: Runs the work on files.

    Raises:
        DatasetError: The split leaves no images to train on, or the folder has none to validate on.
    """
    progress = progress or SilentProgress()
    folder = config.validation.image_dir
    if folder is not None:
        own = scan_validation(folder, like, text_sources, engine)
        return _beside_folder(scan.records, own, config, progress, engine)
    held, alike, copies = _held_out(scan.records, config, progress, engine)
    training = scan.records.select(~held) if held.any() else scan.records
    held_out = scan.records.select(held).with_subsets(without_augmentation)
    if training.per_use(lambda use: use.subset.is_reg).all():
        raise DatasetError(
            f"Holding out {len(held_out)} of {len(scan.records)} images leaves none to train on. "
            f"Lower validation.split."
        )
    return Split(training, held_out, alike, copies)


def scan_validation(
    folder: Path, like: Subset, text_sources: tuple[Sidecars, Columns], engine: Engine = LOCAL
) -> Scan:
    """Scan the images of the validation folder, including copies of training images.

    Args:
        folder: The folder.
        like: The subset whose settings apply to the images.
        text_sources: The extensions of caption files, and the column names of tables.
        engine: Runs the work on files.
    """
    subset = replace(like, root=folder_of(folder), reads_npz=False)
    sidecars, columns = text_sources
    return scan_folder(folder, subset=subset, sidecars=sidecars, columns=columns, engine=engine)


def without_augmentation(subset: Subset) -> Subset:
    """Return a subset's settings for held-out images: always the same pixels and caption."""
    return replace(
        subset, flips=False, augmentation=None, masks=None, captions=subset.captions.steady()
    )


def _held_out(
    records: RecordTable, config: RunConfig, progress: Progress, engine: Engine
) -> tuple[Bools, dict[Path, int], Copies]:
    """Choose the images to hold out by the fractions in the settings.

    Returns:
        [images]: which are held out; groups of copies among the held-out images; the copies counted
        in the whole dataset.
    """
    fractions, near = _fractions(config), config.validation.copies == "near"
    if not any(fraction for fraction, _ in fractions):
        return np.zeros(len(records), dtype=np.bool_), {}, NO_COPIES
    derived = config.dataset.derived_dir
    groups = group_copies(records, derived, progress, near=near, engine=engine)
    held = _choose(records, groups, fractions)
    copies = count_copies(groups, records, near=near)
    if copies.images and held.any():
        progress.note(describe(copies, int(records.first_of_paths().sum())))
    if message := _unlike_asked(int(held.sum()), _asked(records, fractions), copies):
        progress.note(message)
    return held, _alike(records.select(held), groups[held]), copies


def _asked(records: RecordTable, fractions: list[tuple[float, int]]) -> int:
    """Return how many images the fractions amount to; regularisation images are not counted."""
    is_reg = records.per_use(lambda use: use.subset.is_reg).astype(np.bool_)
    own = np.bincount(records.subset_numbers[~is_reg], minlength=len(fractions)).tolist()
    return sum(round(n * fraction) for n, (fraction, _) in zip(own, fractions, strict=True))


def _unlike_asked(held: int, asked: int, copies: Copies) -> str:
    """Return a note if no image is held out, or too many; else an empty string."""
    by_bytes = ' Or set validation.copies = "bytes", by which only equal files are copies.'
    remedy = f"Set validation.image_dir to other images.{by_bytes if copies.near else ''}"
    if held > asked:
        return (
            f"{held:,} images are held out, {held - asked:,} more than validation.split requests: "
            f"copies are held out together or not at all."
        )
    if held:
        return ""
    why = "all images are copies of one another, or of images that may not be held out"
    if not asked:
        why, remedy = "the fraction is less than half an image", "Raise validation.split."
    elif copies.near:
        why += "; images that look the same count as copies"
    return (
        f"No image is held out, although validation.split is set: {why}. So there is no "
        f"validation, and no best model is kept. {remedy}"
    )


def _choose(records: RecordTable, groups: np.ndarray, fractions: list[tuple[float, int]]) -> Bools:
    """Return [images]: which are held out; all images of a group are, or none."""
    held = np.zeros(len(records), dtype=np.bool_)
    datasets = records.subset_numbers
    is_reg = records.per_use(lambda use: use.subset.is_reg).astype(np.bool_)
    is_whole = np.array([not fraction for fraction, _ in fractions])[datasets]
    decided = np.zeros(len(records), dtype=np.bool_)  # groups of which no more is held out
    decided[groups[is_reg | is_whole]] = True
    for number, (fraction, seed) in enumerate(fractions):
        own = np.flatnonzero((datasets == number) & ~is_reg)
        if fraction:
            room = round(len(own) * fraction) - int(held[own].sum())
            order = derive_rng(seed, "validation-split").permutation(len(own))
            chosen = list(_choose_groups(groups[own[order]], decided, room))
            held |= np.isin(groups, chosen)
        decided[groups[own]] = True
    return held


def _alike(held_out: RecordTable, groups: np.ndarray) -> dict[Path, int]:
    """Map held-out images with copies among the held-out ones to the number of their group."""
    labels, counts = np.unique(groups, return_counts=True)
    several = set(labels[counts > 1].tolist())
    indices = [index for index, group in enumerate(groups.tolist()) if group in several]
    return {held_out[index].path: int(groups[index]) for index in indices}


def _fractions(config: RunConfig) -> list[tuple[float, int]]:
    """Return, per dataset, the fraction to hold out and the seed of the choice."""
    return [
        (
            config.validation.split if entry.validation_split is None else entry.validation_split,
            config.seed if entry.validation_seed is None else entry.validation_seed,
        )
        for entry in config.dataset.entries
    ]


def _choose_groups(order: np.ndarray, decided: Bools, room: int) -> Iterator[int]:
    """Yield the groups to hold out: in random order, while a whole group still fits.

    If none fits, the smallest one is taken nevertheless, unless it is the only group.

    Args:
        order: The group of each image, in random order.
        decided: [groups]: whether the group may not be held out.
        room: How many images may be held out.
    """
    groups, firsts, counts = np.unique(order, return_index=True, return_counts=True)
    in_order = np.argsort(firsts)
    open_to = in_order[~decided[groups[in_order]]]
    fitting = 0
    for group, count in zip(groups[open_to].tolist(), counts[open_to].tolist(), strict=True):
        if room <= 0:
            return
        if count <= room:
            room -= count
            fitting += 1
            yield group
    if room > 0 and not fitting and len(groups) > 1 and len(open_to):
        smallest = set(groups[open_to[counts[open_to] == counts[open_to].min()]].tolist())
        yield next(group for group in order[::-1].tolist() if group in smallest)


def _beside_folder(
    training: RecordTable, own: Scan, config: RunConfig, progress: Progress, engine: Engine
) -> Split:
    """Split into training images, and images of the validation folder that are not copies.

    Raises:
        DatasetError: The folder has no such images.
    """
    together = join_records([training, own.records])
    near = config.validation.copies == "near"
    derived = config.dataset.derived_dir
    groups = group_copies(together, derived, progress, near=near, engine=engine)
    of_training, of_own = groups[: len(training)], groups[len(training) :]
    is_copy = np.isin(of_own, of_training)
    copies = count_copies(groups, together, near=near)
    kind = "a copy of" if copies.near else "a byte copy of"
    found = []
    for index in np.flatnonzero(is_copy).tolist():
        last = training[int(np.flatnonzero(of_training == of_own[index])[-1])]
        reason = f"{kind} {shown(last.path)}, which is trained on"
        found.append(SkippedFile(own.records[index].path, reason))
    held_out = own.records.select(~is_copy).with_subsets(without_augmentation)
    _tell_unused(own, found, progress)
    if not own.records:
        raise DatasetError(no_usable_images(own.source, own.skipped, own.unused))
    if not held_out:
        other = ' validation.copies = "bytes" admits images that only look the same.'
        raise DatasetError(
            f"Every image in {own.source} is trained on too, or a copy of one that is, so its loss "
            f"would be a training loss. Set validation.image_dir to a folder of other images, or "
            f"hold some out with validation.split.{other if copies.near else ''}"
        )
    return Split(training, held_out, _alike(held_out, of_own[~is_copy]), copies)


def _tell_unused(own: Scan, copies: list[SkippedFile], progress: Progress) -> None:
    passed_over = [*own.skipped, *copies]
    for item in passed_over[:_MOST_NAMED]:
        progress.note(f"Not validated on: {shown(item.path)}: {item.reason}")
    if len(passed_over) > _MOST_NAMED:
        progress.note(f"... and {len(passed_over) - _MOST_NAMED} more that are not validated on")
    for line in own.describe_unused():
        progress.note(line)
