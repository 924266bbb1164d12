"""Weights of timesteps in the loss, by their signal-to-noise ratio.

Each is a function of the timestep, the schedule (the rescaled one, if it is rescaled) and the
prediction of the U-Net; `by_schedule` makes it use another schedule. Several are multiplied. The
names are sd-scripts' options (kohya-ss/sd-scripts, `library/custom_train_functions.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from impasto.diffusion.prediction import Prediction
from impasto.diffusion.schedule import NoiseSchedule

MOST_SNR = 1000.0


@runtime_checkable
class LossWeight(Protocol):
    """Weights each sample's loss by its timestep."""

    def __call__(
        self, t: Int[Tensor, "b"], schedule: NoiseSchedule, prediction: Prediction
    ) -> Float[Tensor, "b"]:
        """Return the non-negative weight of each sample."""


def unweighted(
    t: Int[Tensor, "b"],
    schedule: NoiseSchedule,  # noqa: ARG001
    prediction: Prediction,  # noqa: ARG001
) -> Float[Tensor, "b"]:
    """Return a weight of 1 for every timestep, as in L_simple."""
    return torch.ones(len(t), device=t.device)


def min_snr(gamma: float) -> LossWeight:
    """Return min(SNR, gamma) as weight of the error in x_0; Hang et al. 2023 (arXiv:2303.09556).

    The loss in epsilon already contains the factor SNR, that in v SNR + 1, so it is divided by
    those: min(SNR, gamma) / SNR and min(SNR, gamma) / (SNR + 1). At pure noise (SNR 0), the first
    is 1, its limit.

    Args:
        gamma: Larger values give low noise more weight; the paper uses 5.
    """

    def weight(
        t: Int[Tensor, "b"], schedule: NoiseSchedule, prediction: Prediction
    ) -> Float[Tensor, "b"]:
        snr = schedule.snr(t)
        capped = snr.clamp(max=gamma)
        return torch.where(
            snr > 0, capped / prediction.error_of_x_0(snr), _at_no_signal(snr, prediction)
        )

    return weight


def soft_min_snr(gamma: float) -> LossWeight:
    """Return SNR gamma / (SNR + gamma) as weight of the error in x_0; Crowson et al. 2024.

    arXiv:2401.11605 (soft-min-SNR): 1 / (sigma^2 + 1 / gamma) with SNR = 1 / sigma^2. It is like
    min-SNR at high and at low noise, and smooth in between. As there, it is divided by the factor
    that the loss in epsilon or v already contains.

    Args:
        gamma: Larger values give low noise more weight; the paper uses 4.
    """

    def weight(
        t: Int[Tensor, "b"], schedule: NoiseSchedule, prediction: Prediction
    ) -> Float[Tensor, "b"]:
        snr = schedule.snr(t)
        soft = snr * gamma / (snr + gamma)
        return torch.where(
            snr > 0, soft / prediction.error_of_x_0(snr), _at_no_signal(snr, prediction)
        )

    return weight


def retention(
    t: Int[Tensor, "b"], num_timesteps: int, tau: float, keeps: Bool[Tensor, "b"]
) -> Float[Tensor, "b"]:
    """Return Diff-Tuning's weights: (t + 1)^tau, or (T - t)^tau for samples that preserve.

    Zhong et al. 2024 (arXiv:2406.00773); the values are those by which the authors' code draws
    timesteps, used as weights of evenly drawn timesteps, so both have a mean of 1 over all.

    Args:
        t: Timesteps, counted from 0.
        num_timesteps: T, the number of timesteps.
        tau: Exponent; the paper uses 1.
        keeps: Whether each sample is for preserving the base model's knowledge.
    """
    levels = torch.arange(1, num_timesteps + 1, dtype=torch.float64) ** tau
    levels = (levels / levels.mean()).to(torch.float32).to(t.device)
    return torch.where(keeps, levels[num_timesteps - 1 - t], levels[t])


def debiased(
    t: Int[Tensor, "b"], schedule: NoiseSchedule, prediction: Prediction
) -> Float[Tensor, "b"]:
    """Return 1 / sqrt(SNR) for epsilon, 1 / (SNR + 1) for v, SNR at most 1000; Yu et al. 2023.

    arXiv:2310.08442; the second is sd-scripts'.
    """
    return prediction.debiasing(schedule.snr(t).clamp(max=MOST_SNR))


def v_loss_as_noise_loss(
    t: Int[Tensor, "b"],
    schedule: NoiseSchedule,
    prediction: Prediction,  # noqa: ARG001
) -> Float[Tensor, "b"]:
    """Return SNR / (SNR + 1), SNR at most 1000: scales an error in v to that in epsilon."""
    snr = schedule.snr(t).clamp(max=MOST_SNR)
    return snr / (snr + 1)


def noise_loss_like_v(fraction: float) -> LossWeight:
    """Return 1 + fraction * (SNR + 1) / SNR, SNR at most 1000: adds some loss in v to epsilon's.

    Args:
        fraction: Fraction of the loss in v that is added.
    """

    def weight(
        t: Int[Tensor, "b"], schedule: NoiseSchedule, prediction: Prediction
    ) -> Float[Tensor, "b"]:
        return 1 + fraction / v_loss_as_noise_loss(t, schedule, prediction)

    return weight


def product(weights: Sequence[LossWeight]) -> LossWeight:
    """Return a weight that is the product of several."""

    def weight(
        t: Int[Tensor, "b"], schedule: NoiseSchedule, prediction: Prediction
    ) -> Float[Tensor, "b"]:
        total = unweighted(t, schedule, prediction)
        for one in weights:
            total = total * one(t, schedule, prediction)
        return total

    return weight


def by_schedule(weight: LossWeight, own: NoiseSchedule) -> LossWeight:
    """Return a weight that uses the schedule `own`, whichever schedule is trained with."""

    def by_that(
        t: Int[Tensor, "b"],
        schedule: NoiseSchedule,  # noqa: ARG001
        prediction: Prediction,
    ) -> Float[Tensor, "b"]:
        return weight(t, own, prediction)

    return by_that


def _at_no_signal(snr: Tensor, prediction: Prediction) -> Tensor:
    """Return the limit of SNR / error_of_x_0(SNR) for SNR -> 0."""
    tiny = torch.full_like(snr, 1e-12)
    return tiny / prediction.error_of_x_0(tiny)
