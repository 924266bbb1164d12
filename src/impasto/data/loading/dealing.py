"""An epoch's order as arrays: which images form which batch, and which process gets it.

A dealt epoch of ten million images takes 60 MB: one number per showing, one per batch, and no
object for either. `sampler.py` makes steps from it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from impasto.randomness import derive_rng

Ints = npt.NDArray[np.int64]
SmallInts = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class DealtBatches:
    """The batches of an epoch, dealt to the processes.

    Attributes:
        images: The image of each showing, by its number in the plan, batch after batch.
        repeats: Which repeat of its image each showing is; None if each image is shown once.
        starts: Start of each batch in `images`, and the end of the last batch.
        rounds: [rounds, processes]: the batch of each process in each round; -1 for none.
    """

    images: SmallInts
    repeats: SmallInts | None
    starts: Ints
    rounds: SmallInts

    def size_of(self, batches: SmallInts) -> Ints:
        """Return the number of showings of each of these batches; 0 for -1."""
        dealt = np.maximum(batches, 0)
        return np.where(batches >= 0, self.starts[dealt + 1] - self.starts[dealt], 0)

    def showings(self, batch: int, most: int | None = None) -> list[tuple[int, int]]:
        """Return (image, repeat) of the first `most` showings of a batch, or of all."""
        start, end = int(self.starts[batch]), int(self.starts[batch + 1])
        end = end if most is None else min(end, start + most)
        images = self.images[start:end].tolist()
        if self.repeats is None:
            return [(image, 0) for image in images]
        return list(zip(images, self.repeats[start:end].tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Pile:
    """The batches of one group of images, or of a process's portion of it."""

    images: SmallInts
    repeats: SmallInts | None
    starts: Ints

    @property
    def batches(self) -> int:
        """Number of batches of the group in an epoch."""
        return len(self.starts) - 1


@dataclass(frozen=True)
class GroupDealer:
    """Cuts the showings of one group of images into random batches.

    Args:
        members: The images of the group, by their numbers in the plan.
        repeats: How often each of them is shown per epoch; None if each is shown once.
        batch_size: Images of a batch.
        seed: The run's seed.
        name: Dataset and bucket, from which the group's random numbers are derived.
    """

    members: SmallInts
    repeats: SmallInts | None
    batch_size: int
    seed: int
    name: tuple[int, str]

    @property
    def showings(self) -> int:
        """Number of showings of the group in an epoch."""
        return len(self.members) if self.repeats is None else int(self.repeats.sum())

    @property
    def largest_batch(self) -> int:
        """Number of images in its largest batch."""
        return min(self.batch_size, self.showings)

    def pile(self, epoch: int) -> Pile:
        """Return all batches of the group in an epoch, in the order in which they were cut."""
        return _in_batches(*self._samples(), self.batch_size, self._rng(epoch))

    def pile_of(self, epoch: int, rank: int, first: int, step: int) -> Pile:
        """Return a process's batches, of the shuffled showings `first`, `first + step` ..."""
        images, repeats = self._samples()
        own = self._rng(epoch).permutation(len(images))[first::step]
        own_repeats = None if repeats is None else repeats[own]
        return _in_batches(
            images[own], own_repeats, self.batch_size, self._rng(epoch, f"rank {rank}")
        )

    def _samples(self) -> tuple[SmallInts, SmallInts | None]:
        if self.repeats is None:
            return self.members, None
        images = np.repeat(self.members, self.repeats)
        before = np.repeat(np.cumsum(self.repeats) - self.repeats, self.repeats)
        return images, (np.arange(len(images)) - before).astype(np.int32)

    def _rng(self, epoch: int, *more: str) -> np.random.Generator:
        return derive_rng(self.seed, "order", epoch, *self.name, *more)


