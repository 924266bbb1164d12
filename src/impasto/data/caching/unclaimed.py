"""Encodes the images that no other program has claimed, and waits for those that another has.

Among the processes that share the cache, the first claims for all (`encoding_claims.py`) and
tells the others what they may encode.
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
from impasto.data.caching.encoding_claims import ClaimOutcome, EncodingClaims, Keys
from impasto.data.caching.folder_claims import FolderClaims
from impasto.data.caching.latent_cache import LatentCache, LatentKeys
from impasto.data.caching.latent_orders import Lacks, flags_of, ordered, passed_on, still_lacking
from impasto.data.caching.stored_claims import StoredClaims
from impasto.data.engines.process_group import CachePeers
from impasto.data.records import PlannedImage
from impasto.errors import StorageError
from impasto.lock_file import STALE_S, LockHolder
from impasto.parsing import parse_json
from impasto.progress import Progress, counted, slow_stage
from impasto.remote_paths import is_remote, shown

COUNTED_EVERY_S = 10.0
"""Seconds between two counts of what another program has made, while waiting for it."""


@dataclass(frozen=True)
class Unclaimed:
    """Encodes the keys that a cache lacks and no other program has claimed.

    Attributes:
        cache: The cache.
        progress: Shows notes and progress while waiting.
        failures: Receives the images that cannot be encoded.
        peers: The processes that divide the work.
    """

    cache: LatentCache
    progress: Progress
    failures: Failures
    peers: CachePeers

    def are_all_claimed(self, keys: Sequence[LatentKeys | None], lacks: Lacks) -> bool:
        """Return whether others have claimed all that is lacking; every process must call this.

        Args:
            keys: The keys of each image.
            lacks: What is lacking, as the processes have agreed.
        """
        found = "nothing lacks"
        if self.peers.is_first and self.peers.claims and lacks.any():
            found = "free"
            with contextlib.suppress(StorageError):  # if the store fails, encode as if alone
                theirs = flags_of(self._claims().of_others(), keys, lacks)
                found = "claimed" if np.array_equal(theirs, lacks) else "free"
        told = self.peers.group.gather(found)
        return "claimed" in told and "free" not in told

    def encode(
        self,
        planned: Sequence[PlannedImage],
        keys: Sequence[LatentKeys | None],
        lacks: Lacks,
        carry_out: Callable[[list[Order]], set[Path]],
        begin: int,
    ) -> tuple[list[Order], set[Path]]:
        """Encode what is lacking; every process of the run must call this.

        If another program ends without making all that it claimed, the rest is encoded here. So
        each program finds the damaged images itself, and tries each once. If an image fails, its
        keys pass to the next image that has them.

        Args:
            planned: The images.
            keys: The keys of each image.
            lacks: What is lacking, as the processes have agreed.
            carry_out: Encodes and writes this process's part of the orders; returns the images
                that were encoded again in float32.
            begin: Number of failures that all processes already had in common.

        Returns:
            The orders of all processes that share the cache, and the images that this process
            encoded again in float32.
        """
        claims = self._claims()
        orders: list[Order] = []
        remade: set[Path] = set()
        left = lacks
        while "True" in self.peers.group.gather(str(left.any())):
            with self._claimed(claims, keys, left) as taken:
                found = [flags_of(named, keys, left) for named in (taken.lacking, taken.own)]
                lacking, own = self.peers.agreed(np.stack(found))
                now = ordered(planned, keys, own)
                remade |= carry_out(now) if now else set()
                self.failures.join(begin, self.peers)  # then all have written their shards
                self._tell(claims, taken)
            orders += now
            failed = self.failures.paths
            theirs, unmade = lacking & ~own, lacking.copy()
            for index in np.flatnonzero(own.any(axis=1)).tolist():
                unmade[index] &= ~own[index] | (planned[index].record.path in failed)
            left = self.peers.agreed(passed_on(unmade, planned, keys, failed))
            has_more = bool((left & ~theirs).any())
            if self.peers.is_first and left.any() and not has_more:
                self._wait(claims, taken, keys, left)
                self.cache.take_in(*claims.told(taken))
        return orders, remade

    def _claims(self) -> EncodingClaims:
        folder = self.cache.folder
        return StoredClaims(folder) if is_remote(folder) else FolderClaims(folder)

    def _tell(self, claims: EncodingClaims, taken: ClaimOutcome) -> None:
        """Publish the shards that the processes sharing the cache have written for the claim."""
        told = self.peers.group.gather(json.dumps(self.cache.take_written()))
        if self.peers.is_first:
            written = [parse_json(told[rank]) for rank in self.peers.members]
            latents, masks = ([name for own in written for name in own[kind]] for kind in (0, 1))
            claims.tell(taken, (latents, masks))

    @contextlib.contextmanager
    def _claimed(
        self, claims: EncodingClaims, keys: Sequence[LatentKeys | None], left: Lacks
    ) -> Iterator[ClaimOutcome]:
        """Claim for all processes that share the cache, if this is the first of them."""
        if not (self.peers.is_first and left.any()):
            yield ClaimOutcome(frozenset(), frozenset())
            return

        def lacking() -> Keys:
            self.cache.refresh()
            return still_lacking(left, keys, self.cache)

        if not self.peers.claims:
            found = lacking()
            yield ClaimOutcome(found, found)
            return
        doing = f"encoding into {shown(self.cache.folder)}"
        patience = locks.LockWaiter(self.progress.note, doing)

        def waits(holder: LockHolder) -> None:
            patience(holder)
            self.peers.group.raise_fault()

        with claims.taken(lacking, waits) as taken:
            yield taken

    def _wait(
        self,
        claims: EncodingClaims,
        taken: ClaimOutcome,
        keys: Sequence[LatentKeys | None],
        left: Lacks,
    ) -> None:
        """Wait until the cache lacks nothing, or a rival's claim ends, also because it was killed.

        Raises:
            StorageError: The store has not answered for two minutes.
        """
        images, total = counted(int(left.any(axis=1).sum()), "images"), int(left.sum())
        patience = locks.LockWaiter(self.progress.note, f"encoding {images}")
        looked = answered = time.monotonic()
        seen = 0
        with slow_stage(self.progress, "Waiting for another program", total, "latents") as advance:
            while seen < total:
                self.peers.group.raise_fault()
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
                except StorageError:  # a single failed check means nothing
                    if time.monotonic() - answered > STALE_S:
                        raise
                advance(seen - before)
                time.sleep(claims.looks_every_s if seen < total else 0)
