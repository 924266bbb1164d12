"""The processes of a run while they prepare its images, and how they split the work.

A process communicates with the others through a `ProcessGroup`. Processes that store derived data
in the same folder split the work on it by a `CachePeers`; a machine that has no disk or store in
common with the others prepares everything itself. `datasets/distributed.py` has the group that
uses PyTorch.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from impasto import presence, temporary_names
from impasto.errors import StorageError
from impasto.parsing import parse_json
from impasto.progress import counted
from impasto.remote_paths import is_remote, shown

SEEN_WITHIN_S = 120.0
"""How long a network disk may show an old listing after other processes have written there."""

T = TypeVar("T")
Flags = npt.NDArray[np.bool_]


class ProcessGroup(Protocol):
    """All processes of a run.

    Attributes:
        rank: The rank of this process.
        size: Number of processes.
        local_size: Number of processes on this machine.
        is_local_first: Whether this is the first process of its machine.
    """

    rank: int
    size: int
    local_size: int
    is_local_first: bool

    def gather(self, text: str) -> list[str]:
        """Return the texts of all processes, by rank; every process calls this and waits for all.

        Raises:
            ImpastoError: Another process has failed, with its error.
        """

    def raise_fault(self) -> None:
        """Raise if another process has failed; cheap enough to call between two batches.

        Raises:
            ImpastoError: As `gather`.
        """


class SingleProcess:
    """The group of a run with one process."""

    rank, size, local_size, is_local_first = 0, 1, 1, True

    def gather(self, text: str) -> list[str]:
        """Return the text of this process, the only one."""
        return [text]

    def raise_fault(self) -> None:
        """Do nothing: no other process could have failed."""


@dataclass(frozen=True)
class CachePeers:
    """The processes of a run that divide the work on one folder of derived data.

    Attributes:
        group: All processes of the run.
        members: The ranks of the processes that see the same folder, this one included, in
            ascending order.
        claims: Whether this process claims the entries that it makes, so that other programs and
            other groups of processes skip them.
    """

    group: ProcessGroup
    members: tuple[int, ...]
    claims: bool = True

    @property
    def number(self) -> int:
        """The number of processes that share the work."""
        return len(self.members)

    @property
    def rank(self) -> int:
        """The index of this process among `members`."""
        return self.members.index(self.group.rank)

    @property
    def is_first(self) -> bool:
        """Whether this is the first of `members`, which does the work that is needed only once."""
        return self.rank == 0

    def first_says(self, text: str) -> str:
        """Return the text of the first member; every process of the run must call this."""
        return self.group.gather(text if self.is_first else "")[self.members[0]]

    def agreed(self, flags: Flags) -> Flags:
        """Return the flags of the first member; every process of the run must call this.

        Processes may find different flags while another program writes into the folder.
        """
        if self.group.size == 1:
            return flags
        packed = base64.b64encode(np.packbits(flags).tobytes()).decode("ascii")
        bits = np.frombuffer(base64.b64decode(self.first_says(packed)), np.uint8)
        return np.unpackbits(bits, count=flags.size).astype(np.bool_).reshape(flags.shape)

    def wait(self) -> None:
        """Wait until all processes of the run have reached this call."""
        self.group.gather("")

    def first_then_others(self, work: Callable[[], T]) -> T:
        """Run `work` in the first member, then in the others, which find its results on disk."""
        if self.is_first:
            done = work()
            self.wait()
        else:
            self.wait()
            done = work()
        return done

    def part_of(self, costs: Sequence[float]) -> slice:
        """Return this process's consecutive part of the work; all parts cost about the same.

        Args:
            costs: The cost of each piece of work, in the order that all processes use.
        """
        ends = np.cumsum(np.asarray(costs, dtype=np.float64))
        total = float(ends[-1]) if len(ends) else 0.0
        middles = ends - np.asarray(costs, dtype=np.float64) / 2
        borders = [total * rank / self.number for rank in (self.rank, self.rank + 1)]
        start, end = np.searchsorted(middles, borders, side="left").tolist()
        return slice(start, len(costs) if self.rank == self.number - 1 else end)

    def named(self, description: str) -> str:
        """Return a stage's description, with this process's number if several share the work."""
        if self.number == 1:
            return description
        return f"{description} (process {self.rank + 1} of {self.number})"


ALONE = CachePeers(SingleProcess(), (0,))
"""A process that does all of the work itself."""

AFTERWARDS = CachePeers(SingleProcess(), (0,), claims=False)
"""A process that runs after one that has encoded everything: it retries the images that could not
be encoded, without claims and without waiting for another process."""


def peers_of(group: ProcessGroup, folder: Path, kind: str = "") -> CachePeers:
    """Determine which processes of a run see the same folder; every process must call this.

    Each writes a file there and checks for the others' files by name, which a network disk answers
    even while its listing is out of date. A folder of an object store is the same for all.

    Args:
        group: The processes.
        folder: The folder, which exists if it can be written.
        kind: What this process would store there; only processes of the same kind share work.
    """
    if group.size == 1:
        return CachePeers(group, (0,))
    own = None if is_remote(folder) else temporary_names.partial_name(folder / "process")
    name = "" if own is None else own.name
    try:
        if own is not None:
            own.touch()  # if this process is killed, a later scan removes the file
    except OSError:  # the folder cannot be written, so there is nothing to share
        own = None
    try:
        told = [parse_json(text) for text in group.gather(json.dumps([kind, name]))]
        seen = [
            rank
            for rank, (other, file) in enumerate(told)
            if rank == group.rank
            or (other == kind and (not file or presence.exists(folder / file)))
        ]
        lists = [parse_json(text) for text in group.gather(json.dumps(seen))]
    finally:
        if own is not None:
            own.unlink(missing_ok=True)
    if any(lists[rank] != seen for rank in seen):  # not all of them see the same processes
        seen = [group.rank]
    return CachePeers(group, tuple(seen))


def wait_until_seen(left: Callable[[], int], folder: Path, raise_fault: Callable[[], None]) -> None:
    """Wait until this process sees what others have written: a network disk lists files late.

    Args:
        left: Checks again, and returns the number of entries still missing.
        folder: The folder they were written to.
        raise_fault: Raises if another process has failed.

    Raises:
        StorageError: Entries are still missing after two minutes.
    """
    until = time.monotonic() + SEEN_WITHIN_S
    while number := left():
        if time.monotonic() > until:
            raise StorageError(
                f"{counted(number, 'entries')} that other processes of this run have written into "
                f"{shown(folder)} are not to be seen from here after {SEEN_WITHIN_S:.0f} s. Run "
                f"the same command again; if this comes again, give dataset.cache_dir a folder of "
                f"each machine's own, or a place in an object store."
            )
        raise_fault()
        time.sleep(0.5)
