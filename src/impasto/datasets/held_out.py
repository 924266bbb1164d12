"""Which images are held out to validate on, and how they are shown: never one that is trained on.

Regularisation images are neither held out nor counted for the share, also those that come too many.
A byte copy of a held-out image among those trained on would make the validation loss a second
training loss, so copies stay on one side. Only files of equal size are read to find them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from impasto.config.run import RunConfig
from impasto.data.content_hashes import ContentHashes
from impasto.data.engine import LOCAL, Engine
from impasto.data.listing import Sidecars
from impasto.data.record_table import RecordTable, join_records
from impasto.data.records import ImageRecord, SkippedFile
from impasto.data.scan import Scan, no_usable_images, scan_folder
from impasto.data.subsets import Subset
from impasto.errors import DatasetError
from impasto.progress import Progress, SilentProgress
from impasto.randomness import derive_rng

Bools = npt.NDArray[np.bool_]
_AT_ONCE = 1 << 18  # images whose hashes are looked up together
_MOST_NAMED = 10
"""Files that are named one by one; the rest are counted."""


@dataclass(frozen=True)
class Split:
    """The records of a run: those to train on, and those held out to validate on."""

    training: RecordTable
    held_out: RecordTable


def split_records(
    scan: Scan,
    config: RunConfig,
    like: Subset,
    sidecars: Sidecars,
    progress: Progress | None = None,
    engine: Engine = LOCAL,
) -> Split:
    """Hold out a share of each dataset, or take the folder that is there for it.

    Args:
        scan: All images.
        config: The settings.
        like: How images of the folder of validation are used: as those of this subset.
        sidecars: The endings of the files with their words.
        progress: Is told of byte copies.
        engine: Runs what is done.

    Raises:
        DatasetError: The split leaves nothing to train on, or a folder nothing to validate on.
    """
    progress = progress or SilentProgress()
    folder = config.validation.image_dir
    if folder is not None:
        subset = replace(like, root=folder, reads_npz=False)
        own = scan_folder(folder, subset=subset, sidecars=sidecars, engine=engine)
        hashes = _hashes_of(config)
        own_records = _without_copies(own, scan.records, hashes, progress, engine)
        return Split(scan.records, own_records)
    held = _choose(scan.records, config, progress, engine)
    training = scan.records.select(~held) if held.any() else scan.records
    held_out = scan.records.select(held).with_subsets(watched)
    if training.per_use(lambda use: use.subset.is_reg).all():
        raise DatasetError(
            f"Holding out {len(held_out)} of {len(scan.records)} images leaves none to train on. "
            f"Lower validation.split."
        )
    return Split(training, held_out)


def watched(subset: Subset) -> Subset:
    """How the images of a subset are used that are held out: always the same pixels and words."""
    return replace(
        subset, flips=False, augmentation=None, masks=None, captions=subset.captions.steady()
    )


def group_byte_copies(
    records: Sequence[ImageRecord],
    hashes: ContentHashes,
    progress: Progress,
    engine: Engine = LOCAL,
) -> np.ndarray:
    """[images]: the place of an image, the same for those whose files are equal byte for byte.

    A file that cannot be read is like no other.

    Args:
        records: The images; one of two subsets comes twice.
        hashes: Remembers what is in files.
        progress: Where to show how far it is.
        engine: Runs what is done.
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
        places = alike[start : start + _AT_ONCE]
        part = table.select(places)
        stamps = {record.path: record.stamp for record in part}
        found = hashes.of(stamps, progress, tidy=False, engine=engine)
        for place, record in zip(places.tolist(), part, strict=True):
            key = found.get(record.path, str(record.path))
            numbers[place] = known.setdefault(key, place)
    hashes.tidy()
    return numbers[firsts]


def _choose(records: RecordTable, config: RunConfig, progress: Progress, engine: Engine) -> Bools:
    """[images]: which are held out, copies together."""
    shares = _shares(config)
    held = np.zeros(len(records), dtype=np.bool_)
    if not any(fraction for fraction, _ in shares):
        return held
    groups = group_byte_copies(records, _hashes_of(config), progress, engine)
    datasets = records.subset_numbers
    is_reg = records.per_use(lambda use: use.subset.is_reg).astype(np.bool_)
    is_whole = np.array([not fraction for fraction, _ in shares])[datasets]
    decided = np.zeros(len(records), dtype=np.bool_)  # groups of which nothing (more) is held out
    decided[groups[is_reg | is_whole]] = True
    for number, (fraction, seed) in enumerate(shares):
        own = np.flatnonzero((datasets == number) & ~is_reg)
        if fraction:
            room = round(len(own) * fraction) - int(held[own].sum())
            order = derive_rng(seed, "validation-split").permutation(len(own))
            chosen = list(_choose_groups(groups[own[order]], decided, room))
            held |= np.isin(groups, chosen)
        decided[groups[own]] = True
    pictures = int(records.first_of_paths().sum())
    copies = pictures - len(np.unique(groups))
    if copies and held.any():
        progress.note(
            f"{copies} of {pictures} images are byte copies of others; copies are held out "
            f"together or not at all."
        )
    return held


def _shares(config: RunConfig) -> list[tuple[float, int]]:
    """The share that is held out of each dataset, and the seed that chooses."""
    return [
        (
            config.validation.split if part.validation_split is None else part.validation_split,
            config.seed if part.validation_seed is None else part.validation_seed,
        )
        for part in config.dataset.parts
    ]


def _choose_groups(order: np.ndarray, decided: Bools, room: int) -> Iterator[int]:
    """The groups that are held out: in this order, while there is room for all of one.

    Where there is room for none, the smallest group is taken all the same, if others are left.

    Args:
        order: The group of each image, in random order.
        decided: [groups]: whether nothing of a group may be held out.
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


def _without_copies(
    own: Scan,
    training: RecordTable,
    hashes: ContentHashes,
    progress: Progress,
    engine: Engine,
) -> RecordTable:
    """The images of the folder of validation that are not trained on.

    Raises:
        DatasetError: There are none.
    """
    groups = group_byte_copies(join_records([training, own.records]), hashes, progress, engine)
    of_training, of_own = groups[: len(training)], groups[len(training) :]
    is_copy = np.isin(of_own, of_training)
    copies = []
    for place in np.flatnonzero(is_copy).tolist():
        last = training[int(np.flatnonzero(of_training == of_own[place])[-1])]
        reason = f"a byte copy of {last.path}, which is trained on"
        copies.append(SkippedFile(own.records[place].path, reason))
    held_out = own.records.select(~is_copy).with_subsets(watched)
    passed_over = [*own.set_aside, *copies]
    for item in passed_over[:_MOST_NAMED]:
        progress.note(f"Not validated on: {item.path}: {item.reason}")
    if len(passed_over) > _MOST_NAMED:
        progress.note(f"... and {len(passed_over) - _MOST_NAMED} more that are not validated on")
    for line in own.describe_unused():
        progress.note(line)
    if not own.records:
        raise DatasetError(no_usable_images(own.place, own.set_aside, own.unused))
    if not held_out:
        raise DatasetError(
            f"Every image in {own.place} is trained on too, byte for byte, so a loss on it "
            f"says nothing new. Give validation.image_dir other images, or hold "
            f"some out with validation.split."
        )
    return held_out


def _hashes_of(config: RunConfig) -> ContentHashes:
    return ContentHashes.kept_in(config.dataset.derived_dir)
