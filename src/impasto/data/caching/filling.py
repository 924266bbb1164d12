"""Fills the latent cache: decode in worker processes, encode on the device, write in a thread.

The processes of a run split the missing latents. They agree on whole batches, so the batches, and
with them the bits of the latents, are the same as with one process. Images that another program
has claimed are waited for (`data/caching/unclaimed.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from impasto import locks
from impasto.data.caching.changing_images import decode_changing
from impasto.data.caching.device_encoding import DeviceEncoder, Failures, Order
from impasto.data.caching.encoding import MomentsEncoder, said_of_remade
from impasto.data.caching.filled_portion import FilledPortion
from impasto.data.caching.latent_cache import CachedPlan, LatentCache, LatentKeys
from impasto.data.caching.latent_keys import KeyTable
from impasto.data.caching.latent_orders import (
    batches_of,
    cost_of,
    is_there,
    keys_of,
    lacks_of,
    portions_of,
    see_all,
    stamps_of,
    why_unread,
)
from impasto.data.caching.latent_writing import ShardWriter, shard_writer
from impasto.data.caching.npz_exchange import import_npz
from impasto.data.caching.order_encoding import encode_by_actors, stage_of
from impasto.data.caching.prepared import PreparedKeys
from impasto.data.caching.unclaimed import Unclaimed
from impasto.data.engines.engine import LOCAL, Engine
from impasto.data.engines.process_group import ALONE, CachePeers
from impasto.data.engines.stages import ErrorPolicy, Failure, default_workers
from impasto.data.pixels.rendering import Render
from impasto.data.planning.planned_table import PlannedTable
from impasto.data.records import FileStamp, PlannedImage, SkippedFile
from impasto.errors import DatasetError
from impasto.progress import Advance, Progress, SilentProgress, none_of

PROCESSES_FROM = 256  # images; for fewer, starting processes takes too long
_LOST = Failure(
    "its latents were removed from the cache while others were encoded", is_transient=True
)


def cache_latents(
    planned: Sequence[PlannedImage],
    cache: LatentCache,
    encoder: MomentsEncoder,
    progress: Progress | None = None,
    *,
    on_error: ErrorPolicy = "skip",
    workers: int | None = None,
    engine: Engine = LOCAL,
    peers: CachePeers = ALONE,
) -> CachedPlan:
    """Encode the images that are not in the cache; images that cannot be encoded are skipped.

    If killed at any moment, it loses at most two shards: the one being written and the one being
    filled. Images that change each time they are shown are only decoded, to find damaged ones.

    Args:
        planned: The images.
        cache: Where their latents are stored.
        encoder: The VAE's encoder.
        progress: Shows the progress.
        on_error: Whether to skip an image that cannot be used, or stop.
        workers: Processes that decode; None means as many as there are CPUs, and threads
            for a few images.
        engine: Runs the stages.
        peers: The processes that divide the work; all processes of a run call this with the same
            images and get the same plan.

    Raises:
        ConfigError: The engine's processes cannot make the encoder.
        DatasetError: No image is left, or `on_error` is `stop` and one cannot be used.
        StorageError: The disk is full or the folder cannot be written.
    """
    progress = progress or SilentProgress()
    cache.set_notify(progress.note)
    cache.remove_leftovers()
    table = PlannedTable.of(planned)
    kept_keys = PreparedKeys(
        cache.folder / "prepared", table, (encoder.source, encoder.fingerprint)
    )
    before = _known_plan(kept_keys, cache, on_error, peers)
    if before is not None:
        return before
    filler = _Filler(cache, encoder, progress, Failures(on_error), workers, engine, peers)
    portions = filler.fill_all([table[start:end] for start, end in portions_of(table)])
    if peers.is_first:
        cache.hashes.tidy()
    failures = filler.failures
    if not any(len(portion.keys) for portion in portions):
        raise _nothing_decoded(len(planned), failures)
    found = FilledPortion.joined(portions)
    plan = found.plan(table, failures.items, encoder)
    if not failures.may_pass and (peers.is_first or peers.group.is_local_first):
        kept_keys.write(plan, found.kept)
    return plan


def _known_plan(
    kept_keys: PreparedKeys, cache: LatentCache, on_error: ErrorPolicy, peers: CachePeers
) -> CachedPlan | None:
    """Return an earlier run's plan for the same images, or None unless every process has it."""
    before = kept_keys.read(cache)
    is_known = before is not None and not (before.skipped and on_error == "stop")
    everybody_knows = "False" not in peers.group.gather(str(is_known))
    return before if everybody_knows else None


