"""Validation loss of held-out images, and of a sample of trained ones, with standard errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from accelerate import Accelerator

from impasto.models.text.text_conditioner import TextConditioner
from impasto.progress import Progress, SilentProgress, slow_stage
from impasto.runs.evidence import standard_error
from impasto.training.monitoring.fixed_draws import FixedDraws
from impasto.training.monitoring.image_units import independent_values, mean, rounded
from impasto.training.monitoring.validation_groups import ImageGroup
from impasto.training.step import StepRecipe

_SILENT = SilentProgress()


@dataclass(frozen=True)
class ValidationLoss:
    """The result of a validation.

    Attributes:
        mean: Mean loss over all held-out images.
        by_dataset: Dataset number -> mean loss over its held-out images.
        images: Independent values with that mean, to compare with those of another step: one per
            held-out image, or per group of copies (see `independent_values`).
        training: Mean loss over a sample of the trained images; None without a sample.
        training_error: Standard error of `training`; None for fewer than two images.
        each: The loss of every held-out image, in order.
    """

    mean: float
    by_dataset: Mapping[int, float]
    images: Sequence[float] = field(default=())
    training: float | None = None
    training_error: float | None = None
    each: Sequence[float] = field(default=(), repr=False)

    @property
    def recorded(self) -> list[float]:
        """The values of `images`, rounded as in metrics to be the same after a resume."""
        return rounded(self.images)

    def as_record(self) -> dict[str, Any]:
        """Return the entries of a line of metrics; per dataset, counted from 1, if several."""
        several = self.by_dataset if len(self.by_dataset) > 1 else {}
        numbers = {
            **{f"validation_loss_{n + 1}": loss for n, loss in several.items()},
            "validation_se": standard_error(self.images),
            "training_sample_loss": self.training,
            "training_sample_se": self.training_error,
        }
        known = {name: value for name, value in numbers.items() if value is not None}
        values = {"validation_images": self.recorded} if self.images else {}
        return {"validation_loss": self.mean, **known, **values}


@dataclass(frozen=True)
class Validator:
    """Measures the unweighted squared error, without dropout.

    Attributes:
        held_out: The held-out images with their draws.
        alike: The unit number of each held-out image; copies share one, since they are not
            independent.
        training: A sample of the trained images, with their draws; None for none.
        groups: Groups of held-out images whose loss is reported separately.
    """

    held_out: FixedDraws
    alike: Sequence[int]
    training: FixedDraws | None = None
    groups: Sequence[ImageGroup] = ()

    @property
    def of_held_out(self) -> Validator:
        """The same validator without the sample of trained images."""
        return replace(self, training=None)

    def measure(
        self,
        unet: Any,
        conditioner: TextConditioner,
        recipe: StepRecipe,
        accelerator: Accelerator | None = None,
        progress: Progress = _SILENT,
    ) -> ValidationLoss:
        """Measure the losses of all images; see `FixedDraws.measure` for the arguments.

        Progress is shown only if the measurement takes seconds.
        """
        was_training = unet.training
        unet.eval()
        sample: list[float] = []
        sets = [self.held_out, *([self.training] if self.training is not None else [])]
        total = sum(draws.predictions(accelerator) for draws in sets)
        with slow_stage(progress, "Measuring the validation loss", total, "predictions") as count:
            args = unet, conditioner, recipe, accelerator, count
            losses = self.held_out.measure(*args).tolist()
            if self.training is not None:
                sample = self.training.measure(*args).tolist()
        unet.train(was_training)
        datasets = [image.record.subset.dataset for image in self.held_out.plan.images]
        return ValidationLoss(
            mean(losses),
            {n: mean([x for x, own in zip(losses, datasets, strict=True) if own == n])
             for n in sorted(set(datasets))},
            independent_values(losses, self.alike),
            mean(sample) if sample else None,
            standard_error(sample),
            rounded(losses),
        )  # fmt: skip
