"""Exchanges between the processes of a run while they prepare data.

Texts are exchanged through the store that PyTorch's processes found each other by, followed by a
barrier. So nothing is pickled, no GPU memory is needed, and an error can be reported at any time: a
process that fails writes its error to the store; the others check for it between batches and while
they wait, and end with the same error. With gloo, a barrier also fails at once when the connection
to a killed process closes, on whichever machine it ran. NCCL does not notice that: the launcher
ends the other processes of the machine, and these report it to those of other machines.

Training uses collective operations directly, and nothing from this module.
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
"""How long a failing process waits for the others to read its error."""

PIECE_BYTES = 4 << 20
"""Most bytes of a text under one key: PyTorch's TCPStore closes the connection over 8 MiB."""

_LOST = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL error")


def is_process_loss(error: BaseException) -> bool:
    """Return whether an exchange failed because another process has ended."""
    return isinstance(error, torch.distributed.DistError) or any(
        words in str(error) for words in _LOST
    )


_KEYS = StoreKeys()


def process_group(state: Accelerator | PartialState) -> ProcessGroup:
    """Return the group of the processes that accelerate knows of."""
    if state.num_processes == 1:
        return SingleProcess()
    return DistributedGroup(state.process_index, state.num_processes, state.local_process_index)


class DistributedGroup:
    """Several processes, on one machine or many.

    Args:
        rank: The number of this process.
        size: How many processes there are.
        local_rank: The number of this process among those of its machine.
        keys: Keys under which texts are exchanged; by default those shared by this whole process.
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
        """Send a text to all processes, and return the texts of all by rank.

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
            self._wait_for_all()  # the process that hosts the store may end after this
        except RuntimeError:
            self.raise_told()  # the other process reported its error, then ended
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
        """Raise the error of another process that has failed; checks at most every 0.2 seconds.

        Raises:
            ImpastoError: Another process has failed.
        """
        now = time.monotonic()
        if now - self._looked >= _LOOKS_EVERY_S:
            self._looked = now
            self._look()

    def raise_told(self) -> None:
        """Raise the error that another process reported, if the store can still be read.

        Raises:
            ImpastoError: Another process has failed.
        """
        with contextlib.suppress(RuntimeError):
            self._look()

    def tell(self, error: BaseException, *, wait: bool) -> None:
        """Report an error of this process to the others, so that they end with it too.

        Does nothing if the store is gone.

        Args:
            error: The error.
            wait: Whether to wait until the others have read it: the launcher kills them once this
                process has ended.
        """
        fault, heard = self._keys.of("fault"), self._keys.of("heard")
        claimed = self._keys.of("fault-claimed")
        self._keys.renew()
        told = {"rank": self.rank, "host": socket.gethostname(), **_told_of(error)}
        with contextlib.suppress(RuntimeError):  # the process that hosts the store is gone
            if self._store.add(claimed, 1) > 1:
                self._store.add(heard, 1)  # another process failed first, and has reported it
                return
            self._store.set(fault, json.dumps(told))
            until = time.monotonic() + (_LINGERS_S if wait and not told["is_loss"] else 0.0)
            while time.monotonic() < until and self._store.add(heard, 0) < self.size - 1:
                time.sleep(0.02)

    def _wait_for_all(self, prefix: str | None = None) -> None:
        """Wait for all processes, and stop early with an error if one has failed.

        Args:
            prefix: For the first barrier of an exchange, the prefix of the keys that each process
                has set before it.
        """
        if self._device_ids() is not None and prefix is not None:
            # NCCL's first barrier creates the communicator, which blocks until all take part
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
        """Start barriers that only others started before an error, so that later ones pair up."""
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
    """Marks an error received from another process, which is not to be reported again."""


_IS_TOLD = "is_told_to_the_other_processes"
"""Attribute set on errors that `ending_together` has reported, so that an outer call skips them."""


def _told_of(error: BaseException) -> dict[str, Any]:
    """Return the fields of an error from which other processes rebuild it."""
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
    """Rebuild the error of another process here: of the same class, so with the same exit code."""
    who = f"process {told['rank'] + 1} of {size}, on {told['host']}"
    error = _error_in_words(told, who)
    error.__cause__ = PeerError(who)
    return error


def _error_in_words(told: dict[str, Any], who: str) -> ImpastoError:
    if told["is_loss"]:  # the lost process is unknown; it is not the reporting one
        return RunError(
            "Another process of this run has ended, so this one stops; its own message says why."
        )
    message = f"{told['message']} (Reported by {who}.)"
    if told["signal"]:
        return Interrupted(message, told["signal"])
    if not told["kind"]:
        return RunError(
            f"{who[0].upper()}{who[1:]}, has ended: {told['message']}. So this one stops."
        )
    try:
        error: ImpastoError = getattr(errors, told["kind"], RunError)(message)
    except TypeError:  # a class that takes more than a message
        error = RunError(message)
    return error


@contextlib.contextmanager
def ending_together(group: ProcessGroup) -> Iterator[None]:
    """Run a block so that an error in any process of the run ends all of them.

    An error that all processes have by themselves, such as a missing folder, may be reported by
    each.
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
    """Return whether an error was already reported to all processes, by this one or by another."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PeerError) or _IS_TOLD in vars(cause):
            return True
        cause = cause.__cause__
    return False


class WatchfulProgress:
    """Shows progress, and stops work when another process has failed.

    Args:
        shown: The progress display to pass everything to.
        group: The processes.
    """

    def __init__(self, shown: Progress, group: ProcessGroup) -> None:
        self._shown, self._group = shown, group

    @contextlib.contextmanager
    def stage(self, description: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Open a stage; each advance checks for errors of other processes."""
        with self._shown.stage(description, total, unit) as advance:
            yield self._watching(advance)

    def note(self, message: str) -> None:
        """Show one line that remains on screen."""
        self._shown.note(message)

    def _watching(self, advance: Advance) -> Callable[[int], None]:
        def looked(number: int) -> None:
            self._group.raise_fault()
            advance(number)

        return looked
