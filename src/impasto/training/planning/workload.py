"""What a run's data asks of the device's memory, known from its plan before anything is decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from impasto.config.run import RunConfig
from impasto.data.plan import Plan
from impasto.data.records import PlannedImage, Size
from impasto.data.sampler import Group
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
    """

    encoded: Size | None = None
    varied: Size | None = None
    validation: Group | None = None
    captions: int | None = None
    held_out_captions: int = 0

    @classmethod
    def of(cls, config: RunConfig, survey: Survey) -> Workload:
        """What a run does, by its settings and what is known of its images."""
        held_out = Plan(())
        if survey.split.held_out:
            held_out = plan_dataset(config.dataset, survey.split.held_out)
        images = [*survey.plan.images, *held_out.images]
        ahead = [image for image in images if image.record.subset.augmentation is None]
        varied = [image for image in images if image.record.subset.augmentation is not None]
        return cls(
            _largest(ahead),
            _largest(varied),
            _heaviest_validation(config, held_out.images),
            _different_captions(survey.plan.images),
            _different_captions(held_out.images),
        )


def _largest(images: Sequence[PlannedImage]) -> Size | None:
    sizes = Counter(image.bucket for image in images)
    return max(sizes, key=lambda size: (size.area, size.width), default=None)


def _heaviest_validation(config: RunConfig, images: Sequence[PlannedImage]) -> Group | None:
    if not images:
        return None
    group, _ = heaviest_group(config, images, batch_size=validation_batch_size)
    return group


def _different_captions(images: Sequence[PlannedImage]) -> int:
    return len({image.record.fixed_caption for image in images})