def _nothing_decoded(images: int, failures: Failures) -> DatasetError:
    reasons = "; ".join(f"{item.path.name}: {item.reason}" for item in failures.items[:3])
    return DatasetError(f"{none_of(images, 'images')} could be decoded ({reasons}).")


@dataclass(frozen=True)
class _Filler:
    """Encodes portions of images into a cache."""

    cache: LatentCache
    encoder: MomentsEncoder
    progress: Progress
    failures: Failures
    workers: int | None
    engine: Engine
    peers: CachePeers

    def fill_all(self, portions: Sequence[PlannedTable]) -> list[FilledPortion]:
        """Encode all portions; those that other programs are encoding now are postponed."""
        filled: dict[int, FilledPortion] = {}
        left, postponed = deque(range(len(portions))), 0
        while left:
            number = left.popleft()
            portion = self.fill(portions[number], may_postpone=postponed < len(left))
            if portion is None:
                left.append(number)
                postponed += 1
            else:
                filled[number], postponed = portion, 0
        return [filled[number] for number in range(len(portions))]

    def fill(self, portion: PlannedTable, *, may_postpone: bool) -> FilledPortion | None:
        """Encode those images of a portion that are not in the cache.

        Args:
            portion: The images.
            may_postpone: Whether to return None if other programs are encoding all missing latents.
        """
        cache, encoder, failures = self.cache, self.encoder, self.failures
        planned, begin = list(portion), len(failures.items)
        stamps = stamps_of(planned, encoder.npz_endings)
        digests = self._digests(stamps)
        keys = [keys_of(image, digests, encoder.source) for image in planned]
        own = set(keys)
        refused = self._import_npz(planned, keys, digests, stamps.keys() - digests.keys())
        lacks = self.peers.agreed(lacks_of(planned, keys, cache))
        unclaimed = Unclaimed(cache, self.progress, failures, self.peers)
        if may_postpone and unclaimed.are_all_claimed(keys, lacks):
            return None
        for image, key in zip(planned, keys, strict=True):
            if key is None:
                failures.add(image, why_unread(image, digests))
        decode_changing(portion, cache, failures, self.progress, self.engine, self.peers)
        orders, remade = unclaimed.encode(
            planned, keys, lacks, lambda orders: _carry_out(orders, self), begin
        )
        failures.join(begin, self.peers)
        self._say_of_remade(len(remade), len({order.image.record.path for order in orders}))
        made = [
            *((planned[n], keys[n] or LatentKeys()) for n in np.flatnonzero(lacks.any(axis=1))),
            *((order.image, order.missing) for order in orders),
        ]
        good = [key for image, key in made if image.record.path not in failures.paths]
        see_all(good, cache, self.peers)
        kept = self._kept(planned, keys, begin)
        is_kept = np.zeros(len(planned), dtype=np.bool_)
        is_kept[[index for index, _, _ in kept]] = True
        identities = [
            (keys_of(image, digests, encoder.fingerprint) or key) if key in own else key
            for _, image, key in kept
        ]
        return FilledPortion(
            is_kept,
            KeyTable.of([key for _, _, key in kept]),
            KeyTable.of(identities),
            sum(order.image.record.path not in failures.paths for order in orders),
            tuple(refused),
        )

    def _kept(
        self, planned: Sequence[PlannedImage], keys: Sequence[LatentKeys | None], begin: int
    ) -> list[tuple[int, PlannedImage, LatentKeys]]:
        """Return the images that can be trained on, and record a failure for each of the others.

        An image is returned as its index in the portion, the image itself, and its keys.
        """
        failures = self.failures
        for image, key in zip(planned, keys, strict=True):
            if key is None or image.record.path in failures.paths:
                continue
            if not is_there(key, self.cache):
                failures.add(image, _LOST)
        failures.join(begin, self.peers)
        return [
            (index, image, key)
            for index, (image, key) in enumerate(zip(planned, keys, strict=True))
            if key is not None and image.record.path not in failures.paths
        ]

    def _digests(self, stamps: dict[Path, FileStamp]) -> dict[Path, str]:
        """Return the hashes of files; each process reads its part of those that are not known."""
        hashes, peers = self.cache.hashes, self.peers
        if peers.number > 1:
            own = list(stamps)[peers.rank :: peers.number]
            hashes.of({path: stamps[path] for path in own}, self.progress, tidy=False)
        if peers.group.size > 1:
            peers.wait()
            hashes.refresh()
        return hashes.of(stamps, self.progress, tidy=False, engine=self.engine)

    def _import_npz(
        self,
        planned: Sequence[PlannedImage],
        keys: list[LatentKeys | None],
        digests: dict[Path, str],
        unread: set[Path],
    ) -> list[SkippedFile]:
        """Import latents of sd-scripts; the first process writes them, the others find them."""
        if not any(image.record.subset.reads_npz for image in planned):
            return []

        def taken() -> list[SkippedFile]:
            if self.peers.number > 1:
                self.cache.refresh()
            endings = self.encoder.npz_endings
            return import_npz(planned, keys, digests, self.cache, self.progress, endings, unread)

        return self.peers.first_then_others(taken)

    def _say_of_remade(self, remade: int, total: int) -> None:
        """Report how many images overflowed in half precision, in all processes."""
        found = self.peers.group.gather(str(remade))
        everywhere = sum(int(found[rank]) for rank in self.peers.members)
        if everywhere:
            self.progress.note(said_of_remade(everywhere, total))