def deal_shuffled(
    dealers: Sequence[GroupDealer], epoch: int, processes: int, seed: int
) -> DealtBatches:
    """Deal all batches of an epoch in random order, to the processes in turn."""
    joined = _join([dealer.pile(epoch) for dealer in dealers])
    order = derive_rng(seed, "batches", epoch).permutation(joined.batches)
    rounds = np.full(-(-len(order) // processes) * processes, -1, dtype=np.int32)
    rounds[: len(order)] = order
    return DealtBatches(joined.images, joined.repeats, joined.starts, rounds.reshape(-1, processes))


def deal_proportional(
    dealers: Sequence[GroupDealer], epoch: int, processes: int, seed: int
) -> DealtBatches:
    """Deal an epoch so that each process draws batches in proportion to its remaining images.

    A process has a portion of each group, and the probability of a group is what is left of it.
    """
    piles: list[Pile] = []
    columns: list[SmallInts] = []
    dealt = 0
    for rank in range(processes):
        own = [
            dealer.pile_of(epoch, rank, (rank + turn) % processes, processes)
            for turn, dealer in enumerate(dealers)
        ]
        columns.append(_draw(own, derive_rng(seed, "draws", epoch, rank)) + np.int32(dealt))
        dealt += sum(pile.batches for pile in own)
        piles += own
    rounds = np.full((max(map(len, columns)), processes), -1, dtype=np.int32)
    for rank, column in enumerate(columns):
        rounds[: len(column), rank] = column
    joined = _join(piles)
    return DealtBatches(joined.images, joined.repeats, joined.starts, rounds)


def _draw(piles: Sequence[Pile], rng: np.random.Generator) -> SmallInts:
    """Return the order in which a process takes its batches, each pile from its end.

    Gives the same numbers as `rng.choice(len(piles), p=left / left.sum())`, which checks and
    converts its arguments each time and takes five times as long.
    """
    left = np.array([len(pile.images) for pile in piles], dtype=np.float64)
    sizes = [np.diff(pile.starts).tolist() for pile in piles]
    firsts = np.cumsum([0, *(pile.batches for pile in piles)]).tolist()
    drawn = np.empty(firsts[-1], dtype=np.int32)
    for index in range(len(drawn)):
        chances = (left / left.sum()).cumsum()
        chances /= chances[-1]
        number = int(chances.searchsorted(rng.random(), side="right"))
        left[number] -= sizes[number].pop()
        drawn[index] = firsts[number] + len(sizes[number])
    return drawn


def _join(piles: Sequence[Pile]) -> Pile:
    """Join the batches of several piles into one."""
    images = np.concatenate([pile.images for pile in piles])
    before = np.cumsum([0, *(len(pile.images) for pile in piles)])
    starts = [pile.starts[:-1] + at for pile, at in zip(piles, before[:-1], strict=True)]
    repeats = None
    if any(pile.repeats is not None for pile in piles):
        repeats = np.concatenate(
            [
                np.zeros(len(pile.images), dtype=np.int32) if pile.repeats is None else pile.repeats
                for pile in piles
            ]
        )
    return Pile(images, repeats, np.concatenate([*starts, before[-1:]]).astype(np.int64))


def _in_batches(
    images: SmallInts, repeats: SmallInts | None, size: int, rng: np.random.Generator
) -> Pile:
    """Cut showings into random batches; those of one image go to different batches if possible.

    Without repeats, all batches but the last are full. With repeats, sizes differ by at most one,
    and each image, the most repeated first, goes to the batches with the most room, which finds a
    solution if there is one (Gale 1957, A theorem on flows in networks).
    """
    count = len(images)
    number = -(-count // size)
    if repeats is None or len(np.unique(images)) == count:
        order = rng.permutation(count)
        starts = np.minimum(np.arange(number + 1, dtype=np.int64) * size, count)
    else:
        rooms = [len(range(b, count, number)) for b in range(number)]
        order = _spread(images, rooms, rng)
        starts = np.cumsum([0, *rooms], dtype=np.int64)
    return Pile(images[order], None if repeats is None else repeats[order], starts)


def _spread(images: SmallInts, rooms: list[int], rng: np.random.Generator) -> Ints:
    """Distribute each image's showings over as many batches as possible, by the room left in them.

    Returns:
        The indices of the showings in `images`, batch after batch.
    """
    _, firsts, codes = np.unique(images, return_index=True, return_inverse=True)
    in_order = np.argsort(np.argsort(firsts))[codes]  # images by their first showing
    counts = np.bincount(in_order)
    indices = np.argsort(in_order, kind="stable")
    begins = np.cumsum(counts) - counts
    mixed = rng.permutation(len(counts))
    mixed = mixed[np.argsort(-counts[mixed], kind="stable")]
    luck = _random_numbers(rng)
    heap = [(-room, next(luck), batch) for batch, room in enumerate(rooms)]
    heapq.heapify(heap)
    taken_by, order = np.empty(len(images), np.int32), np.empty(len(images), np.int64)
    done = 0
    for begin, waiting in zip(begins[mixed].tolist(), counts[mixed].tolist(), strict=True):
        while waiting:
            taken = [heapq.heappop(heap) for _ in range(min(waiting, len(heap)))]
            for room, _, batch in taken:
                waiting -= 1
                order[done], taken_by[done] = begin + waiting, batch
                done += 1
                if room < -1:
                    heapq.heappush(heap, (room + 1, next(luck), batch))
    return indices[order[np.argsort(taken_by, kind="stable")]]


def _random_numbers(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from rng.random(4096).tolist()
