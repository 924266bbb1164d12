"""How much each timestep counts in the loss, by its signal-to-noise ratio.

Each is a function of the timestep, the schedule (the rescaled one, if it is) and what the U-Net
predicts; `by_schedule` has it go by another. Several are multiplied. The names are sd-scripts'
options (kohya-ss/sd-scripts, `library/custom_train_functions.py`).
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
    """Weighs each sample's loss by its timestep."""

    def __call__(
        self, t: Int[Tensor, "b"], schedule: NoiseSchedule, prediction: Prediction
    ) -> Float[Tensor, "b"]:
        """How much each sample counts by its timestep, non-negative."""


def unweighted(
    t: Int[Tensor, "b"],
    schedule: NoiseSchedule,  # noqa: ARG001
    prediction: Prediction,  # noqa: ARG001
) -> Float[Tensor, "b"]:
    """Every timestep counts the same, as in L_simple."""
    return torch.ones(len(t), device=t.device)


def min_snr(gamma: float) -> LossWeight:
    """min(SNR, gamma) as the weight of the error in x_0; Hang et al. 2023 (arXiv:2303.09556).

    The loss in epsilon has SNR in it already, that in v has SNR + 1, so it is divided by those:
    min(SNR, gamma) / SNR and min(SNR, gamma) / (SNR + 1). Where nothing is left of the image
    (SNR 0), the first is 1, its limit.

    Args:
        gamma: Larger values weigh low noise more; 5 is the paper's.
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
    """SNR gamma / (SNR + gamma) as the weight of the error in x_0; Crowson et al. 2024.

    arXiv:2401.11605 (soft-min-SNR): 1 / (sigma^2 + 1 / gamma) with SNR = 1 / sigma^2. Like min-SNR
    for much and for little noise, and smooth between. Divided as there by what the loss in epsilon
    or v has in it already.

    Args:
        gamma: Larger values weigh low noise more; 4 is the paper's.
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
    """How much a sample counts in Diff-Tuning: (t + 1)^tau, or (T - t)^tau for what keeps.

    Zhong et al. 2024 (arXiv:2406.00773); the numbers are those by which the authors' code draws
    timesteps, as weights of timesteps that are drawn evenly, so both have a mean of 1 over all.

    Args:
        t: Timesteps, counted from 0.
        num_timesteps: T, how many there are.
        tau: How steep; 1 is the paper's.
        keeps: Whether a sample is for keeping what the base model knows.
    """
    levels = torch.arange(1, num_timesteps + 1, dtype=torch.float64) ** tau
    levels = (levels / levels.mean()).to(torch.float32).to(t.device)
    return torch.where(keeps, levels[num_timesteps - 1 - t], levels[t])


def debiased(
    t: Int[Tensor, "b"], schedule: NoiseSchedule, prediction: Prediction
) -> Float[Tensor, "b"]:
    """1 / sqrt(SNR) for epsilon, 1 / (SNR + 1) for v, SNR at most 1000; Yu et al. 2023.

    arXiv:2310.08442; the second is sd-scripts'.
    """
    return prediction.debiasing(schedule.snr(t).clamp(max=MOST_SNR))


def v_loss_as_noise_loss(
    t: Int[Tensor, "b"],
    schedule: NoiseSchedule,
    prediction: Prediction,  # noqa: ARG001
) -> Float[Tensor, "b"]:
    """SNR / (SNR + 1), SNR at most 1000: an error in v as large as the same in epsilon."""
    snr = schedule.snr(t).clamp(max=MOST_SNR)
    return snr / (snr + 1)


def noise_loss_like_v(fraction: float) -> LossWeight:
    """1 + fraction * (SNR + 1) / SNR, SNR at most 1000: some of the loss in v added to epsilon's.

    Args:
        fraction: How much of it.
    """

    def weight(
        t: Int[Tensor, "b"], schedule: NoiseSchedule, prediction: Prediction
    ) -> Float[Tensor, "b"]:
        return 1 + fraction / v_loss_as_noise_loss(t, schedule, prediction)

    return weight


def product(weights: Sequence[LossWeight]) -> LossWeight:
    """A weight that is the product of several."""

    def weight(
        t: Int[Tensor, "b"], schedule: NoiseSchedule, prediction: Prediction
    ) -> Float[Tensor, "b"]:
        total = unweighted(t, schedule, prediction)
        for one in weights:
            total = total * one(t, schedule, prediction)
        return total

    return weight


def by_schedule(weight: LossWeight, own: NoiseSchedule) -> LossWeight:
    """A weight that goes by a schedule of its own, whichever is trained with."""

    def by_that(
        t: Int[Tensor, "b"],
        schedule: NoiseSchedule,  # noqa: ARG001
        prediction: Prediction,
    ) -> Float[Tensor, "b"]:
        return weight(t, own, prediction)

    return by_that


def _at_no_signal(snr: Tensor, prediction: Prediction) -> Tensor:
    """The limit of SNR / error_of_x_0(SNR) for SNR -> 0."""
    tiny = torch.full_like(snr, 1e-12)
    return tiny / prediction.error_of_x_0(tiny)
