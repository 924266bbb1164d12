"""Loss weights by noise level that are learned during training: the inverse of the loss itself.

Karras et al. 2024 (arXiv:2312.02696) minimise L / exp(u(sigma)) + u(sigma), after Kendall et al.
2018 (arXiv:1705.07115). Its minimum has exp(u) = E[L] at each noise level, so that all levels end
up with the same weight in the gradient. As in the paper, u is a linear layer on Fourier features of
ln(sigma) / 4. It starts where the loss in v has all weights equal (the paper's weight for data of
variance 1), and has a separate Adam optimizer (arXiv:1412.6980).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from impasto.diffusion.prediction import Prediction
from impasto.diffusion.schedule import NoiseSchedule

FEATURES = 128
"""Fourier features; the paper's `logvar_channels` (NVlabs/edm2, `training/networks_edm2.py`)."""

RATE, BETAS, EPS = 2e-3, (0.9, 0.99), 1e-8
"""Settings of Adam. For losses whose standard deviation equals their mean, and 16 of them per step,
the weights are within 4 % of their ideal values after a thousand steps; a larger rate makes them
vary more."""

_LEAST_SNR = 1e-8
_SEED = 20240607


class Uncertainty:
    """exp(-u) as a loss weight, with the parameters of u.

    All tensors are on the device of the schedule and stay in place in memory, so that recorded CUDA
    graphs read the current values.

    Args:
        schedule: The noise levels.
        prediction: What the U-Net predicts.
    """

    def __init__(self, schedule: NoiseSchedule, prediction: Prediction) -> None:
        device = schedule.alphas_cumprod.device
        levels = torch.arange(schedule.num_timesteps, device=device)
        snr = schedule.snr(levels).double().clamp(min=_LEAST_SNR).cpu()
        self._start = torch.log(prediction.error_of_x_0(snr) / (snr + 1)).float().to(device)
        self._features = _fourier(-torch.log(snr) / 8).float().to(device)
        self._weights, self._mean, self._square, self._gradient = (
            torch.zeros(FEATURES, device=device) for _ in range(4)
        )
        self._count = torch.zeros((), device=device)

    def __call__(
        self, t: Int[Tensor, "b"], schedule: NoiseSchedule, prediction: Prediction
    ) -> Float[Tensor, "b"]:
        """Return the weight of each sample by its timestep: exp(-u)."""
        del schedule, prediction  # the ones given to the constructor
        learned = (self._features[t] * self._weights).sum(
            1
        )  # autocast would compute `@` in 16 bits
        return torch.exp(-(self._start[t] + learned))

    def add(
        self,
        t: Int[Tensor, "b"],
        losses: Float[Tensor, "b"],
        weights: Float[Tensor, "b"],
        fraction: float,
    ) -> None:
        """Accumulate the gradient of a micro-batch.

        The derivative of w (L / exp(u) + u) by u is w - w L / exp(u).

        Args:
            t: Timesteps.
            losses: Losses weighted with exp(-u), and with `weights`.
            weights: Weights of the samples.
            fraction: Fraction of one sample in the mean over the step.
        """
        by_u = (weights - losses.detach()) * fraction
        self._gradient += by_u @ self._features[t]

    def gradient(self) -> Tensor:
        """Return the accumulated gradient itself, not a copy; processes average it in place."""
        return self._gradient

    def step(self) -> None:
        """Update the parameters by the gradient and clear it; skip a non-finite gradient."""
        gradient, first, second = self._gradient, *BETAS
        good = torch.isfinite(gradient).all().to(torch.float32)
        gradient.copy_(torch.where(good > 0, gradient, torch.zeros_like(gradient)))
        self._count += good
        self._mean.lerp_(gradient, (1 - first) * good)
        self._square.lerp_(gradient.square(), (1 - second) * good)
        mean = self._mean / (1 - first**self._count).clamp(min=1 - first)
        square = self._square / (1 - second**self._count).clamp(min=1 - second)
        self._weights -= good * RATE * mean / (square.sqrt() + EPS)
        gradient.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a training state stores, by name."""
        return {
            "weights": self._weights,
            "mean": self._mean,
            "square": self._square,
            "count": self._count,
        }


def _fourier(noise: Float[Tensor, "t"]) -> Float[Tensor, "t f"]:
    """Return Fourier features of unit norm on average, from fixed random draws.

    NVlabs/edm2, `MPFourier`.
    """
    generator = torch.Generator().manual_seed(_SEED)
    draws = torch.randn(FEATURES, generator=generator, dtype=torch.float64)
    phases = torch.rand(FEATURES, generator=generator, dtype=torch.float64)
    angles = 2 * math.pi * (noise.double()[:, None] * draws + phases)
    return torch.cos(angles) * math.sqrt(2 / FEATURES)
