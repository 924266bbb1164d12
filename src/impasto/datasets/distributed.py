"""The processes of a run as PyTorch started them: what they tell each other while they prepare.

Texts go through the store that PyTorch's processes found each other by, and a barrier says that all
of them are there. So nothing is pickled, no GPU memory is needed, and an error can be told at any
time: a process that fails leaves its error in the store, and the others, which look there between
two batches and while they wait, end with it too. A barrier also fails at once where the connection
to a process that was killed ends, on whatever machine it ran.

Training itself has collective operations of its own; nothing of this is used there.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator, PartialState

from impasto import errors
from impasto.data.process_group import ProcessGroup, SingleProcess
from impasto.errors import ImpastoError, RunError
from impasto.parsing import parse_json
from impasto.progress import Advance, Progress

_FAULT, _HEARD = "impasto/fault", "impasto/heard"
_LOOKS_EVERY_S = 0.2
_LINGERS_S = 20.0
"""How long a process that fails waits for the others to have heard why."""

_rounds = itertools.count()
"""Of this process's exchanges; all processes of a run make the same ones, in the same order."""


def process_group(state: Accelerator | PartialState) -> ProcessGroup:
    """The processes that accelerate knows of."""
    if state.num_processes == 1:
        return SingleProcess()
    return DistributedGroup(state.process_index, state.num_processes, state.local_process_index)


class DistributedGroup:
    """Several processes, on one machine or many.

    Args:
        rank: The number of this one.
        size: How many there are.
        local_rank: The number of this one among those of its machine.
    """

    def __init__(self, rank: int, size: int, local_rank: int) -> None:
        self.rank, self.size, self.is_local_first = rank, size, local_rank == 0
        local = os.environ.get("LOCAL_WORLD_SIZE", "")
        self.local_size = int(local) if local.isdigit() and int(local) else size
        self._local_rank = local_rank
        store: Any = torch.distributed.distributed_c10d._get_default_store()
        self._store = store
        self._looked = 0.0
        self._is_torn = False

    def gather(self, text: str) -> list[str]:
        """The text of each process, by rank.

        Raises:
            ImpastoError: Another process has failed, with its error.
            RuntimeError: Another process is gone.
        """
        place = f"impasto/round-{next(_rounds)}"
        try:
            self._store.set(f"{place}/{self.rank}", text)
            self._wait_for_all()
            texts = [self._store.get(f"{place}/{rank}").decode() for rank in range(self.size)]
            self._wait_for_all()  # the process that keeps the store may end after this
        except RuntimeError:
            self._is_torn = True
            with contextlib.suppress(RuntimeError):  # the process that keeps the store is gone too
                self._raise_told()  # who failed may have waited in vain, and left
            raise
        with contextlib.suppress(RuntimeError, NotImplementedError):  # not all kinds of store can
            self._store.delete_key(f"{place}/{self.rank}")
        return texts

    def raise_fault(self) -> None:
        """Look whether another process has failed, every fifth of a second.

        Raises:
            ImpastoError: One has.
        """
        now = time.monotonic()
        if now - self._looked >= _LOOKS_EVERY_S:
            self._looked = now
            self._raise_told()

    def tell(self, error: BaseException, *, wait: bool) -> None:
        """Have the others end with an error of this process; what cannot be told is not.

        Args:
            error: The error.
            wait: Whether to give them time to hear of it: the launcher ends them when this process
                has ended.
        """
        known = isinstance(error, ImpastoError)
        told = {
            "rank": self.rank,
            "host": socket.gethostname(),
            "kind": type(error).__name__ if known else "",
            "message": str(error) if known else f"{type(error).__name__}: {error}".rstrip(": "),
        }
        wait = wait and not (self._is_torn or isinstance(error, torch.distributed.DistError))
        with contextlib.suppress(RuntimeError):  # the process that keeps the store is gone
            if self._store.add(f"{_FAULT}-claimed", 1) > 1:
                self._store.add(_HEARD, 1)  # another one failed first, and says so
                return
            self._store.set(_FAULT, json.dumps(told))
            until = time.monotonic() + (_LINGERS_S if wait else 0.0)
            while time.monotonic() < until and self._store.add(_HEARD, 0) < self.size - 1:
                time.sleep(0.02)

    def _wait_for_all(self) -> None:
        """A barrier that ends early where a process has failed."""
        work: Any = torch.distributed.barrier(device_ids=self._device_ids(), async_op=True)
        pause = 0.001
        while not work.is_completed():
            self.raise_fault()
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        work.wait()
        self._raise_told()

    def _device_ids(self) -> list[int] | None:
        return [self._local_rank] if "nccl" in torch.distributed.get_backend() else None

    def _raise_told(self) -> None:
        if not self._store.check([_FAULT]):
            return
        told = parse_json(self._store.get(_FAULT).decode(), halves=True)
        self._store.add(_HEARD, 1)
        raise _error_of(told, self.size)


class PeerError(Exception):
    """Marks an error of another process, which needs no telling."""


def _error_of(told: dict[str, Any], size: int) -> ImpastoError:
    """The error of another process as this one's own: of the same class, so of the same code."""
    who = f"process {told['rank'] + 1} of {size}, on {told['host']}"
    kind = getattr(errors, told["kind"], RunError) if told["kind"] else RunError
    message = f"{told['message']} (Said by {who}.)"
    if not told["kind"]:
        message = f"{who[0].upper()}{who[1:]}, has ended: {told['message']}. So this one stops."
    try:
        error: ImpastoError = kind(message)
    except TypeError:  # a class that takes more than words
        error = RunError(message)
    error.__cause__ = PeerError(who)
    return error


@contextlib.contextmanager
def ending_together(group: ProcessGroup) -> Iterator[None]:
    """Have an error of this process end all processes of the run, and the other way round.

    An error that the others have too, such as a missing folder, each of them may say itself.
    """
    try:
        yield
    except BaseException as error:
        from_peer = isinstance(error.__cause__, PeerError)
        if isinstance(group, DistributedGroup) and not from_peer:
            group.tell(error, wait=isinstance(error, Exception))
        raise


class WatchfulProgress:
    """Shows progress, and ends work where another process has failed.

    Args:
        shown: What it is shown by.
        group: The processes.
    """

    def __init__(self, shown: Progress, group: ProcessGroup) -> None:
        self._shown, self._group = shown, group

    @contextlib.contextmanager
    def stage(self, description: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Open a stage; each advance looks for the errors of others."""
        with self._shown.stage(description, total, unit) as advance:
            yield self._watching(advance)

    def note(self, message: str) -> None:
        """Show one line that stays."""
        self._shown.note(message)

    def _watching(self, advance: Advance) -> Callable[[int], None]:
        def looked(number: int) -> None:
            self._group.raise_fault()
            advance(number)

        return looked
