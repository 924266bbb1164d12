"""The images of a run, scanned, planned and encoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState

from impasto.config.run import RunConfig
from impasto.data.content_hashes import LATENTS as LATENTS
from impasto.data.encoding import MomentsEncoder
from impasto.data.filling import cache_latents
from impasto.data.latent_cache import CachedPlan, LatentCache
from impasto.data.plan import Plan
from impasto.data.records import ImageRecord, PlannedImage
from impasto.data.regularisation import Balance, balance
from impasto.data.scan import Scan
from impasto.datasets.build import (
    Survey,
    balance_of,
    plan_dataset,
    survey,
    validation_folders,
)
from impasto.datasets.engines import open_engine
from impasto.errors import DatasetError
from impasto.progress import Progress, SilentProgress, counted
from impasto.remote_paths import shown

"""The folder of the latent cache, in that of all derived data."""


_ROUNDS = 10
"""How often regularisation images are balanced again for those that could not be encoded."""


@dataclass(frozen=True)
class PreparedData:
    """The images of a run, encoded: those to train on and those held out.

    Attributes:
        scan: All that was found.
        plan: Where those go that are trained on.
        training: Those of them that could be encoded.
        held_out: Those that are validated on.
        cache: Where all of them are kept.
        balance: What became of regularisation images; None where there are none.
        alike: As in the `Split`.
    """

    scan: Scan
    plan: Plan
    training: CachedPlan
    held_out: CachedPlan | None
    cache: LatentCache
    balance: Balance | None = None
    alike: Mapping[Path, int] = field(default_factory=dict)

    @property
    def records(self) -> list[ImageRecord]:
        """The images that are trained on, then those held out."""
        plans = [self.training, *([self.held_out] if self.held_out else [])]
        return [record for plan in plans for record in plan.table.records]

    def captions(self) -> list[str]:
        """All captions that are known ahead, and the empty one of dropped captions."""
        plans = [self.training, *([self.held_out] if self.held_out else [])]
        records = [record for plan in plans for record in plan.table.records]
        steady = [r.fixed_caption for r in records if not r.subset.captions.changes_words]
        return ["", *steady]

    @property
    def changes_words(self) -> bool:
        """Whether a caption is not always the same."""
        plans = [self.training, *([self.held_out] if self.held_out else [])]
        uses = (use for plan in plans for use in plan.table.records.uses)
        return any(use.subset.captions.changes_words for use in uses)

    def summary(self) -> dict[str, Any]:
        """What the run directory and the report say of the dataset."""
        plans = [self.training, *([self.held_out] if self.held_out else [])]
        found = self.scan.without(item for plan in plans for item in plan.set_aside)
        return {
            "folder": self.scan.place,
            "pictures": len(self.training.images),
            "regularisation": self.balance.used if self.balance else 0,
            "regularisation_showings": self.balance.showings if self.balance else 0,
            "held_out": len(self.held_out.images) if self.held_out else 0,
            "usable": found.tally.usable,
            "uncaptioned": found.uncaptioned_count,
            "with_more_lines": found.multiline_captions,
            "enlarged": self.plan.enlarged,
            "mean_lost_area": self.plan.mean_cropped_fraction,
            "buckets": {str(size): n for size, n in self.plan.bucket_counts.items()},
            "set_aside": [{"path": shown(a.path), "reason": a.reason} for a in found.set_aside],
            "unused": [{"path": str(a.path), "reason": a.reason} for a in found.unused],
            "said_of_unused": found.describe_unused(),
            "refused_latents": [
                {"path": str(a.path), "reason": a.reason} for a in self.training.refused
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
    """Scan, plan and encode; the first process works, the others then find it done.

    `known` is what was found of the images already.
    """
    with accelerator.main_process_first():
        shown = progress if accelerator.is_main_process else SilentProgress()
        if not accelerator.is_main_process:
            config = _alone(config)
        cache = LatentCache(config.dataset.derived_dir / LATENTS)
        with open_engine(config.dataset, shown, validation_folders(config)) as engine:
            found = known or survey(config, shown)
            encode = partial(
                cache_latents,
                cache=cache,
                encoder=encoder,
                progress=shown,
                on_error=config.dataset.on_error,
                workers=config.dataset.decode_workers,
                engine=engine,
            )
            plan, cached = _encode_balanced(found, config, encode)
            cached_held_out = None
            if found.split.held_out:
                held_out_plan = plan_dataset(config.dataset, found.split.held_out)
                cached_held_out = encode(held_out_plan.images)
        told = balance_of(found.split.training, plan)
    alike = found.split.alike
    return PreparedData(found.scan, plan, cached, cached_held_out, cache, told, alike)


def _alone(config: RunConfig) -> RunConfig:
    """Settings of a process that comes after the first one, and finds all but damaged files done.

    It looks at those again by itself: each of several such processes would start a Ray for them.
    """
    own = config.dataset.model_copy(update={"executor": "local", "ray_address": None})
    return config.model_copy(update={"dataset": own})


def _encode_balanced(
    found: Survey, config: RunConfig, encode: Callable[[Sequence[PlannedImage]], CachedPlan]
) -> tuple[Plan, CachedPlan]:
    """Encode what is trained on; regularisation images balance what could be encoded.

    Damaged images are found while encoding, or before it by `--plan`: without a share that is held
    out, which is chosen of what is known then, the same images come equally often either way.
    """
    plan, records = found.plan, found.split.training
    cached = encode(plan.images)
    if found.balance is None:
        return plan, cached
    lost, encoded = cached.set_aside, cached.encoded
    for _ in range(_ROUNDS):
        if not cached.set_aside:
            return plan, replace(cached, set_aside=lost, encoded=encoded)
        records = records.without([item.path for item in lost])
        plan = plan_dataset(config.dataset, balance(records))
        cached = encode(plan.images)
        lost, encoded = (*lost, *cached.set_aside), encoded + cached.encoded
    raise DatasetError(
        f"{counted(len(lost), 'images')} cannot be used, {lost[0].path} among them, and as many "
        f"regularisation images as take their place cannot either. impasto dataset scan names "
        f"them all."
    )
