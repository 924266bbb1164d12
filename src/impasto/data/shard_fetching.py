"""Fetches whole shards from an object store in a thread, in the order in which they are needed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Protocol

from impasto.errors import ImpastoError
from impasto.storage.copies import LIMIT_VARIABLE

_AT_ONCE = 2


class Fetch(Protocol):
    """Copies a shard to this machine; False where there is no room for it."""

    def __call__(self, shard: str) -> bool:
        """Fetch a shard by its name."""


class ShardFetcher:
    """Knows which shards are copied to this machine, and has others copied.

    What cannot be fetched is read by rows instead, where the fault shows if it stays.

    Args:
        fetch: Copies a shard.
        note: Is told, once, why not all are copied.
        place: What the folder of shards is called in that.
    """

    def __init__(self, fetch: Fetch, note: Callable[[str], None], place: str) -> None:
        self._fetch, self._note, self._place = fetch, note, place
        self._is_told = False
        self._here: set[str] = set()
        self._asked: set[str] = set()
        self._waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0

    def is_here(self, shard: str) -> bool:
        """Whether a shard is copied; if not, it is fetched when those asked for before are."""
        if shard in self._here:
            return True
        with self._lock:
            if shard not in self._asked:
                self._asked.add(shard)
                self._waiting.put(shard)
                if self._threads < _AT_ONCE:
                    self._threads += 1
                    threading.Thread(target=self._work, name="fetching", daemon=True).start()
        return False

    def forget(self, shard: str) -> None:
        """Take a shard for not copied."""
        with self._lock:
            self._here.discard(shard)
            self._asked.discard(shard)

    def _work(self) -> None:
        """Fetch what is asked for, until nothing is."""
        while True:
            with self._lock:
                try:
                    shard = self._waiting.get_nowait()
                except queue.Empty:
                    self._threads -= 1
                    return
            try:
                if self._fetch(shard):
                    self._here.add(shard)
                else:
                    self._tell(
                        f"Not all shards of {self._place} have room on this machine; the others "
                        f"are read row by row. {LIMIT_VARIABLE} says how many GiB copies may take."
                    )
            except (OSError, ImpastoError) as error:
                self._tell(f"{error} Shards that are not copied are read row by row.")

    def _tell(self, words: str) -> None:
        if not self._is_told:
            self._is_told = True
            self._note(words)
