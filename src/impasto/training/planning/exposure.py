"""How much a run shows its model: images a step, and how often each; and what is usual."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from impasto.data.loading.sampler import EpochSampler
from impasto.data.record_table import RecordTable

USUAL_LOOKS = ((50, (30, 250)), (1000, (10, 120)), (None, (1, 40)))
"""Up to so many images -> how often each is usually shown, at the least and at the most.

Few: diffusers' articles on DreamBooth (400 steps of 4 for a thing, 800 to 1,200 of 2 for a face),
EveryDream 2's guide (`doc/TWEAKING.md`, 250 passes). More: OneTrainer's presets for SD 1.5 and
SDXL (100 passes). Many: the sets of thousands that whole models are trained on, 10 passes and less.
"""

FULL_SIZE = 100_000_000
"""Weights from which a U-Net learns at the rates that are usual; small ones take larger ones."""

_RATE_AT = 64  # images a step that the upper ends of `usual_lr` are for
_RATE_GROWS = 0.55


@dataclass(frozen=True)
class Exposure:
    """How much a run shows its model.

    Attributes:
        images: Images that are trained on, without those of regularisation.
        per_step: Images of an optimizer step on average, of all processes.
        looks: How often each image is shown in the whole run, on average.
        usual_looks: How often so many images are usually shown, at the least and at the most.
    """

    images: int
    per_step: float
    looks: float
    usual_looks: tuple[int, int]


def exposure_of(records: RecordTable, sampler: EpochSampler, steps: int) -> Exposure:
    """The exposure of a run.

    Args:
        records: The images that are trained on, those of regularisation too.
        sampler: Deals them.
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
    """How often so many images are usually shown, at the least and at the most."""
    return next(bounds for most, bounds in USUAL_LOOKS if most is None or images <= most)


def highest_usual_lr(highest: float, per_step: float) -> float:
    """The highest learning rate that is usual for steps of so many images.

    A rate grows with the images of a step to the power of 0.55: the rule of EveryDream 2
    (`--scale_lr`, `doc/ADVANCED_TWEAKING.md`), which has it from the 1e-4 at 2,048 images that
    Stable Diffusion 1 was trained with, and the 1e-6 that is usual for one or two.

    Args:
        highest: The highest rate that is usual at 64 images a step.
        per_step: Images of an optimizer step.
    """
    return float(highest * (max(per_step, 1.0) / _RATE_AT) ** _RATE_GROWS)
