"""Scans, plans and encodes the images of a run."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator, PartialState

from impasto.config.run import RunConfig
from impasto.data.caching.encoding import MomentsEncoder
from impasto.data.caching.filling import cache_latents
from impasto.data.caching.latent_cache import CachedPlan, LatentCache
from impasto.data.caching.latent_keys import KeyTable
from impasto.data.caching.latent_orders import digest_of
from impasto.data.engines.process_group import AFTERWARDS, ALONE, CachePeers, ProcessGroup, peers_of
from impasto.data.pixels.content_hashes import LATENTS as LATENTS
from impasto.data.planning.plan import Plan
from impasto.data.planning.planned_table import PlannedTable
from impasto.data.planning.regularisation import Balance, balance
from impasto.data.records import ImageRecord, PlannedImage
from impasto.data.scanning.scan import Scan
from impasto.datasets.build import (
    Survey,
    balance_of,
    plan_dataset,
    survey,
    validation_folders,
)
from impasto.datasets.distributed import WatchfulProgress, ending_together, process_group
from impasto.datasets.engines import open_engine
from impasto.datasets.sources import require_sources
from impasto.errors import DatasetError
from impasto.member_paths import plain
from impasto.progress import Progress, SilentProgress, counted
from impasto.remote_paths import shown

_ROUNDS = 10
"""How often regularisation images are balanced again after some could not be encoded."""


@dataclass(frozen=True)
class PreparedData:
    """The images of a run, encoded: those to train on and those held out.

    Attributes:
        scan: All images found, and the files that were skipped.
        plan: Buckets and crops of the training images.
        training: Training images that could be encoded.
        held_out: Images to validate on; None if there are none.
        cache: The cache that stores the latents of all of them.
        balance: The balance of regularisation and training images; None without regularisation.
        alike: As in the `Split`.
        peers: The processes that divide the work of deriving data from the images.
    """

    scan: Scan
    plan: Plan
    training: CachedPlan
    held_out: CachedPlan | None
    cache: LatentCache
    balance: Balance | None = None
    alike: Mapping[Path, int] = field(default_factory=dict)
    peers: CachePeers = ALONE

    @property
    def records(self) -> list[ImageRecord]:
        """Records of the training images, then of those held out."""
        plans = [self.training, *([self.held_out] if self.held_out else [])]
        return [record for plan in plans for record in plan.table.records]

    def captions(self) -> list[str]:
        """Return all captions known in advance, and the empty one of dropped captions."""
        plans = [self.training, *([self.held_out] if self.held_out else [])]
        found = [""]
        for plan in plans:
            records = plan.table.records
            steady = records.per_use(lambda use: not use.subset.captions.changes_captions)
            found += records.select(steady.astype(np.bool_)).fixed_captions()
        return found

    @property
    def changes_captions(self) -> bool:
        """Whether any caption varies from step to step."""
        plans = [self.training, *([self.held_out] if self.held_out else [])]
        uses = (use for plan in plans for use in plan.table.records.uses)
        return any(use.subset.captions.changes_captions for use in uses)

    def summary(self) -> dict[str, Any]:
        """Return the facts about the dataset for the run directory and the report."""
        plans = [self.training, *([self.held_out] if self.held_out else [])]
        found = self.scan.without(item for plan in plans for item in plan.skipped)
        return {
            "folder": self.scan.source,
            "images": len(self.training.images),
            "regularisation": self.balance.used if self.balance else 0,
            "regularisation_showings": self.balance.showings if self.balance else 0,
            "held_out": len(self.held_out.images) if self.held_out else 0,
            "usable": found.tally.usable,
            "uncaptioned": found.uncaptioned_count,
            "with_more_lines": found.multiline_captions,
            "enlarged": self.plan.enlarged,
            "mean_lost_area": self.plan.mean_cropped_fraction,
            "buckets": {str(size): n for size, n in self.plan.bucket_counts.items()},
            "set_aside": [
                {"path": plain(shown(a.path)), "reason": a.reason} for a in found.skipped
            ],
            "unused": [{"path": plain(shown(a.path)), "reason": a.reason} for a in found.unused],
            "said_of_unused": found.describe_unused(),
            "refused_latents": [
                {"path": plain(shown(a.path)), "reason": a.reason} for a in self.training.refused
            ],
            "encoded_now": self.training.encoded,
        }


def prepare_data(
    config: RunConfig,
    encoder: MomentsEncoder,
    accelerator: Accelerator | PartialState,
    progress: Progress,
    known: Survey | None = None,
) -> PreparedData:
    """Scan, plan and encode; each process encodes its part, and all return the same data.

    With Ray, the first process has the cluster do all of it, and the others read the results.

    Args:
        config: The settings.
        encoder: The VAE.
        accelerator: The processes.
        progress: Shows the progress of the first process.
        known: An earlier survey of the images, if there is one.

    Raises:
        ImpastoError: As the functions it calls, in any of the processes.
    """
    group = process_group(accelerator)
    shown = WatchfulProgress(progress if group.rank == 0 else SilentProgress(), group)
    with ending_together(group):
        require_sources(config.dataset)
        peers = peers_of(group, config.dataset.derived_dir, encoder.source)
        if config.dataset.executor == "ray":
            own = config if peers.is_first else _alone(config)
            extent = ALONE if peers.is_first else AFTERWARDS
            prepared = peers.first_then_others(lambda: _prepare(own, encoder, shown, known, extent))
        else:
            found = peers.first_then_others(lambda: known or survey(config, shown))
            prepared = _prepare(config, encoder, shown, found, peers)
        _require_same(prepared, group)
    return replace(prepared, peers=peers)


def _prepare(
    config: RunConfig,
    encoder: MomentsEncoder,
    progress: Progress,
    known: Survey | None,
    peers: CachePeers,
) -> PreparedData:
    """Scan and plan the images unless `known` is given, and encode this process's part."""
    cache = LatentCache(config.dataset.derived_dir / LATENTS)
    with open_engine(config.dataset, progress, validation_folders(config)) as engine:
        found = known or survey(config, progress)

        def encode(planned: Sequence[PlannedImage]) -> CachedPlan:
            _require_same_images(PlannedTable.of(planned), peers.group)
            return cache_latents(
                planned,
                cache,
                encoder,
                progress,
                on_error=config.dataset.on_error,
                workers=config.dataset.decode_workers,
                engine=engine,
                peers=peers,
            )

        plan, cached = _encode_balanced(found, config, encode)
        cached_held_out = None
        if found.split.held_out:
            held_out_plan = plan_dataset(config.dataset, found.split.held_out)
            cached_held_out = encode(held_out_plan.images)
    told = balance_of(found.split.training, plan)
    return PreparedData(
        found.scan, plan, cached, cached_held_out, cache, told, found.split.alike, peers
    )


