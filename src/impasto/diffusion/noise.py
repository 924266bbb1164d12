"""The noise that is added to latents, beyond plain Gaussian noise.

All random numbers are a batch's own; those that other programs draw once per batch are drawn once
per step here, so that the split into micro-batches and processes changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from impasto.diffusion.randomness import PerSampleRandomness
from impasto.diffusion.transfer import to_device

Latents = Float[Tensor, "b c h w"]
NOISE = "noise"
"""Purpose of the random numbers of plain noise."""


@runtime_checkable
class Noise(Protocol):
    """Makes the noise for a batch from that batch's own random numbers."""

    def noise(self, x_0: Latents, randomness: PerSampleRandomness) -> Latents:
        """Return the noise that the U-Net is to predict, on the device of the latents, float32."""

    def on_input(self, noise: Latents, randomness: PerSampleRandomness) -> Latents:
        """Return the noise added to the latents: `noise`, perhaps plus some not in the target."""

    def generate_ahead(self, shape: tuple[int, int, int], randomness: PerSampleRandomness) -> None:
        """Draw the numbers for latents [B, *shape] ahead, on another thread; may do nothing."""


@dataclass(frozen=True)
class NoiseRecipe:
    """How the noise of a sample is made; the defaults give plain noise.

    Attributes:
        offset: Strength of noise that is constant over a channel, so that images can become darker
            or brighter as a whole; Guttenberg 2023 (Diffusion with Offset Noise). 0.05 to 0.1 is
            usual.
        offset_is_random: Whether the strength is multiplied by a number in [0, 1) drawn per step.
        adaptive_scale: This times the absolute mean of a channel's latents is added to the
            strength.
        multires_iterations: Number of coarser scales of added noise; Whitaker 2023
            (Multi-Resolution Noise). 6 to 10 is usual.
        multires_discount: Base of the weight of each scale; the exponent is the scale's number.
        perturbation: Strength of noise on the input that is not in the target; Ning et al. 2023
            (arXiv:2301.11706), who use 0.1.
        perturbation_is_random: As `offset_is_random`, for the perturbation.
    """

    offset: float = 0.0
    offset_is_random: bool = False
    adaptive_scale: float = 0.0
    multires_iterations: int = 0
    multires_discount: float = 0.3
    perturbation: float = 0.0
    perturbation_is_random: bool = False

    def noise(self, x_0: Latents, randomness: PerSampleRandomness) -> Latents:
        """Return the noise that the U-Net is to predict, on the device of the latents, float32."""
        noise = to_device(randomness.normal(tuple(x_0.shape[1:]), NOISE), x_0.device)
        if self.offset:
            noise = noise + self._offset(x_0, randomness)
        if self.multires_iterations:
            noise = self._with_coarser_scales(noise, randomness)
        return noise

    def generate_ahead(self, shape: tuple[int, int, int], randomness: PerSampleRandomness) -> None:
        """Draw the numbers that `noise` and `on_input` need for latents [B, *shape] ahead.

        There is one draw per sample and purpose: a thread that reads data has the time for them,
        the one that launches a GPU's kernels has not.
        """
        randomness.generate_ahead(shape, NOISE)
        if self.offset:
            randomness.generate_ahead((shape[0], 1, 1), "noise_offset")
        for i, scale in self._scales(shape, randomness):
            randomness.generate_ahead(scale, f"multires {i}")
        if self.perturbation:
            randomness.generate_ahead(shape, "input_perturbation")

    def on_input(self, noise: Latents, randomness: PerSampleRandomness) -> Latents:
        """Return the noise added to the latents: `noise`, plus any perturbation."""
        if not self.perturbation:
            return noise
        strength = self.perturbation
        if self.perturbation_is_random:
            strength *= randomness.uniform_of_step("input_perturbation")
        extra = to_device(
            randomness.normal(tuple(noise.shape[1:]), "input_perturbation"), noise.device
        )
        return noise + strength * extra

    def _offset(self, x_0: Latents, randomness: PerSampleRandomness) -> Float[Tensor, "b c 1 1"]:
        strength = self.offset * (
            randomness.uniform_of_step("noise_offset") if self.offset_is_random else 1.0
        )
        shift = to_device(randomness.normal((x_0.shape[1], 1, 1), "noise_offset"), x_0.device)
        if not self.adaptive_scale:
            return strength * shift
        mean = x_0.float().mean(dim=(2, 3), keepdim=True).abs()
        return (strength + self.adaptive_scale * mean).clamp(min=0) * shift

    def _with_coarser_scales(self, noise: Latents, randomness: PerSampleRandomness) -> Latents:
        """Add coarser noise, normalising each sample to a standard deviation of 1.

        Other programs normalise each batch.
        """
        channels, height, width = noise.shape[1:]
        total = noise
        for i, scale in self._scales((channels, height, width), randomness):
            coarse = to_device(randomness.normal(scale, f"multires {i}"), noise.device)
            fine = functional.interpolate(coarse, (height, width), mode="bilinear")
            total = total + fine * self.multires_discount**i
        return total / total.std(dim=(1, 2, 3), keepdim=True)

    def _scales(
        self, shape: tuple[int, int, int], randomness: PerSampleRandomness
    ) -> Iterator[tuple[int, tuple[int, int, int]]]:
        """Yield the number and the shape of each coarser scale, down to one row or column."""
        channels, height, width = shape
        for i in range(self.multires_iterations):
            ratio = 2 + 2 * randomness.uniform_of_step(f"multires_scale {i}")
            rows, columns = (max(1, int(side / ratio**i)) for side in (height, width))
            yield i, (channels, rows, columns)
            if rows == 1 or columns == 1:
                return


PLAIN_NOISE = NoiseRecipe()
