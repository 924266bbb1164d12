"""Has a run encode what no other program encodes just now, and waits for what another does.

The first process of those that share the cache claims for all of them (`encoding_claims.py`), and
says what is theirs.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from impasto import locks
from impasto.data.caching.device_encoding import Failures, Order
from impasto.data.caching.encoding_claims import EncodingClaims, Keys, Taken
from impasto.data.caching.folder_claims import FolderClaims
from impasto.data.caching.latent_cache import LatentCache, LatentKeys
from impasto.data.caching.latent_orders import Lacks, flags_of, ordered, passed_on, still_lacking
from impasto.data.caching.stored_claims import StoredClaims
from impasto.data.engines.process_group import CacheShare
from impasto.data.records import PlannedImage
from impasto.errors import StorageError
from impasto.lock_file import STALE_S, LockHolder
from impasto.parsing import parse_json
from impasto.progress import Progress, counted, slow_stage
from impasto.remote_paths import is_remote, shown

COUNTED_EVERY_S = 10.0
"""Seconds after which is counted again what another program has made."""


@dataclass(frozen=True)
class Unclaimed:
    """Encodes what a cache lacks, and nobody else is about to encode.

    Attributes:
        cache: The cache.
        progress: Is told of waiting.
        failures: What cannot be encoded.
        share: What this process does of it.
    """

    cache: LatentCache
    progress: Progress
    failures: Failures
    share: CacheShare

    def are_all_claimed(self, keys: Sequence[LatentKeys | None], lacks: Lacks) -> bool:
        """Whether other programs encode just now all that is lacking; all processes call it.

        Args:
            keys: Of each image.
            lacks: What is lacking, as the processes have agreed.
        """
        found = "nothing lacks"
        if self.share.is_first and self.share.claims and lacks.any():
            found = "free"
            with contextlib.suppress(StorageError):  # as without others, where nothing can be put
                theirs = flags_of(self._claims().of_others(), keys, lacks)
                found = "claimed" if np.array_equal(theirs, lacks) else "free"
        told = self.share.group.gather(found)
        return "claimed" in told and "free" not in told

    def encode(
        self,
        planned: Sequence[PlannedImage],
        keys: Sequence[LatentKeys | None],
        lacks: Lacks,
        carry_out: Callable[[list[Order]], set[Path]],
        begin: int,
    ) -> tuple[list[Order], set[Path]]:
        """Encode what is lacking; all processes of the run call it.

        What another program has not made in the end, of what it claimed, is encoded here. So each
        program finds the damaged images itself, and looks at each once. What was to be made of an
        image that fails is made of the next one that has the same key.

        Args:
            planned: The images.
            keys: Of each.
            lacks: What is lacking, as the processes have agreed.
            carry_out: Encodes this process's part of orders, and writes it; returns the images that
                were made again in float32.
            begin: How many failures there were when all processes had the same.

        Returns:
            What was to be encoded by those that share the cache, and the images that this process
            has made again in float32.
        """
        claims = self._claims()
        orders: list[Order] = []
        remade: set[Path] = set()
        left = lacks
        while "True" in self.share.group.gather(str(left.any())):
            with self._claimed(claims, keys, left) as taken:
                found = [flags_of(named, keys, left) for named in (taken.lacking, taken.own)]
                lacking, own = self.share.agreed(np.stack(found))
                now = ordered(planned, keys, own)
                remade |= carry_out(now) if now else set()
                self.failures.join(begin, self.share)  # after it, all have written what they made
                self._tell(claims, taken)
            orders += now
            failed = self.failures.paths
            theirs, unmade = lacking & ~own, lacking.copy()
            for index in np.flatnonzero(own.any(axis=1)).tolist():
                unmade[index] &= ~own[index] | (planned[index].record.path in failed)
            left = self.share.agreed(passed_on(unmade, planned, keys, failed))
            has_more = bool((left & ~theirs).any())
            if self.share.is_first and left.any() and not has_more:
                self._wait(claims, taken, keys, left)
                self.cache.take_in(*claims.told(taken))
        return orders, remade

    def _claims(self) -> EncodingClaims:
        folder = self.cache.folder
        return StoredClaims(folder) if is_remote(folder) else FolderClaims(folder)

    def _tell(self, claims: EncodingClaims, taken: Taken) -> None:
        """Say what those that share the cache have written of what was claimed for them."""
        told = self.share.group.gather(json.dumps(self.cache.take_written()))
        if self.share.is_first:
            written = [parse_json(told[rank]) for rank in self.share.members]
            latents, masks = ([name for own in written for name in own[kind]] for kind in (0, 1))
            claims.tell(taken, (latents, masks))

    @contextlib.contextmanager
    def _claimed(
        self, claims: EncodingClaims, keys: Sequence[LatentKeys | None], left: Lacks
    ) -> Iterator[Taken]:
        """Claim for all that share the cache; nothing where this process is not the first."""
        if not (self.share.is_first and left.any()):
            yield Taken(frozenset(), frozenset())
            return

        def lacking() -> Keys:
            self.cache.refresh()
            return still_lacking(left, keys, self.cache)

        if not self.share.claims:
            found = lacking()
            yield Taken(found, found)
            return
        doing = f"encoding into {shown(self.cache.folder)}"
        patience = locks.LockWaiter(self.progress.note, doing)

        def waits(holder: LockHolder) -> None:
            patience(holder)
            self.share.group.raise_fault()

        with claims.taken(lacking, waits) as taken:
            yield taken

    def _wait(
        self,
        claims: EncodingClaims,
        taken: Taken,
        keys: Sequence[LatentKeys | None],
        left: Lacks,
    ) -> None:
        """Wait until all is there, or another program has ended with its claim, or was killed.

        Raises:
            StorageError: The store has not answered for two minutes.
        """
        images, total = counted(int(left.any(axis=1).sum()), "images"), int(left.sum())
        patience = locks.LockWaiter(self.progress.note, f"encoding {images}")
        looked = answered = time.monotonic()
        seen = 0
        with slow_stage(self.progress, "Waiting for another program", total, "latents") as advance:
            while seen < total:
                self.share.group.raise_fault()
                before = seen
                try:
                    living = claims.living(taken)
                    if len(living) < len(taken.rivals):
                        return
                    patience(living[0])
                    if time.monotonic() - looked > COUNTED_EVERY_S:
                        self.cache.refresh()
                        seen = total - len(still_lacking(left, keys, self.cache))
                        looked = time.monotonic()
                    answered = time.monotonic()
                except StorageError:  # a look that fails says nothing
                    if time.monotonic() - answered > STALE_S:
                        raise
                advance(seen - before)
                time.sleep(claims.looks_every_s if seen < total else 0)
