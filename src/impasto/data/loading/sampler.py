"""Computes which images belong to which step from (seed, step); never stored.

Every image is shown once per epoch (times its repeats), on any number of processes. A bucket that
does not fill its last batch gives a short one: nothing is dropped, doubled or refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from impasto.data.loading.dealing import DealtBatches, GroupDealer, deal_proportional, deal_shuffled
from impasto.data.planning.groups import Group as Group
from impasto.data.planning.groups import Groups

BatchOrder = Literal["shuffled", "proportional"]
_AHEAD_FROM = 100_000  # showings; fewer are dealt in milliseconds when needed


class Sample(NamedTuple):
    """One showing of an image in an epoch: its number in the plan, and which repeat it is."""

    image: int
    repeat: int


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Images that go through the U-Net together, and their positions in the step.

    `is_padding` marks a placeholder for a process that has no images left in the last step of an
    epoch: it computes with weight zero, since all processes must take part in each step.
    """

    samples: tuple[Sample, ...]
    positions: tuple[int, ...]
    is_padding: bool = False


@dataclass(frozen=True, slots=True)
class OptimizerStep:
    """One optimizer step: the micro-batches of one process, and the number of images of all."""

    step: int
    epoch: int
    micro_batches: tuple[MicroBatch, ...]
    size: int


