"""The table of model families: what differs between them is a column here, not a branch elsewhere.

Facts: CompVis/stable-diffusion `configs/stable-diffusion/v1-inference.yaml`, Stability-AI
stablediffusion `configs/stable-diffusion/v2-inference*.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from impasto.diffusion.prediction import EPSILON, PREDICTIONS, VELOCITY, Prediction
from impasto.errors import ModelError


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        name: What it is called in reports.
        text_activation: The text encoder's activation, which tells the generations apart at any
            size: OpenAI's CLIP has quick_gelu, OpenCLIP gelu.
        prediction: What the U-Net predicts.
        pad_token: What the tokenizer fills a text up with.
        scaling_factor: Scaled latents = this times the VAE's.
    """

    name: str
    text_activation: str
    prediction: Prediction
    pad_token: str
    scaling_factor: float = 0.18215


SD1 = Family("SD 1.x", "quick_gelu", EPSILON, "<|endoftext|>")
SD2_BASE = Family("SD 2.x base", "gelu", EPSILON, "!")
SD2_V = Family("SD 2.x 768-v", "gelu", VELOCITY, "!")
FAMILIES = (SD1, SD2_BASE, SD2_V)


@dataclass(frozen=True)
class Identity:
    """A model's family and prediction, and what says so."""

    family: Family
    prediction: Prediction
    evidence: str


def identify(text_config: Mapping[str, Any], scheduler_config: Mapping[str, Any]) -> Identity:
    """Find the row for a Diffusers folder's configurations.

    Raises:
        ModelError: The text encoder or the prediction type is not one of SD 1.x or 2.x.
    """
    activation = text_config.get("hidden_act", "quick_gelu")
    word = scheduler_config.get("prediction_type", EPSILON.name)
    prediction = PREDICTIONS.get(word)
    rows = [row for row in FAMILIES if row.text_activation == activation]
    if prediction is None or not rows:
        raise ModelError(
            f"This is not a Stable Diffusion 1.x or 2.x model: its text encoder uses "
            f"{activation!r} (expected quick_gelu or gelu) and its scheduler says "
            f"prediction_type {word!r} (expected {' or '.join(PREDICTIONS)})."
        )
    matching = [row for row in rows if row.prediction is prediction]
    return Identity(
        (matching or rows)[0],
        prediction,
        f"text encoder activation {activation}, scheduler prediction_type {word}",
    )
