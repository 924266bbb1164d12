"""What a run's data asks of the device's memory, known from its plan before anything is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from impasto.config.run import RunConfig
from impasto.data.loading.sampler import Group
from impasto.data.planning.plan import Plan, join_plans
from impasto.data.planning.planned_table import PlannedTable
from impasto.data.records import PlannedImage, Size
from impasto.datasets.batching import heaviest_group, validation_batch_size
from impasto.datasets.build import Survey, plan_dataset


@dataclass(frozen=True)
class Workload:
    """What is done beside training, as far as it takes memory.

    Attributes:
        encoded: The largest size of images that the VAE encodes ahead; None where there are none.
        varied: The largest size of images that are encoded each time they are shown; None where
            there are none.
        validation: The group of held-out images whose batches have most pixels; None where none is
            held out.
        captions: How many different captions are trained on; None where that is not known.
        held_out_captions: How many are held out.
        buckets: Pairs of a dataset and a bucket that have images; 1 where that is not known.
    """

    encoded: Size | None = None
    varied: Size | None = None
    validation: Group | None = None
    captions: int | None = None
    held_out_captions: int = 0
    buckets: int = 1

    @classmethod
    def of(cls, config: RunConfig, survey: Survey) -> Workload:
        """What a run does, by its settings and what is known of its images."""
        held_out = Plan(())
        if survey.split.held_out:
            held_out = plan_dataset(config.dataset, survey.split.held_out)
        images = join_plans([survey.plan, held_out]).table
        varies = images.records.per_use(lambda use: use.subset.augmentation is not None)
        return cls(
            _largest(images.select(~varies)),
            _largest(images.select(varies)),
            _heaviest_validation(config, held_out.images),
            _different_captions(survey.plan.table),
            _different_captions(held_out.table),
            len(survey.plan.table.groups().counts()),
        )


def _largest(images: PlannedTable) -> Size | None:
    return max(images.bucket_counts(), key=lambda size: (size.area, size.width), default=None)


def _heaviest_validation(config: RunConfig, images: Sequence[PlannedImage]) -> Group | None:
    if not images:
        return None
    return heaviest_group(config, images, batch_size=validation_batch_size)


def _different_captions(images: PlannedTable) -> int:
    """Counted by 64-bit hashes: all captions at once may be more than fits into memory."""
    hashes = (hash(record.fixed_caption) for record in images.records)
    return len(np.unique(np.fromiter(hashes, np.int64, len(images))))
