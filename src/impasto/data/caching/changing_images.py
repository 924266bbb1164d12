"""Checks images whose latents cannot be cached, since they change each time they are shown."""

from __future__ import annotations

import contextlib

import numpy as np

from impasto.data.caching.device_encoding import Failures
from impasto.data.caching.latent_cache import LatentCache
from impasto.data.engines.engine import Engine
from impasto.data.engines.process_group import CachePeers
from impasto.data.engines.stages import Failure, in_chunks
from impasto.data.pixels.rendering import Decode
from impasto.data.planning.planned_table import PlannedTable
from impasto.errors import StorageError
from impasto.progress import Progress


def decode_changing(
    portion: PlannedTable,
    cache: LatentCache,
    failures: Failures,
    progress: Progress,
    engine: Engine,
    peers: CachePeers,
) -> None:
    """Decode each image whose latents cannot be cached once, so that training finds no damaged one.

    Args:
        portion: Images; those without augmentation are ignored. The same in all processes of a run.
        cache: Remembers which images were decoded before, by any command.
        failures: Receives the images that cannot be decoded.
        progress: Shows the progress.
        engine: Runs the decoding.
        peers: The processes that divide the work.
    """
    changes = portion.records.per_use(lambda use: use.subset.augmentation is not None)
    rows = np.flatnonzero(changes)
    rows = rows[portion.records.select(rows).first_of_paths()]
    if not len(rows):
        return
    known = cache.decoded
    reasons = known.outcomes(portion.records.select(rows))
    for row, reason in zip(rows.tolist(), reasons, strict=True):
        if reason:
            failures.add(portion[row], Failure(reason))
    waiting = rows[peers.agreed(np.array([reason is None for reason in reasons], np.bool_))]
    waiting = waiting[peers.part_of([1.0] * len(waiting))]
    if not len(waiting):
        return
    executor = engine.executor(Decode())
    records = portion.records.select(waiting)
    image_rows = iter(waiting.tolist())
    with progress.stage(peers.named("Checking images"), len(records), "images") as advance:
        for outcomes in executor.run(in_chunks(records, 4)):
            for record, outcome in outcomes:
                row = next(image_rows)
                with contextlib.suppress(StorageError):  # a lost record costs a decode
                    known.add(record, outcome)
                if isinstance(outcome, Failure):
                    failures.add(portion[row], outcome)
            advance(len(outcomes))
    with contextlib.suppress(StorageError):
        known.write()
