"""Which images meet in which step: computed from (seed, step), never stored.

Every image comes once per epoch (times its repeats) on any number of processes. A bucket that
does not fill its last batch gives a short one: nothing is dropped, doubled or refused.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import Literal, NamedTuple

import numpy as np

from impasto.data.records import Size
from impasto.randomness import derive_rng

BatchOrder = Literal["shuffled", "proportional"]


class Group(NamedTuple):
    """Images that may meet in a batch: those of one dataset in one bucket."""

    dataset: int
    bucket: Size


class Sample(NamedTuple):
    """One showing of an image in an epoch: its number in the plan, and which repeat it is."""

    image: int
    repeat: int


RankBatches = tuple[tuple[Sample, ...], ...]
"""One batch for each process; an empty one where there is none left."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Images that go through the U-Net together, and their places in the step.

    `is_padding` marks a stand-in for a process that the last step of an epoch leaves without
    images: it computes, with weight zero, because the processes have to stay in step.
    """

    samples: tuple[Sample, ...]
    positions: tuple[int, ...]
    is_padding: bool = False


@dataclass(frozen=True, slots=True)
class OptimizerStep:
    """One optimizer step: its micro-batches, for one process, and the size of the whole."""

    step: int
    epoch: int
    micro_batches: tuple[MicroBatch, ...]
    size: int


class EpochSampler:
    """Deals images into batches of one bucket and batches into steps.

    Args:
        groups: The dataset and bucket of each planned image.
        batch_sizes: Images per micro-batch, by group.
        seed: The run's seed.
        repeats: How often each image comes in an epoch; None means once.
        accumulation: Micro-batches per step and process.
        num_processes: Processes that share each step.
        order: `shuffled` puts all batches in a random order and deals them to the processes.
            `proportional` gives each process its share of every bucket first; it then draws each
            batch's bucket on its own, with a chance in proportion to what is left in it, as
            NovelAI did (novelai-aspect-ratio-bucketing, `bucketmanager.py`).
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        batch_sizes: Mapping[Group, int],
        seed: int,
        repeats: Sequence[int] | None = None,
        accumulation: int = 1,
        num_processes: int = 1,
        order: BatchOrder = "shuffled",
    ) -> None:
        members: dict[Group, list[int]] = {}
        for index, group in enumerate(groups):
            members.setdefault(group, []).append(index)
        self._members = {group: members[group] for group in sorted(members)}
        self._repeats = repeats if repeats is not None else [1] * len(groups)
        self._batch_sizes, self._seed = batch_sizes, seed
        self._accumulation, self._num_processes = accumulation, num_processes
        self._counts = {
            group: sum(self._repeats[index] for index in indices)
            for group, indices in self._members.items()
        }
        ways: dict[BatchOrder, Callable[[int], list[RankBatches]]] = {
            "shuffled": self._shuffled,
            "proportional": self._proportional,
        }
        self._rounds_of = lru_cache(maxsize=2)(ways[order])
        self._rounds_per_epoch = {
            "shuffled": -(-self.batches_per_epoch // num_processes),
            "proportional": max(map(self._batches_of_rank, range(num_processes))),
        }[order]

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches of one epoch, if one process dealt them all."""
        return sum(-(-n // self._batch_sizes[g]) for g, n in self._counts.items())

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch; the last one may be smaller."""
        return -(-self._rounds_per_epoch // self._accumulation)

    @property
    def samples_per_epoch(self) -> int:
        """Images seen in one epoch, repeats counted."""
        return sum(self._counts.values())

    def optimizer_step(self, step: int, rank: int = 0) -> OptimizerStep:
        """The step at `step` (counted from 0) as the process `rank` sees it."""
        epoch, index = divmod(step, self.steps_per_epoch)
        rounds = self._rounds_of(epoch)
        begin = index * self._accumulation
        start, own = 0, []
        stand_in = next(batch for batch in rounds[begin] if batch)[:1]
        for batches in rounds[begin : begin + self._accumulation]:
            for number, batch in enumerate(batches):
                if number == rank:
                    positions = tuple(range(start, start + len(batch)))
                    own.append(
                        MicroBatch(batch, positions)
                        if batch
                        else MicroBatch(stand_in, (0,), is_padding=True)
                    )
                start += len(batch)
        return OptimizerStep(step, epoch, tuple(own), start)

    def samples_before(self, step: int) -> int:
        """Images seen by all processes in the steps before `step`."""
        epoch, index = divmod(step, self.steps_per_epoch)
        begun = self._rounds_of(epoch)[: index * self._accumulation] if index else []
        return epoch * self.samples_per_epoch + sum(len(b) for batches in begun for b in batches)

    def _shuffled(self, epoch: int) -> list[RankBatches]:
        """All batches in a random order, dealt to the processes in turn."""
        batches = [batch for group in self._members for batch in self._batches(group, epoch)]
        order = derive_rng(self._seed, "batches", epoch).permutation(len(batches))
        width = self._num_processes
        return [
            tuple(batches[i] for i in order[start : start + width])
            + ((),) * (start + width - len(batches))
            for start in range(0, len(batches), width)
        ]

    def _proportional(self, epoch: int) -> list[RankBatches]:
        """Each process draws the buckets of its batches from its own share of the images."""
        deals = [self._rank_batches(epoch, rank) for rank in range(self._num_processes)]
        return list(zip_longest(*deals, fillvalue=()))

    def _rank_batches(self, epoch: int, rank: int) -> list[tuple[Sample, ...]]:
        """The batches of one process: the next bucket by what is left in each."""
        rng = derive_rng(self._seed, "draws", epoch, rank)
        piles = [self._batches(group, epoch, rank) for group in self._members]
        left = np.array([sum(map(len, pile)) for pile in piles], dtype=np.float64)
        drawn = []
        while left.sum() > 0:
            number = int(rng.choice(len(piles), p=left / left.sum()))
            batch = piles[number].pop()
            left[number] -= len(batch)
            drawn.append(batch)
        return drawn

    def _batches(
        self, group: Group, epoch: int, rank: int | None = None
    ) -> list[tuple[Sample, ...]]:
        """The batches of a group: all of them, or those of a process's share."""
        rng = derive_rng(self._seed, "order", epoch, group.dataset, str(group.bucket))
        samples = [Sample(i, r) for i in self._members[group] for r in range(self._repeats[i])]
        if rank is None:
            return _in_batches(samples, self._batch_sizes[group], rng)
        mixed = [samples[i] for i in rng.permutation(len(samples))]
        own = mixed[self._rank_offset(group, rank) :: self._num_processes]
        own_rng = derive_rng(
            self._seed, "order", epoch, group.dataset, str(group.bucket), f"rank {rank}"
        )
        return _in_batches(own, self._batch_sizes[group], own_rng)

    def _rank_offset(self, group: Group, rank: int) -> int:
        """Where a process's share begins: turned from group to group, so that shares are even."""
        turn = list(self._members).index(group)
        return (rank + turn) % self._num_processes

    def _batches_of_rank(self, rank: int) -> int:
        total = 0
        for group, count in self._counts.items():
            own = len(range(self._rank_offset(group, rank), count, self._num_processes))
            total += -(-own // self._batch_sizes[group])
        return total


def _in_batches(
    samples: list[Sample], size: int, rng: np.random.Generator
) -> list[tuple[Sample, ...]]:
    """Cut samples into random batches; showings of one image go to different ones if they can.

    Without repeats all batches but the last are full. With repeats they differ by one at most, and
    each image, the most repeated first, goes to those that have the most room, which finds a way
    if there is one (Gale 1957, A theorem on flows in networks).
    """
    shown = Counter(sample.image for sample in samples)
    if not shown or max(shown.values()) == 1:
        mixed = [samples[i] for i in rng.permutation(len(samples))]
        return [tuple(mixed[i : i + size]) for i in range(0, len(mixed), size)]
    of_picture: dict[int, list[Sample]] = {}
    for sample in samples:
        of_picture.setdefault(sample.image, []).append(sample)
    pictures = [list(of_picture.values())[i] for i in rng.permutation(len(of_picture))]
    pictures.sort(key=len, reverse=True)
    number = -(-len(samples) // size)
    rooms = [len(range(b, len(samples), number)) for b in range(number)]
    return _spread(pictures, rooms, rng)


def _spread(
    pictures: list[list[Sample]], rooms: list[int], rng: np.random.Generator
) -> list[tuple[Sample, ...]]:
    """Put each image's samples into as many batches as there are, by the room left in them."""
    luck = _random_numbers(rng)
    heap = [(-room, next(luck), batch) for batch, room in enumerate(rooms)]
    heapq.heapify(heap)
    batches: list[list[Sample]] = [[] for _ in rooms]
    for samples in pictures:
        waiting = list(samples)
        while waiting:
            taken = [heapq.heappop(heap) for _ in range(min(len(waiting), len(heap)))]
            for room, _, batch in taken:
                batches[batch].append(waiting.pop())
                if room < -1:
                    heapq.heappush(heap, (room + 1, next(luck), batch))
    return [tuple(batch) for batch in batches]


def _random_numbers(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from rng.random(4096).tolist()
