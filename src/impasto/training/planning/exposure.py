"""How many images a step has and how often each image is shown, and the usual ranges of both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from impasto.data.loading.sampler import EpochSampler
from impasto.data.record_table import RecordTable

USUAL_LOOKS = ((50, (30, 250)), (1000, (10, 120)), (None, (1, 40)))
"""Largest number of images (None for no limit) -> the lowest and highest usual showings of each.

Up to 50: diffusers' articles on DreamBooth (400 steps of 4 for an object, 800 to 1,200 of 2 for a
face), EveryDream 2's guide (`doc/TWEAKING.md`, 250 epochs). Up to 1,000: OneTrainer's presets for
SD 1.5 and SDXL (100 epochs). More: datasets of thousands that whole models are trained on, 10
epochs and fewer.
"""

FULL_SIZE = 100_000_000
"""Number of weights from which a U-Net needs the usual learning rates; smaller ones take higher."""

_RATE_AT = 64  # images per step that the upper ends of `usual_lr` apply to
_RATE_GROWS = 0.55


@dataclass(frozen=True)
class Exposure:
    """How many images a run trains on, and how often it shows each.

    Attributes:
        images: Number of training images without regularisation images.
        per_step: Mean number of images of an optimizer step, over all processes.
        looks: How often each image is shown in the whole run, on average.
        usual_looks: The lowest and highest usual `looks` for that number of images.
    """

    images: int
    per_step: float
    looks: float
    usual_looks: tuple[int, int]


def exposure_of(records: RecordTable, sampler: EpochSampler, steps: int) -> Exposure:
    """Return the exposure of a run.

    Args:
        records: All training images, including regularisation images.
        sampler: Divides the images of an epoch into batches and steps.
        steps: Optimizer steps of the whole run.
    """
    own = ~records.per_use(lambda use: use.subset.is_reg).astype(np.bool_)
    images = int(own.sum())
    showings = int(records.repeats[own].sum())
    return Exposure(
        images=images,
        per_step=sampler.samples_per_epoch / sampler.steps_per_epoch,
        looks=showings / max(images, 1) * steps / sampler.steps_per_epoch,
        usual_looks=usual_looks(images),
    )


def usual_looks(images: int) -> tuple[int, int]:
    """Return the lowest and highest usual showings per image for a number of images."""
    return next(bounds for most, bounds in USUAL_LOOKS if most is None or images <= most)


def highest_usual_lr(highest: float, per_step: float) -> float:
    """Return the highest usual learning rate for a number of images per step.

    The rate grows with the images per step to the power of 0.55: the rule of EveryDream 2
    (`--scale_lr`, `doc/ADVANCED_TWEAKING.md`), which derives it from the 1e-4 at 2,048 images that
    Stable Diffusion 1 was trained with, and the 1e-6 that is usual for one or two.

    Args:
        highest: The highest usual rate at 64 images per step.
        per_step: Images of an optimizer step.
    """
    return float(highest * (max(per_step, 1.0) / _RATE_AT) ** _RATE_GROWS)