class EpochSampler:
    """Deals images into batches of one bucket and batches into steps.

    The current epoch is held as arrays, and the next one is dealt meanwhile.

    Args:
        groups: The dataset and bucket of each planned image.
        batch_sizes: Images per micro-batch, by group.
        seed: The run's seed.
        repeats: How often each image is shown in an epoch; None means once.
        accumulation: Micro-batches per step and process.
        num_processes: Processes that share each step.
        order: `shuffled` puts all batches in a random order and deals them to the processes.
            `proportional` gives each process its portion of every bucket first; the process then
            draws the bucket of each batch, with a probability in proportion to what is left in it,
            as NovelAI did (novelai-aspect-ratio-bucketing, `bucketmanager.py`).
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        batch_sizes: Mapping[Group, int],
        seed: int,
        repeats: Sequence[int] | np.ndarray | None = None,
        accumulation: int = 1,
        num_processes: int = 1,
        order: BatchOrder = "shuffled",
    ) -> None:
        times = None if repeats is None else np.asarray(repeats, dtype=np.int32)
        if times is not None and (times == 1).all():
            times = None
        self._groups = Groups.of(groups)
        members_by_group = dict(self._groups.members())
        self._dealers = [
            GroupDealer(
                members,
                None if times is None else times[members],
                batch_sizes[group],
                seed,
                (group.dataset, str(group.bucket)),
            )
            for group, members in members_by_group.items()
        ]
        self._full_batches = {
            group: dealer.largest_batch
            for group, dealer in zip(members_by_group, self._dealers, strict=True)
        }
        self._seed, self._accumulation = seed, accumulation
        self._counted = 0, 0, 0  # an epoch, rounds of it, and the images in them
        self._num_processes = num_processes
        ways = {"shuffled": deal_shuffled, "proportional": deal_proportional}
        self._deals = _Deals(
            lambda epoch: ways[order](self._dealers, epoch, num_processes, seed),
            ahead=self.samples_per_epoch >= _AHEAD_FROM,
        )
        self._rounds_per_epoch = {
            "shuffled": -(-self.batches_per_epoch // num_processes),
            "proportional": max(map(self._batches_of_rank, range(num_processes))),
        }[order]

    @property
    def batches_per_epoch(self) -> int:
        """Number of micro-batches of one epoch, if a single process had them all."""
        return sum(-(-dealer.showings // dealer.batch_size) for dealer in self._dealers)

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in one epoch; the last one may be smaller."""
        return -(-self._rounds_per_epoch // self._accumulation)

    @property
    def samples_per_epoch(self) -> int:
        """Number of images shown in one epoch, repeats included."""
        return sum(dealer.showings for dealer in self._dealers)

    def optimizer_step(self, step: int, rank: int = 0) -> OptimizerStep:
        """Return step `step` (counted from 0) with the micro-batches of process `rank`."""
        epoch, index = divmod(step, self.steps_per_epoch)
        dealt = self._deals.of(epoch)
        begin = index * self._accumulation
        rounds = dealt.rounds[begin : begin + self._accumulation]
        sizes = dealt.size_of(rounds)
        starts = (np.cumsum(sizes) - sizes.ravel()).reshape(sizes.shape)
        own = []
        for batch, size, start in zip(
            rounds[:, rank].tolist(), sizes[:, rank].tolist(), starts[:, rank].tolist(), strict=True
        ):
            if batch >= 0:
                samples = tuple(Sample(*showing) for showing in dealt.showings(batch))
                own.append(MicroBatch(samples, tuple(range(start, start + size))))
            else:
                first = next(other for other in rounds[0].tolist() if other >= 0)
                stand_in = tuple(Sample(*showing) for showing in dealt.showings(first, 1))
                own.append(MicroBatch(stand_in, (0,), is_padding=True))
        return OptimizerStep(step, epoch, tuple(own), int(sizes.sum()))

    def full_batch_size(self, batch: MicroBatch) -> int:
        """Return the largest batch size of the dataset and bucket of this batch."""
        return self._full_batches[self._groups[batch.samples[0].image]]

    def samples_before(self, step: int) -> int:
        """Return how many images all processes have seen in the steps before `step`."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if index == 0:
            return epoch * self.samples_per_epoch
        dealt, end = self._deals.of(epoch), index * self._accumulation
        last_epoch, last_end, seen = self._counted
        begin, seen = (last_end, seen) if (last_epoch == epoch and last_end <= end) else (0, 0)
        seen += int(dealt.size_of(dealt.rounds[begin:end]).sum())
        self._counted = epoch, end, seen  # the next call asks for a later step
        return epoch * self.samples_per_epoch + seen

    def _batches_of_rank(self, rank: int) -> int:
        total = 0
        for turn, dealer in enumerate(self._dealers):
            first = (rank + turn) % self._num_processes
            own = len(range(first, dealer.showings, self._num_processes))
            total += -(-own // dealer.batch_size)
        return total


class _Deals:
    """Recently dealt epochs, and the next one, which a thread deals ahead.

    Args:
        deal: Deals an epoch.
        ahead: Whether dealing takes so long that the next epoch is dealt in advance.
    """

    def __init__(self, deal: Callable[[int], DealtBatches], *, ahead: bool) -> None:
        self._deal, self._ahead = deal, ahead
        self._known: dict[int, Future[DealtBatches]] = {}
        self._lock = threading.Lock()

    def of(self, epoch: int) -> DealtBatches:
        """Return the epoch with this number, counted from 0."""
        known = self._known.get(epoch)
        if known is None or (self._ahead and epoch + 1 not in self._known):
            known = self._begin(epoch)
        return known.result()

    def _begin(self, epoch: int) -> Future[DealtBatches]:
        """Deal an epoch here unless a thread is dealing it, and start on the next one."""
        with self._lock:
            known, is_new = self._future_of(epoch)
            following, is_following_new = (
                self._future_of(epoch + 1) if self._ahead else (known, False)
            )
            kept = {epoch - 1, epoch, epoch + 1}  # loaders are an epoch ahead for a while
            self._known = {number: deal for number, deal in self._known.items() if number in kept}
        if is_new:
            self._fulfil(known, epoch)
        if is_following_new:
            threading.Thread(
                target=self._fulfil, args=(following, epoch + 1), name="deal", daemon=True
            ).start()
        return known

    def _future_of(self, epoch: int) -> tuple[Future[DealtBatches], bool]:
        if epoch in self._known:
            return self._known[epoch], False
        self._known[epoch] = Future()
        return self._known[epoch], True

    def _fulfil(self, future: Future[DealtBatches], epoch: int) -> None:
        try:
            future.set_result(self._deal(epoch))
        except BaseException as error:  # raised again in the threads that wait for the epoch
            future.set_exception(error)
