"""Measures of the error between an output and its target, per element.

Huber and smooth L1 are those of kohya-ss/sd-scripts (`library/train_util.py`, conditional_loss), a
"pseudo-Huber" loss; its threshold may depend on the timestep.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from impasto.diffusion.schedule import NoiseSchedule

Latents = Float[Tensor, "b c h w"]


@runtime_checkable
class ErrorMeasure(Protocol):
    """Computes the error of each element, in float32."""

    def __call__(
        self, output: Latents, target: Latents, t: Int[Tensor, "b"], schedule: NoiseSchedule
    ) -> Latents:
        """Return non-negative errors in the shape of the output."""


def squared(
    output: Latents,
    target: Latents,
    t: Int[Tensor, "b"],  # noqa: ARG001
    schedule: NoiseSchedule,  # noqa: ARG001
) -> Latents:
    """Return (output - target)^2; arXiv:2006.11239 eq. 14 (L_simple)."""
    return (output.float() - target.float()).square()


def absolute(
    output: Latents,
    target: Latents,
    t: Int[Tensor, "b"],  # noqa: ARG001
    schedule: NoiseSchedule,  # noqa: ARG001
) -> Latents:
    """Return the absolute error, |output - target|."""
    return (output.float() - target.float()).abs()


@dataclass(frozen=True)
class Threshold:
    """The threshold at which Huber's loss changes from quadratic to linear, by timestep.

    Attributes:
        kind: `constant`: c * scale; `exponential`: from scale at t = 0 to c * scale at T; `snr`:
            from nearly 1 at low noise to c at pure noise, whatever the scale.
        c: Threshold at the highest noise level, in (0, 1].
        scale: Factor.
    """

    kind: Literal["constant", "exponential", "snr"] = "snr"
    c: float = 0.1
    scale: float = 1.0

    def __call__(self, t: Int[Tensor, "b"], schedule: NoiseSchedule) -> Float[Tensor, "b 1 1 1"]:
        """Return the threshold of each sample."""
        return {"constant": self._constant, "exponential": self._exponential, "snr": self._snr}[
            self.kind
        ](t, schedule).view(-1, 1, 1, 1)

    def _constant(self, t: Int[Tensor, "b"], schedule: NoiseSchedule) -> Float[Tensor, "b"]:  # noqa: ARG002
        return torch.full((len(t),), self.c * self.scale, device=t.device)

    def _exponential(self, t: Int[Tensor, "b"], schedule: NoiseSchedule) -> Float[Tensor, "b"]:
        return torch.exp(math.log(self.c) * t / schedule.num_timesteps) * self.scale

    def _snr(self, t: Int[Tensor, "b"], schedule: NoiseSchedule) -> Float[Tensor, "b"]:
        kept = schedule.alphas_cumprod[t]
        sigma = ((1 - kept) / kept).sqrt()
        return (1 - self.c) / (1 + sigma) ** 2 + self.c


@dataclass(frozen=True)
class Huber:
    """2 c (sqrt(d^2 + c^2) - c): approximately d^2 near 0, and 2 c |d| for large d."""

    threshold: Threshold

    def __call__(
        self, output: Latents, target: Latents, t: Int[Tensor, "b"], schedule: NoiseSchedule
    ) -> Latents:
        """Return the error of each element."""
        c = self.threshold(t, schedule)
        return 2 * c * _beyond(output, target, c)


@dataclass(frozen=True)
class SmoothL1:
    """2 (sqrt(d^2 + c^2) - c): approximately d^2 / c near 0, and 2 |d| for large d."""

    threshold: Threshold

    def __call__(
        self, output: Latents, target: Latents, t: Int[Tensor, "b"], schedule: NoiseSchedule
    ) -> Latents:
        """Return the error of each element."""
        return 2 * _beyond(output, target, self.threshold(t, schedule))


@dataclass(frozen=True)
class Masking:
    """How masks weight the loss; the defaults are those of sd-scripts.

    Attributes:
        outside: Minimum weight of a position, in [0, 1]; OneTrainer's `unmasked_weight`
            (`modules/util/loss/masked_loss.py`).
        by_area: Whether each sample is divided by the mean of its weights, so that a small subject
            counts as much as one that fills the image; OneTrainer's `normalize_masked_area_loss`.
    """

    outside: float = 0.0
    by_area: bool = False

    def weights(self, mask: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
        """Return the weight of each position; a black mask stays all 0, apart from `outside`."""
        weights = mask.clamp(min=self.outside)
        if not self.by_area:
            return weights
        one_pixel = 1 / (mask.shape[2] * mask.shape[3])
        return weights / weights.mean(dim=(1, 2, 3), keepdim=True).clamp(min=one_pixel)


PLAIN_MASKING = Masking()


def per_sample(
    error: Latents,
    mask: Float[Tensor, "b 1 h w"] | None = None,
    masking: Masking = PLAIN_MASKING,
) -> Float[Tensor, "b"]:
    """Return the mean error of each sample of a batch.

    A mask weights the positions; the mean is over all of them, as in kohya-ss/sd-scripts
    (`library/custom_train_functions.py`, apply_masked_loss), so a small subject counts less unless
    `masking` changes that.
    """
    return (error if mask is None else error * masking.weights(mask)).mean(dim=(1, 2, 3))


def _beyond(output: Latents, target: Latents, c: Float[Tensor, "b 1 1 1"]) -> Latents:
    return ((output.float() - target.float()).square() + c**2).sqrt() - c
