"""Fetches whole shards from an object store in threads, in the order in which they are needed."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Protocol

from impasto.errors import ImpastoError
from impasto.storage.copies import LIMIT_VARIABLE

_AT_ONCE = 4
WORTH_WAITING = 256 << 20
"""Bytes that readers wait for, a second or two; if more are ahead, rows are read instead."""

FIRST_PAUSE_S = 60.0
"""Seconds after a fault until a shard is requested again; doubled after each further one."""
_LONGEST_PAUSE_S = 3600.0
_NEVER = (math.inf, 0.0)


class Fetch(Protocol):
    """Copies a shard to this machine; returns False if there is no room for it."""

    def __call__(self, shard: str) -> bool:
        """Fetch a shard by its name; return False if there is no room for it."""


class ShardFetcher:
    """Tracks which shards are copied to this machine, and copies others in threads.

    A shard that cannot be fetched is read by rows instead, which shows the fault if it persists,
    and is requested again a minute later. A shard for which there is no room is read by rows for
    the whole run.

    Args:
        fetch: Copies a shard.
        note: Receives a message, once, on why not all shards are copied.
        name: What the folder of shards is called in that message.
    """

    def __init__(self, fetch: Fetch, note: Callable[[str], None], name: str) -> None:
        self._fetch, self._note, self._name = fetch, note, name
        self._is_told = False
        self._asked: dict[str, Future[bool]] = {}
        self._faulty: dict[str, tuple[float, float]] = {}  # when to ask again, and the pause until
        self._waiting: queue.SimpleQueue[tuple[str, int, Future[bool]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = self._outstanding = 0

    def are_here(self, sizes: Mapping[str, int]) -> dict[str, bool]:
        """Return which of some shards are copied; the others are queued for fetching.

        Waits for a shard only if few bytes are to be fetched.

        Args:
            sizes: The bytes of each shard.
        """
        asked = {shard: self._ask(shard, size) for shard, size in sizes.items()}
        return {shard: self._is_here(future) for shard, future in asked.items()}

    def forget(self, shard: str) -> None:
        """Treat a shard as not copied."""
        with self._lock:
            self._asked.pop(shard, None)
            self._faulty.pop(shard, None)

    def refuse(self, shard: str) -> None:
        """Treat a shard as not copied, and do not fetch it again."""
        refused: Future[bool] = Future()
        refused.set_result(False)
        with self._lock:
            self._asked[shard] = refused
            self._faulty.pop(shard, None)

    def _is_here(self, future: Future[bool]) -> bool:
        """Return whether a shard is copied; wait for it if few bytes are to be fetched."""
        return (future.done() or self._outstanding <= WORTH_WAITING) and future.result()

    def _ask(self, shard: str, size: int) -> Future[bool]:
        with self._lock:
            known = self._asked.get(shard)
            if known is not None and time.monotonic() < self._faulty.get(shard, _NEVER)[0]:
                return known
            future = self._asked[shard] = Future()
            if shard in self._faulty:  # no further request while this one runs
                self._faulty[shard] = (math.inf, self._faulty[shard][1])
            self._outstanding += size
            self._waiting.put((shard, size, future))
            if self._threads < _AT_ONCE:
                self._threads += 1
                threading.Thread(target=self._work, name="fetching", daemon=True).start()
        return future

    def _work(self) -> None:
        """Fetch the shards in the queue until it is empty."""
        while True:
            with self._lock:
                try:
                    shard, size, future = self._waiting.get_nowait()
                except queue.Empty:
                    self._threads -= 1
                    return
            is_here = False
            try:
                is_here = self._fetch(shard)
                if not is_here:
                    self._tell(
                        f"Not all shards of {self._name} fit on this machine; the others are read "
                        f"row by row. {LIMIT_VARIABLE} sets how many GiB copies may take."
                    )
            except (OSError, ImpastoError) as error:
                self._tell(f"{error} Shards that are not copied are read row by row.")
                self._ask_again_later(shard)
            else:
                self._faulty.pop(shard, None)
            finally:
                with self._lock:
                    self._outstanding -= size
                future.set_result(is_here)

    def _ask_again_later(self, shard: str) -> None:
        """Schedule a faulty shard for a later fetch: a busy store recovers, a full disk may not."""
        with self._lock:
            _, before = self._faulty.get(shard, _NEVER)
            pause = min(max(2 * before, FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            self._faulty[shard] = (time.monotonic() + pause, pause)

    def _tell(self, message: str) -> None:
        if not self._is_told:
            self._is_told = True
            self._note(message)
