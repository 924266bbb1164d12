"""The table of samplers by name, and the valid ranges of a prompt's options; imports no torch."""

from __future__ import annotations

SAMPLERS = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "lms": "LinearMultistepScheduler",
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
"""Further names that sd-scripts has for these samplers."""

RANGES = {
    "seed": (0, 2**64 - 1),
    "width": (1, 8192),
    "height": (1, 8192),
    "steps": (1, 1000),
    "guidance_scale": (0, 1000),
    "guidance_rescale": (0, 1),
}
"""The lowest and highest value of each option of a prompt; torch accepts these seeds."""