def _carry_out(orders: Sequence[Order], filler: _Filler) -> set[Path]:
    """Encode this process's part of the orders, and write shards in a thread.

    Returns the images that were encoded again in float32.
    """
    cache, progress, peers = filler.cache, filler.progress, filler.peers
    batches = batches_of(orders, filler.encoder.batch_size)
    batches = batches[peers.part_of([cost_of(batch) for batch in batches])]
    if not batches:
        return set()
    patience = locks.LockWaiter(progress.note, f"encoding into {cache.folder}")
    stage = peers.named("Encoding latents")
    with (
        locks.SharedLock(cache.folder, "encoding images", patience),
        progress.stage(stage, sum(map(len, batches)), "images") as advance,
        shard_writer(cache) as writer,
    ):
        actors = filler.engine.actors
        if actors is None:
            return _encode_here(batches, filler, writer, advance)
        return encode_by_actors(
            actors,
            stage_of(filler.encoder),
            batches,
            writer,
            filler.failures,
            workers=filler.workers,
            advance=advance,
        )


def _encode_here(
    batches: Sequence[Sequence[Order]], filler: _Filler, writer: ShardWriter, advance: Advance
) -> set[Path]:
    """Decode ahead in processes and encode in this one; return the images remade in float32."""
    executor = filler.engine.executor(
        Render(),
        workers=filler.workers,
        usual=default_workers(filler.peers.group.local_size),
        processes=filler.workers is not None or sum(map(len, batches)) >= PROCESSES_FROM,
    )
    rendered = executor.run([order.image for order in batch] for batch in batches)
    device = DeviceEncoder(filler.cache, filler.encoder, writer, filler.failures)
    for batch, outcomes in zip(batches, rendered, strict=True):
        good = []
        for order, (_, outcome) in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Failure):
                filler.failures.add(order.image, outcome)
            else:
                good.append((order, outcome))
        device.take(good)
        advance(len(batch))
    device.finish()
    return device.remade
