"""Which pictures meet in which update: computed from (seed, step), never stored.

Every picture comes once per epoch (times its repeats) on any number of processes. A bucket that
does not fill its last batch gives a short one: nothing is dropped, doubled or refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from impasto.data.records import Size
from impasto.randomness import derive_rng


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Pictures that go through the U-Net together: indices into the plan, and places in the update.

    `is_padding` marks a stand-in for a process that the last update of an epoch leaves without
    pictures: it computes, with weight zero, because the processes have to stay in step.
    """

    indices: tuple[int, ...]
    positions: tuple[int, ...]
    is_padding: bool = False


@dataclass(frozen=True, slots=True)
class Update:
    """One optimizer update: its micro-batches, for one process, and the size of the whole."""

    step: int
    epoch: int
    micro_batches: tuple[MicroBatch, ...]
    size: int


class EpochSampler:
    """Deals pictures into batches of one bucket and batches into updates.

    Args:
        buckets: The bucket of each planned picture.
        batch_size: Pictures per micro-batch.
        seed: The run's seed.
        repeats: How often each picture comes in an epoch.
        accumulation: Micro-batches per update and process.
        num_processes: Processes that share each update.
    """

    def __init__(
        self,
        buckets: Sequence[Size],
        *,
        batch_size: int,
        seed: int,
        repeats: int = 1,
        accumulation: int = 1,
        num_processes: int = 1,
    ) -> None:
        self._members: dict[Size, list[int]] = {}
        for index, bucket in enumerate(buckets):
            self._members.setdefault(bucket, []).append(index)
        self._members = dict(sorted(self._members.items()))
        self._batch_size, self._seed, self._repeats = batch_size, seed, repeats
        self._accumulation, self._num_processes = accumulation, num_processes
        self._batches_of = lru_cache(maxsize=2)(self._deal)

    @property
    def batches_per_epoch(self) -> int:
        """Micro-batches of all processes in one epoch."""
        counts = [len(members) * self._repeats for members in self._members.values()]
        return sum(-(-count // self._batch_size) for count in counts)

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer updates in one epoch; the last one may be smaller."""
        return -(-self.batches_per_epoch // (self._accumulation * self._num_processes))

    @property
    def samples_per_epoch(self) -> int:
        """Pictures seen in one epoch, repeats counted."""
        return sum(len(members) for members in self._members.values()) * self._repeats

    def update(self, step: int, rank: int = 0) -> Update:
        """The update at `step` (counted from 0) as the process `rank` sees it."""
        epoch, index = divmod(step, self.updates_per_epoch)
        group = self._accumulation * self._num_processes
        batches = self._batches_of(epoch)[index * group : (index + 1) * group]
        starts = [0]
        for batch in batches:
            starts.append(starts[-1] + len(batch))
        rounds = -(-len(batches) // self._num_processes)
        own = [self._micro_batch(batches, starts, r, rank) for r in range(rounds)]
        return Update(step, epoch, tuple(own), starts[-1])

    def samples_before(self, step: int) -> int:
        """Pictures seen by all processes in the updates before `step`."""
        epoch, index = divmod(step, self.updates_per_epoch)
        group = self._accumulation * self._num_processes
        begun = self._batches_of(epoch)[: index * group] if index else []
        return epoch * self.samples_per_epoch + sum(len(batch) for batch in begun)

    def _micro_batch(
        self, batches: list[tuple[int, ...]], starts: list[int], round_: int, rank: int
    ) -> MicroBatch:
        number = round_ * self._num_processes + rank
        if number >= len(batches):
            return MicroBatch(batches[0][:1], (0,), is_padding=True)
        positions = tuple(range(starts[number], starts[number + 1]))
        return MicroBatch(batches[number], positions)

    def _deal(self, epoch: int) -> list[tuple[int, ...]]:
        """All batches of an epoch in their order, the same on every process.

        Repeats are dealt pass by pass, so one picture meets itself in a batch only where a batch
        spans the end of a pass.
        """
        batches: list[tuple[int, ...]] = []
        for bucket, members in self._members.items():
            rng = derive_rng(self._seed, "order", epoch, str(bucket))
            order = [
                members[i] for _ in range(self._repeats) for i in rng.permutation(len(members))
            ]
            size = self._batch_size
            batches += [tuple(order[i : i + size]) for i in range(0, len(order), size)]
        shuffle = derive_rng(self._seed, "batches", epoch).permutation(len(batches))
        return [batches[i] for i in shuffle]
