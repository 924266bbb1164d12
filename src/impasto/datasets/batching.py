"""How images go into batches and steps, by the settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from impasto.config.run import RunConfig
from impasto.data.caching.latent_cache import CachedPlan
from impasto.data.loading.dataset import sampler_groups
from impasto.data.loading.sampler import EpochSampler, Group
from impasto.data.planning.plan import Plan
from impasto.data.planning.planned_table import PlannedTable
from impasto.data.records import PlannedImage

LARGEST_VALIDATION_BATCH = 8
"""Images; more are hardly faster on a GPU."""


def batch_size_of(config: RunConfig, group: Group) -> int:
    """Images of a group that go through the U-Net together.

    By pixels, so many that they have no more of them than a batch of the full area.
    """
    size = config.batch_sizes[group.dataset]
    if not config.training.batch_by_pixels:
        return size
    width, height = config.dataset.entries[group.dataset].width_height
    return max(1, size * width * height // group.bucket.area)


def validation_batch_size(config: RunConfig, group: Group) -> int:
    """Held-out images of a group that go through the U-Net together.

    No more than while training: without gradients a batch takes a part of what it takes there, so
    validation never needs more memory than a step.
    """
    return min(LARGEST_VALIDATION_BATCH, batch_size_of(config, group))


def heaviest_group(
    config: RunConfig,
    images: Sequence[PlannedImage],
    batch_size: Callable[[RunConfig, Group], int] = batch_size_of,
) -> Group:
    """The group whose batches have most pixels."""
    counts = sampler_groups(images).counts()
    return max(counts, key=lambda g: (batch_size(config, g) * g.bucket.area, g.bucket.area))


def showings_by_group(images: Sequence[PlannedImage]) -> dict[Group, int]:
    """How many showings of each group's images an epoch has, repeats counted."""
    table = PlannedTable.of(images)
    repeats = table.records.repeats
    return {group: int(repeats[members].sum()) for group, members in table.groups().members()}


def build_epoch_sampler(
    config: RunConfig, plan: Plan | CachedPlan, num_processes: int
) -> EpochSampler:
    """The order of the data by the settings."""
    groups = sampler_groups(plan.images)
    return EpochSampler(
        groups,
        batch_sizes={group: batch_size_of(config, group) for group in groups.counts()},
        seed=config.seed,
        repeats=plan.table.records.repeats,
        accumulation=config.training.gradient_accumulation_steps,
        num_processes=num_processes,
        order=config.dataset.batch_order,
    )


def count_steps(config: RunConfig, sampler: EpochSampler) -> int:
    """Optimizer steps of the whole run."""
    if config.training.max_steps is not None:
        return config.training.max_steps
    assert config.training.max_epochs is not None  # noqa: S101 - the settings hold one of the two
    return config.training.max_epochs * sampler.steps_per_epoch