def _require_same_images(table: PlannedTable, group: ProcessGroup) -> None:
    """Check that all processes plan the same images, before they split the work.

    Raises:
        DatasetError: The processes plan different images.
    """
    if group.size > 1:
        _require_one(group, len(table), digest_of(table))


def _require_same(prepared: PreparedData, group: ProcessGroup) -> None:
    """Check that all processes train on the same images, with the same bytes in their files.

    Raises:
        DatasetError: The processes have different images.
    """
    if group.size == 1:
        return
    digest, images = hashlib.sha256(), 0
    for plan in (prepared.training, *([prepared.held_out] if prepared.held_out else [])):
        images += len(plan.images)
        keys = KeyTable.of(plan.identities or plan.keys)  # keys differ between kinds of GPUs
        for name, column in sorted(keys.columns.items()):
            digest.update(name.encode() + np.ascontiguousarray(column).tobytes())
        digest.update(digest_of(plan.table).encode())
    _require_one(group, images, digest.hexdigest())


def _require_one(group: ProcessGroup, images: int, digest: str) -> None:
    told = group.gather(f"{images} {digest} {socket.gethostname()}")
    if len({text.split(" ")[1] for text in told}) == 1:
        return
    counts = ", ".join(
        f"process {rank + 1} on {text.split(' ')[2]}: {int(text.split(' ')[0]):,}"
        for rank, text in enumerate(told)
    )
    raise DatasetError(
        f"The processes of this run do not find the same images, captions or sizes ({counts}). "
        f"Give all machines the same files under the same paths, or read them from one place in "
        f"an object store, and do not change them while a run starts."
    )


def _alone(config: RunConfig) -> RunConfig:
    """Return settings for a process that reuses what the first one encoded with Ray.

    Only damaged files are tried again, without Ray: otherwise each process would start Ray for
    them.
    """
    own = config.dataset.model_copy(update={"executor": "local", "ray_address": None})
    return config.model_copy(update={"dataset": own})


def _encode_balanced(
    found: Survey, config: RunConfig, encode: Callable[[Sequence[PlannedImage]], CachedPlan]
) -> tuple[Plan, CachedPlan]:
    """Encode the training images, with regularisation images that balance the encodable ones.

    Damaged images are found here, or earlier by `--plan`. Unless a fraction is held out, which is
    chosen from the images known at the time, each image is shown equally often either way.
    """
    plan, records = found.plan, found.split.training
    cached = encode(plan.images)
    if found.balance is None:
        return plan, cached
    lost, encoded = cached.skipped, cached.encoded
    for _ in range(_ROUNDS):
        if not cached.skipped:
            return plan, replace(cached, skipped=lost, encoded=encoded)
        records = records.without([item.path for item in lost])
        plan = plan_dataset(config.dataset, balance(records))
        cached = encode(plan.images)
        lost, encoded = (*lost, *cached.skipped), encoded + cached.encoded
    raise DatasetError(
        f"{counted(len(lost), 'images')} cannot be used, such as {shown(lost[0].path)}, and each "
        f"time others replaced the regularisation images among them, more were damaged. impasto "
        f"dataset scan names them all."
    )
