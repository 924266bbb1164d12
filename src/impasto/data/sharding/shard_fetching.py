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
"""Bytes that are waited for, a second or two; behind more of them, rows are read instead."""

FIRST_PAUSE_S = 60.0
"""Seconds after a fault until a shard is asked for again; twice as many after each further one."""
_LONGEST_PAUSE_S = 3600.0
_NEVER = (math.inf, 0.0)


class Fetch(Protocol):
    """Copies a shard to this machine; False where there is no room for it."""

    def __call__(self, shard: str) -> bool:
        """Fetch a shard by its name."""


class ShardFetcher:
    """Knows which shards are copied to this machine, and has others copied.

    What cannot be fetched is read by rows instead, where the fault shows if it stays, and is asked
    for again a minute later. What has no room is read by rows for the whole run.

    Args:
        fetch: Copies a shard.
        note: Is told, once, why not all are copied.
        name: What the folder of shards is called in that.
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
        """Which of some shards are copied; the others are fetched after those asked for before.

        Args:
            sizes: The bytes of each shard.
        """
        asked = {shard: self._ask(shard, size) for shard, size in sizes.items()}
        return {shard: self._is_here(future) for shard, future in asked.items()}

    def forget(self, shard: str) -> None:
        """Take a shard for not copied."""
        with self._lock:
            self._asked.pop(shard, None)
            self._faulty.pop(shard, None)

    def refuse(self, shard: str) -> None:
        """Take a shard for not copied, and do not fetch it again."""
        refused: Future[bool] = Future()
        refused.set_result(False)
        with self._lock:
            self._asked[shard] = refused
            self._faulty.pop(shard, None)

    def _is_here(self, future: Future[bool]) -> bool:
        """Whether a shard is copied; little enough is waited for."""
        return (future.done() or self._outstanding <= WORTH_WAITING) and future.result()

    def _ask(self, shard: str, size: int) -> Future[bool]:
        with self._lock:
            known = self._asked.get(shard)
            if known is not None and time.monotonic() < self._faulty.get(shard, _NEVER)[0]:
                return known
            future = self._asked[shard] = Future()
            if shard in self._faulty:  # not again while this goes on
                self._faulty[shard] = (math.inf, self._faulty[shard][1])
            self._outstanding += size
            self._waiting.put((shard, size, future))
            if self._threads < _AT_ONCE:
                self._threads += 1
                threading.Thread(target=self._work, name="fetching", daemon=True).start()
        return future

    def _work(self) -> None:
        """Fetch what is asked for, until nothing is."""
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
                        f"Not all shards of {self._name} have room on this machine; the others "
                        f"are read row by row. {LIMIT_VARIABLE} says how many GiB copies may take."
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
        """Have a shard with a fault fetched again: a busy store may be well, a full disk is not."""
        with self._lock:
            _, before = self._faulty.get(shard, _NEVER)
            pause = min(max(2 * before, FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            self._faulty[shard] = (time.monotonic() + pause, pause)

    def _tell(self, message: str) -> None:
        if not self._is_told:
            self._is_told = True
            self._note(message)
