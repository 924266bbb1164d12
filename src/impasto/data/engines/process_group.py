"""The processes of a run while they prepare its images: who they are, and what each of them does.

A process sees the others as a `ProcessGroup`. Those that keep derived data in one folder have a
`CacheShare` of it, and split the work on it: a machine without a disk or a store in common with the
others prepares everything for itself. `datasets/distributed.py` has the group that PyTorch makes.
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
"""How long a network disk may show an old listing, after others have written there."""

T = TypeVar("T")
Flags = npt.NDArray[np.bool_]


class ProcessGroup(Protocol):
    """All processes of a run.

    Attributes:
        rank: The number of this process.
        size: How many there are.
        local_size: How many of them are on this machine.
        is_local_first: Whether this is the first process of its machine.
    """

    rank: int
    size: int
    local_size: int
    is_local_first: bool

    def gather(self, text: str) -> list[str]:
        """The text of each process, by rank; every process calls it, and waits for the others.

        Raises:
            ImpastoError: Another process has failed, with its error.
        """

    def raise_fault(self) -> None:
        """Look whether another process has failed, as between two batches; costs next to nothing.

        Raises:
            ImpastoError: As `gather`.
        """


class SingleProcess:
    """The group of a run with one process."""

    rank, size, local_size, is_local_first = 0, 1, 1, True

    def gather(self, text: str) -> list[str]:
        """The text of this process, the only one there is."""
        return [text]

    def raise_fault(self) -> None:
        """Do nothing: there is no other process that could have failed."""


@dataclass(frozen=True)
class CacheShare:
    """What a process does of the work on a folder of derived data.

    Attributes:
        group: All processes of the run.
        members: The ranks of those that see the same folder, in ascending order; this one is among
            them.
        claims: Whether other programs, and other shares, leave out what is being made for this one.
    """

    group: ProcessGroup
    members: tuple[int, ...]
    claims: bool = True

    @property
    def number(self) -> int:
        """How many processes share the work."""
        return len(self.members)

    @property
    def rank(self) -> int:
        """Which of them this process is, from 0."""
        return self.members.index(self.group.rank)

    @property
    def is_first(self) -> bool:
        """Whether this process does what only one of them has to do."""
        return self.rank == 0

    def first_says(self, text: str) -> str:
        """The text of the first of those that share; all processes of the run call it."""
        return self.group.gather(text if self.is_first else "")[self.members[0]]

    def agreed(self, flags: Flags) -> Flags:
        """What the first of those that share finds; all processes of the run call it.

        Each may find something else where another program writes into the folder just now.
        """
        if self.group.size == 1:
            return flags
        packed = base64.b64encode(np.packbits(flags).tobytes()).decode("ascii")
        bits = np.frombuffer(base64.b64decode(self.first_says(packed)), np.uint8)
        return np.unpackbits(bits, count=flags.size).astype(np.bool_).reshape(flags.shape)

    def wait(self) -> None:
        """Wait until all processes of the run have come here."""
        self.group.gather("")

    def first_then_others(self, work: Callable[[], T]) -> T:
        """Have the first of those that share do something, which the others then find done."""
        if self.is_first:
            done = work()
            self.wait()
        else:
            self.wait()
            done = work()
        return done

    def part_of(self, costs: Sequence[float]) -> slice:
        """The consecutive part of some work that is this process's, of about equal cost.

        Args:
            costs: Of each piece of the work, in the order that all processes have it in.
        """
        ends = np.cumsum(np.asarray(costs, dtype=np.float64))
        total = float(ends[-1]) if len(ends) else 0.0
        middles = ends - np.asarray(costs, dtype=np.float64) / 2
        borders = [total * rank / self.number for rank in (self.rank, self.rank + 1)]
        start, end = np.searchsorted(middles, borders, side="left").tolist()
        return slice(start, len(costs) if self.rank == self.number - 1 else end)

    def named(self, description: str) -> str:
        """Add to a stage's description whose share is counted."""
        if self.number == 1:
            return description
        return f"{description} (process {self.rank + 1} of {self.number})"


ALONE = CacheShare(SingleProcess(), (0,))
"""The share of a process that prepares alone: all of the work."""

AFTERWARDS = CacheShare(SingleProcess(), (0,), claims=False)
"""The share of a process that comes after the one that encoded everything: it looks at what could
not be encoded, and waits for no other process."""


def share_of(group: ProcessGroup, folder: Path, kind: str = "") -> CacheShare:
    """Find out which processes of a run see the same folder; all of them call it.

    Each writes a file there and looks for those of the others by name, which a network disk answers
    when a listing may still be an old one. A folder of an object store is the same for all.

    Args:
        group: The processes.
        folder: The folder, which exists if it can be written.
        kind: What this process would put there; who makes something else shares nothing with it.
    """
    if group.size == 1:
        return CacheShare(group, (0,))
    own = None if is_remote(folder) else temporary_names.partial_name(folder / "process")
    name = "" if own is None else own.name
    try:
        if own is not None:
            own.touch()  # a later scan removes that of a killed process
    except OSError:  # nothing can be made there, so there is nothing to share
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
    if any(lists[rank] != seen for rank in seen):  # one sees what another does not
        seen = [group.rank]
    return CacheShare(group, tuple(seen))


def wait_until_seen(left: Callable[[], int], folder: Path, raise_fault: Callable[[], None]) -> None:
    """Wait until this process sees what others have written: a network disk lists late.

    Args:
        left: Looks again, and says how many entries are still not there.
        folder: Where they were written.
        raise_fault: Looks whether another process has failed.

    Raises:
        StorageError: Something is not there after two minutes.
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
