"""Which images are held out to validate on, and how they are shown: never one that is trained on.

Regularisation images are neither held out nor counted for the share, also those that come too many.
A byte copy of a held-out image among those trained on would make the validation loss a second
training loss, so copies stay on one side. Only files of equal size are read to find them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from impasto.config.run import RunConfig
from impasto.data.content_hashes import ContentHashes
from impasto.data.listing import Sidecars
from impasto.data.records import ImageRecord, SkippedFile
from impasto.data.scan import Scan, no_usable_images, scan_folder
from impasto.data.subsets import Subset
from impasto.errors import DatasetError
from impasto.progress import Progress, SilentProgress
from impasto.randomness import derive_rng

_MOST_NAMED = 10
"""Files that are named one by one; the rest are counted."""


@dataclass(frozen=True)
class Split:
    """The records of a run: those to train on, and those held out to validate on."""

    training: list[ImageRecord]
    held_out: list[ImageRecord]


def split_records(
    scan: Scan,
    config: RunConfig,
    like: Subset,
    sidecars: Sidecars,
    progress: Progress | None = None,
) -> Split:
    """Hold out a share of each dataset, or take the folder that is there for it.

    Args:
        scan: All images.
        config: The settings.
        like: How images of the folder of validation are used: as those of this subset.
        sidecars: The endings of the files with their words.
        progress: Is told of byte copies.

    Raises:
        DatasetError: The split leaves nothing to train on, or a folder nothing to validate on.
    """
    progress = progress or SilentProgress()
    folder = config.validation.image_dir
    if folder is not None:
        subset = replace(like, root=folder, reads_npz=False)
        own = scan_folder(folder, subset=subset, sidecars=sidecars)
        hashes = _hashes_of(config)
        return Split(list(scan.records), _without_copies(own, scan.records, hashes, progress))
    held = _choose(scan.records, config, progress)
    training = [record for i, record in enumerate(scan.records) if i not in held]
    held_out = [watched(record) for i, record in enumerate(scan.records) if i in held]
    if all(record.subset.is_reg for record in training):
        raise DatasetError(
            f"Holding out {len(held_out)} of {len(scan.records)} images leaves none to train on. "
            f"Lower validation.split."
        )
    return Split(training, held_out)


def watched(record: ImageRecord) -> ImageRecord:
    """A record that is held out: always the same image and words."""
    subset = record.subset
    plain = replace(
        subset, flips=False, augmentation=None, masks=None, captions=subset.captions.steady()
    )
    return replace(record, subset=plain)


def group_byte_copies(
    records: Sequence[ImageRecord], hashes: ContentHashes, progress: Progress
) -> list[int]:
    """A number for each record, the same for those whose files are equal byte for byte.

    A file that cannot be read is like no other.

    Args:
        records: The images; one of two subsets comes twice.
        hashes: Remembers what is in files.
        progress: Where to show how far it is.
    """
    stamps = {record.path: record.stamp for record in records}
    sizes = Counter(stamp.size_bytes for stamp in stamps.values())
    alike = {path: stamp for path, stamp in stamps.items() if sizes[stamp.size_bytes] > 1}
    found = hashes.of(alike, progress) if alike else {}
    numbers: dict[str, int] = {}
    keys = [found.get(record.path, str(record.path)) for record in records]
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _choose(records: Sequence[ImageRecord], config: RunConfig, progress: Progress) -> set[int]:
    """The indices of the records that are held out, copies together."""
    shares = _shares(config)
    if not any(fraction for fraction, _ in shares):
        return set()
    groups = group_byte_copies(records, _hashes_of(config), progress)
    members: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    decided = {  # groups of which nothing may be held out, or nothing more
        groups[i]
        for i, record in enumerate(records)
        if record.subset.is_reg or not shares[record.subset.dataset][0]
    }
    held: set[int] = set()
    for number, (fraction, seed) in enumerate(shares):
        own = [
            i
            for i, record in enumerate(records)
            if record.subset.dataset == number and not record.subset.is_reg
        ]
        if fraction:
            room = round(len(own) * fraction) - sum(i in held for i in own)
            order = derive_rng(seed, "validation-split").permutation(len(own))
            for i in _choose_groups([own[n] for n in order], groups, decided, room):
                held.update(members[groups[i]])
        decided.update(groups[i] for i in own)
    pictures = len({record.path for record in records})
    copies = pictures - len(members)
    if copies and held:
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


def _choose_groups(
    order: Sequence[int],
    groups: Sequence[int],
    decided: set[int],
    room: int,
) -> Iterator[int]:
    """A record of each group that is held out: in this order, while there is room for all of it.

    Where there is room for none, the smallest group is taken all the same, if others are left.
    """
    own = Counter(groups[i] for i in order)
    firsts = {groups[i]: i for i in reversed(order) if groups[i] not in decided}
    fitting = 0
    for group in dict.fromkeys(groups[i] for i in order if groups[i] in firsts):
        if own[group] <= room:
            room -= own[group]
            fitting += 1
            yield firsts[group]
    if room > 0 and not fitting and len(own) > 1 and firsts:
        yield firsts[min(firsts, key=lambda group: own[group])]


def _without_copies(
    own: Scan, training: Sequence[ImageRecord], hashes: ContentHashes, progress: Progress
) -> list[ImageRecord]:
    """The images of the folder of validation that are not trained on.

    Raises:
        DatasetError: There are none.
    """
    groups = group_byte_copies([*training, *own.records], hashes, progress)
    of_group = dict(zip(groups, training, strict=False))
    held_out, copies = [], []
    for group, record in zip(groups[len(training) :], own.records, strict=True):
        if group in of_group:
            reason = f"a byte copy of {of_group[group].path}, which is trained on"
            copies.append(SkippedFile(record.path, reason))
        else:
            held_out.append(watched(record))
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
