"""The forward process: the noise level at each timestep.

Ho et al. 2020 (arXiv:2006.11239), eq. 4: q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.0120


@dataclass(frozen=True)
class NoiseSchedule:
    """The cumulative product of alphas, [T] float32, falling from about 1 towards 0."""

    alphas_cumprod: Float[Tensor, "t"]

    @classmethod
    def scaled_linear(
        cls,
        beta_start: float = BETA_START,
        beta_end: float = BETA_END,
        num_timesteps: int = NUM_TRAIN_TIMESTEPS,
    ) -> NoiseSchedule:
        """Return the schedule with betas linear in their square root, Stable Diffusion's own.

        Source: CompVis/latent-diffusion, `ldm/modules/diffusionmodules/util.py`
        (make_beta_schedule, "linear"); the constants are from SD's v1-inference.yaml.
        """
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps) ** 2
        return cls(torch.cumprod(1.0 - betas, dim=0))

    def to_zero_terminal_snr(self) -> NoiseSchedule:
        """Return the schedule shifted and scaled so that its last step is pure noise.

        Lin et al. 2023 (arXiv:2305.08891), algorithm 1; sd-scripts' `--zero_terminal_snr`.
        """
        root = self.alphas_cumprod.sqrt()
        first, last = root[0].clone(), root[-1].clone()
        return NoiseSchedule(((root - last) * first / (first - last)) ** 2)

    @property
    def num_timesteps(self) -> int:
        """The number of timesteps, T; timesteps are integers in [0, T)."""
        return len(self.alphas_cumprod)

    def to(self, device: torch.device) -> NoiseSchedule:
        """Return the schedule on a device."""
        return NoiseSchedule(self.alphas_cumprod.to(device))

    def signal(self, t: Int[Tensor, "b"]) -> Float[Tensor, "b 1 1 1"]:
        """Return sqrt(abar_t), the scale of the image in x_t."""
        return self.alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)

    def sigma(self, t: Int[Tensor, "b"]) -> Float[Tensor, "b 1 1 1"]:
        """Return sqrt(1 - abar_t), the scale of the noise in x_t."""
        return (1 - self.alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)

    def snr(self, t: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Return the signal-to-noise ratio abar_t / (1 - abar_t).

        Kingma et al. 2021 (arXiv:2107.00630).
        """
        kept = self.alphas_cumprod[t]
        return kept / (1 - kept)

    def add_noise(
        self,
        x_0: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"],
        t: Int[Tensor, "b"],
    ) -> Float[Tensor, "b c h w"]:
        """Return x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise; arXiv:2006.11239 eq. 4."""
        return self.signal(t) * x_0 + self.sigma(t) * noise
