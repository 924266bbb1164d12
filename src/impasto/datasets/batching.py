"""Groups images into batches and steps, according to the settings."""

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
"""Images; larger batches are hardly faster on a GPU."""


def batch_size_of(config: RunConfig, group: Group) -> int:
    """Return how many images of a group go through the U-Net in one training batch.

    With `training.batch_by_pixels`, as many as keep the batch within the pixels of a batch at the
    dataset's full resolution; at least 1.
    """
    size = config.batch_sizes[group.dataset]
    if not config.training.batch_by_pixels:
        return size
    width, height = config.dataset.entries[group.dataset].width_height
    return max(1, size * width * height // group.bucket.area)


def validation_batch_size(config: RunConfig, group: Group) -> int:
    """Return how many held-out images of a group go through the U-Net in one batch.

    At most the training batch size: without gradients a batch needs only part of the memory, so
    validation never needs more than a training step.
    """
    return min(LARGEST_VALIDATION_BATCH, batch_size_of(config, group))


def heaviest_group(
    config: RunConfig,
    images: Sequence[PlannedImage],
    batch_size: Callable[[RunConfig, Group], int] = batch_size_of,
) -> Group:
    """Return the group whose batches have the most pixels; of equals, the largest bucket."""
    counts = sampler_groups(images).counts()
    return max(counts, key=lambda g: (batch_size(config, g) * g.bucket.area, g.bucket.area))


def showings_by_group(images: Sequence[PlannedImage]) -> dict[Group, int]:
    """Return how many times per epoch images of each group are shown, repeats included."""
    table = PlannedTable.of(images)
    repeats = table.records.repeats
    return {group: int(repeats[members].sum()) for group, members in table.groups().members()}


def build_epoch_sampler(
    config: RunConfig, plan: Plan | CachedPlan, num_processes: int
) -> EpochSampler:
    """Build the sampler that orders the images of an epoch according to the settings."""
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
    """Return the number of optimizer steps of the whole run."""
    if config.training.max_steps is not None:
        return config.training.max_steps
    assert config.training.max_epochs is not None  # noqa: S101 - the settings hold one of the two
    return config.training.max_epochs * sampler.steps_per_epoch
