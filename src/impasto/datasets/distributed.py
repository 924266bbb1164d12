"""The processes of a run as PyTorch started them: what they tell each other while they prepare.

Texts go through the store that PyTorch's processes found each other by, and a barrier says that all
of them are there. So nothing is pickled, no GPU memory is needed, and an error can be told at any
time: a process that fails leaves its error in the store, and the others, which look there between
two batches and while they wait, end with it too. With gloo a barrier also fails at once where the
connection to a process that was killed ends, on whatever machine it ran. NCCL does not notice that:
the launcher ends the processes of the machine where one was killed, which tell those of the others.

Training itself has collective operations of its own; nothing of this is used there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator, PartialState

from impasto import errors
from impasto.data.engines.process_group import ProcessGroup, SingleProcess
from impasto.datasets.store_keys import StoreKeys
from impasto.errors import ImpastoError, Interrupted, RunError
from impasto.parsing import parse_json
from impasto.progress import Advance, Progress

_LOOKS_EVERY_S = 0.2
_LINGERS_S = 20.0
"""How long a process that fails waits for the others to have heard why."""

PIECE_BYTES = 4 << 20
"""The most of a text under one key: PyTorch's TCPStore closes the connection over 8 MiB."""

_LOST = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL error")


def is_process_loss(error: BaseException) -> bool:
    """Whether an exchange between processes failed because one of them is gone."""
    return isinstance(error, torch.distributed.DistError) or any(
        words in str(error) for words in _LOST
    )


