"""The facts about a run's data that its memory depends on, known before any image is decoded."""

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
    """Sizes and counts of a run's data, as far as memory depends on them.

    Attributes:
        encoded: The largest bucket of images that the VAE encodes before training; None if there
            are no such images.
        varied: The largest bucket of images that are encoded each time they are shown; None if
            there are no such images.
        validation: The group of held-out images whose batches have the most pixels; None if no
            images are held out.
        captions: Number of different training captions; None if unknown.
        held_out_captions: Number of different captions of held-out images.
        buckets: Number of pairs of a dataset and a bucket that have images; 1 if unknown.
    """

    encoded: Size | None = None
    varied: Size | None = None
    validation: Group | None = None
    captions: int | None = None
    held_out_captions: int = 0
    buckets: int = 1

    @classmethod
    def of(cls, config: RunConfig, survey: Survey) -> Workload:
        """Return the workload of a run, from its settings and the survey of its images."""
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
    """Return the number of different captions.

    They are counted by 64-bit hashes: all captions together may not fit into memory.
    """
    hashes = (hash(record.fixed_caption) for record in images.records)
    return len(np.unique(np.fromiter(hashes, np.int64, len(images))))
