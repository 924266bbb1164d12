"""What a sample is drawn from, and how that is written into its file."""

from __future__ import annotations

from dataclasses import dataclass

SAMPLERS = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpm_2": "KDPM2DiscreteScheduler",
    "dpm_2_a": "KDPM2AncestralDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmsolver": "DPMSolverMultistepScheduler",
    "dpmsingle": "DPMSolverSinglestepScheduler",
}
OTHER_NAMES = {
    "k_lms": "lms", "k_euler": "euler", "k_euler_a": "euler_a", "k_dpm_2": "dpm_2",
    "k_dpm_2_a": "dpm_2_a", "dpmsolver++": "dpmpp_2m",
}  # fmt: skip
"""sd-scripts' further names for them."""


@dataclass(frozen=True)
class Prompt:
    """One picture to draw.

    Attributes:
        text: What it should show.
        negative: What it should not show.
        seed: Seed of the initial noise.
        width: Pixels, a multiple of 8.
        height: Pixels, a multiple of 8.
        steps: Sampler steps.
        guidance_scale: Strength of the words; 1 means none. Ho and Salimans 2022
            (arXiv:2207.12598).
        sampler: A key of `SAMPLERS`.
    """

    text: str
    negative: str = ""
    seed: int = 1
    width: int = 512
    height: int = 512
    steps: int = 20
    guidance_scale: float = 7.0
    sampler: str = "ddim"

    def parameters(self) -> str:
        """The text that A1111 writes into PNG files and other programs read from them."""
        negative = f"\nNegative prompt: {self.negative}" if self.negative else ""
        return (
            f"{self.text}{negative}\nSteps: {self.steps}, Sampler: {self.sampler}, "
            f"CFG scale: {self.guidance_scale:g}, Seed: {self.seed}, "
            f"Size: {self.width}x{self.height}"
        )