_KEYS = StoreKeys()


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
        keys: Where they exchange texts: those of this process, if not given.
    """

    def __init__(
        self, rank: int, size: int, local_rank: int, keys: StoreKeys | None = None
    ) -> None:
        self.rank, self.size, self.is_local_first = rank, size, local_rank == 0
        local = os.environ.get("LOCAL_WORLD_SIZE", "")
        self.local_size = int(local) if local.isdigit() and int(local) else size
        self._local_rank = local_rank
        store: Any = torch.distributed.distributed_c10d._get_default_store()
        self._store = store
        self._keys = keys or _KEYS
        self._looked = 0.0

    def gather(self, text: str) -> list[str]:
        """The text of each process, by rank.

        Raises:
            ImpastoError: Another process has failed, with its error.
            RuntimeError: Another process is gone.
        """
        prefix = self._keys.next_round()
        pieces = _pieces(text)
        try:
            if not self._keys.is_even:
                self._begin_missing_barriers()
            for number, piece in enumerate(pieces):
                self._store.set(f"{prefix}/{self.rank}/{number}", piece)
            self._store.set(f"{prefix}/{self.rank}", str(len(pieces)))
            self._wait_for_all(prefix)
            texts = [self._text_of(f"{prefix}/{rank}") for rank in range(self.size)]
            self._wait_for_all()  # the process that keeps the store may end after this
        except RuntimeError:
            self.raise_told()  # that one told why, and has ended since
            raise
        with contextlib.suppress(RuntimeError):  # not every kind of store can delete keys
            self._store.delete_key(f"{prefix}/{self.rank}")
            for number in range(len(pieces)):
                self._store.delete_key(f"{prefix}/{self.rank}/{number}")
        return texts

    def _text_of(self, key: str) -> str:
        number = int(self._store.get(key))
        return b"".join(self._store.get(f"{key}/{n}") for n in range(number)).decode()

    def raise_fault(self) -> None:
        """Look whether another process has failed, every fifth of a second.

        Raises:
            ImpastoError: One has.
        """
        now = time.monotonic()
        if now - self._looked >= _LOOKS_EVERY_S:
            self._looked = now
            self._look()

    def raise_told(self) -> None:
        """Look whether another process has failed, where the store may be gone with it.

        Raises:
            ImpastoError: One has.
        """
        with contextlib.suppress(RuntimeError):
            self._look()

    def tell(self, error: BaseException, *, wait: bool) -> None:
        """Have the others end with an error of this process; what cannot be told is not.

        Args:
            error: The error.
            wait: Whether to give them time to hear of it: the launcher ends them when this process
                has ended.
        """
        fault, heard = self._keys.of("fault"), self._keys.of("heard")
        claimed = self._keys.of("fault-claimed")
        self._keys.renew()
        told = {"rank": self.rank, "host": socket.gethostname(), **_told_of(error)}
        with contextlib.suppress(RuntimeError):  # the process that keeps the store is gone
            if self._store.add(claimed, 1) > 1:
                self._store.add(heard, 1)  # another one failed first, and says so
                return
            self._store.set(fault, json.dumps(told))
            until = time.monotonic() + (_LINGERS_S if wait and not told["is_loss"] else 0.0)
            while time.monotonic() < until and self._store.add(heard, 0) < self.size - 1:
                time.sleep(0.02)

    def _wait_for_all(self, prefix: str | None = None) -> None:
        """A barrier that ends early where a process has failed.

        Args:
            prefix: Under which each process has put a key before, for the first barrier of an
                exchange.
        """
        if self._device_ids() is not None and prefix is not None:
            # NCCL's first barrier makes the communicator, and looks at nothing until all are there
            keys = [f"{prefix}/{rank}" for rank in range(self.size)]
            self._wait_until(lambda: self._store.check(keys))
        self._barrier()
        self._look()

    def _barrier(self) -> None:
        self._keys.barriers += 1
        work: Any = torch.distributed.barrier(device_ids=self._device_ids(), async_op=True)
        self._wait_until(work.is_completed)
        work.wait()

    def _begin_missing_barriers(self) -> None:
        """Begin those that others began before an error, or they would stand for the next ones."""
        prefix = self._keys.of("barriers")
        keys = [f"{prefix}/{rank}" for rank in range(self.size)]
        self._store.set(keys[self.rank], str(self._keys.barriers))
        self._wait_until(lambda: self._store.check(keys))
        most = max(int(self._store.get(key)) for key in keys)
        while self._keys.barriers < most:
            self._barrier()
        self._keys.is_even = True

    def _wait_until(self, is_done: Callable[[], bool]) -> None:
        pause = 0.001
        while not is_done():
            self.raise_fault()
            time.sleep(pause)
            pause = min(2 * pause, 0.1)

    def _device_ids(self) -> list[int] | None:
        return [self._local_rank] if "nccl" in torch.distributed.get_backend() else None

    def _look(self) -> None:
        fault = self._keys.of("fault")
        if not self._store.check([fault]):
            return
        told = parse_json(self._store.get(fault).decode(), halves=True)
        self._store.add(self._keys.of("heard"), 1)
        self._keys.renew()
        raise _error_of(told, self.size)


def _pieces(text: str) -> list[bytes]:
    data = text.encode()
    return [data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES)]


class PeerError(Exception):
    """Marks an error of another process, which needs no telling."""


_IS_TOLD = "is_told_to_the_other_processes"
"""An attribute of errors that `ending_together` has told: one that is outside need not again."""


def _told_of(error: BaseException) -> dict[str, Any]:
    """What the other processes need of an error."""
    known = isinstance(error, ImpastoError)
    kind = type(error).__name__ if known else ""
    number = 0
    if isinstance(error, KeyboardInterrupt):
        kind, number = Interrupted.__name__, int(getattr(error, "number", signal.SIGINT))
    elif isinstance(error, Interrupted):
        number = error.exit_code - 128
    message = str(error) if known else f"{type(error).__name__}: {error}".rstrip(": ")
    if number and not known:
        message = f"Stopped by {signal.Signals(number).name}."
    is_loss = isinstance(error, Exception) and not known and is_process_loss(error)
    return {"kind": kind, "message": message, "signal": number, "is_loss": is_loss}


def _error_of(told: dict[str, Any], size: int) -> ImpastoError:
    """The error of another process as this one's own: of the same class, so of the same code."""
    who = f"process {told['rank'] + 1} of {size}, on {told['host']}"
    error = _error_in_words(told, who)
    error.__cause__ = PeerError(who)
    return error


def _error_in_words(told: dict[str, Any], who: str) -> ImpastoError:
    if told["is_loss"]:  # it is not known which one, and not the one that noticed
        return RunError(
            "Another process of this run has ended, so this one stops; its own message says why."
        )
    message = f"{told['message']} (Said by {who}.)"
    if told["signal"]:
        return Interrupted(message, told["signal"])
    if not told["kind"]:
        return RunError(
            f"{who[0].upper()}{who[1:]}, has ended: {told['message']}. So this one stops."
        )
    try:
        error: ImpastoError = getattr(errors, told["kind"], RunError)(message)
    except TypeError:  # a class that takes more than words
        error = RunError(message)
    return error


@contextlib.contextmanager
def ending_together(group: ProcessGroup) -> Iterator[None]:
    """Have an error of this process end all processes of the run, and the other way round.

    An error that the others have too, such as a missing folder, each of them may say itself.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(group, DistributedGroup) and not _is_shared(error):
            if is_process_loss(error):
                group.raise_told()
            vars(error)[_IS_TOLD] = True
            group.tell(error, wait=isinstance(error, Exception))
        raise


def _is_shared(error: BaseException) -> bool:
    """Whether all processes have an error: told by this one or by another."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PeerError) or _IS_TOLD in vars(cause):
            return True
        cause = cause.__cause__
    return False


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
