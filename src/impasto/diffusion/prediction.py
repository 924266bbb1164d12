"""The prediction target of the U-Net; no other module depends on which one it is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from impasto.diffusion.schedule import NoiseSchedule

Latents = Float[Tensor, "b c h w"]
Timesteps = Int[Tensor, "b"]
Ratios = Float[Tensor, "b"]


@runtime_checkable
class Prediction(Protocol):
    """A parameterisation of the denoiser.

    Attributes:
        name: diffusers' name for it, as `prediction_type` in scheduler configs.
        begins_in_noise: Whether an output is informative about the image at pure noise, so that
            samplers can start there (zero terminal SNR).
    """

    name: str
    begins_in_noise: bool

    def target(
        self, x_0: Latents, noise: Latents, t: Timesteps, schedule: NoiseSchedule
    ) -> Latents:
        """Return the tensor that the U-Net's output is compared with."""

    def recover_x_0(
        self, output: Latents, x_t: Latents, t: Timesteps, schedule: NoiseSchedule
    ) -> Latents:
        """Return the clean latents that an output implies."""

    def error_of_x_0(self, snr: Ratios) -> Ratios:
        """Return the factor from the squared error in x_0 to the squared error of an output."""

    def debiasing(self, snr: Ratios) -> Ratios:
        """Return the weight of a debiased loss; arXiv:2310.08442."""


class Epsilon:
    """The network predicts the noise; Ho et al. 2020 (arXiv:2006.11239), eq. 11 and 12."""

    name = "epsilon"
    begins_in_noise = False

    def target(
        self,
        x_0: Latents,  # noqa: ARG002
        noise: Latents,
        t: Timesteps,  # noqa: ARG002
        schedule: NoiseSchedule,  # noqa: ARG002
    ) -> Latents:
        """Return the noise, which an epsilon model predicts."""
        return noise

    def recover_x_0(
        self, output: Latents, x_t: Latents, t: Timesteps, schedule: NoiseSchedule
    ) -> Latents:
        """Return x_0 = (x_t - sigma_t eps) / sqrt(abar_t)."""
        return (x_t - schedule.sigma(t) * output) / schedule.signal(t)

    def error_of_x_0(self, snr: Ratios) -> Ratios:
        """Return SNR; Salimans and Ho 2022 (arXiv:2202.00512), section 4."""
        return snr

    def debiasing(self, snr: Ratios) -> Ratios:
        """Return the weight of debiased estimation, 1 / sqrt(SNR)."""
        return snr.rsqrt()


class Velocity:
    """The network predicts v; Salimans and Ho 2022 (arXiv:2202.00512), section 4 and appendix D."""

    name = "v_prediction"
    begins_in_noise = True

    def target(
        self, x_0: Latents, noise: Latents, t: Timesteps, schedule: NoiseSchedule
    ) -> Latents:
        """Return v = sqrt(abar_t) eps - sigma_t x_0."""
        return schedule.signal(t) * noise - schedule.sigma(t) * x_0

    def recover_x_0(
        self, output: Latents, x_t: Latents, t: Timesteps, schedule: NoiseSchedule
    ) -> Latents:
        """Return x_0 = sqrt(abar_t) x_t - sigma_t v."""
        return schedule.signal(t) * x_t - schedule.sigma(t) * output

    def error_of_x_0(self, snr: Ratios) -> Ratios:
        """Return SNR + 1; Salimans and Ho 2022 (arXiv:2202.00512), section 4."""
        return snr + 1

    def debiasing(self, snr: Ratios) -> Ratios:
        """Return the weight of debiased estimation, 1 / (SNR + 1)."""
        return 1 / (snr + 1)


EPSILON, VELOCITY = Epsilon(), Velocity()
PREDICTIONS: dict[str, Prediction] = {EPSILON.name: EPSILON, VELOCITY.name: VELOCITY}
