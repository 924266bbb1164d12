"""Builds noise schedules from a model's scheduler configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from impasto.diffusion.schedule import BETA_END, BETA_START, NUM_TRAIN_TIMESTEPS, NoiseSchedule
from impasto.errors import ModelError
from impasto.models.reading.pipeline_files import ZERO_TERMINAL_SNR

if TYPE_CHECKING:
    from impasto.models.networks.loading import BaseModel

MOST_TIMESTEPS = 100_000


def with_zero_terminal_snr(model: BaseModel) -> BaseModel:
    """Return the model with its schedule rescaled to zero terminal SNR, for training and samplers.

    For a model that predicts noise, only training uses the rescaled schedule, as in sd-scripts, and
    samplers use the original one: at zero SNR the predicted noise carries no information about the
    image, and a sampler that starts there divides by zero.
    """
    config = {**model.scheduler_config, **ZERO_TERMINAL_SNR}
    contents = replace(model.contents, scheduler_config=config)
    schedule = schedule_of(config, contents.source)
    if not model.identity.prediction.begins_in_noise:
        return replace(model, schedule=schedule)
    return replace(model, contents=contents, schedule=schedule)


def original_schedule(model: BaseModel) -> NoiseSchedule:
    """Return the noise schedule that a model had before it was rescaled to zero terminal SNR."""
    config = {**model.scheduler_config, **dict.fromkeys(ZERO_TERMINAL_SNR, None)}
    return schedule_of(config, model.contents.source)


def schedule_of(config: Mapping[str, Any], source: str = "the model") -> NoiseSchedule:
    """Return the noise schedule that a scheduler's configuration describes.

    Raises:
        ModelError: It is not a schedule of Stable Diffusion, or its values are invalid.
    """
    shape = config.get("beta_schedule", "scaled_linear")
    if shape != "scaled_linear":
        raise ModelError(
            f"{source}: the scheduler's beta_schedule is {shape!r}; expected scaled_linear, as in "
            f"Stable Diffusion."
        )
    start = config.get("beta_start", BETA_START)
    end = config.get("beta_end", BETA_END)
    steps = config.get("num_train_timesteps", NUM_TRAIN_TIMESTEPS)
    betas = [value for value in (start, end) if isinstance(value, (int, float))]
    if len(betas) < 2 or not 0 < betas[0] <= betas[1] < 1:
        raise ModelError(
            f"{source}: the scheduler's beta_start and beta_end are {start!r} and {end!r}; "
            f"expected two numbers between 0 and 1, the smaller first."
        )
    if type(steps) is not int or not 1 < steps <= MOST_TIMESTEPS:
        raise ModelError(
            f"{source}: the scheduler's num_train_timesteps is {steps!r}; expected a whole number "
            f"from 2 to {MOST_TIMESTEPS} ({NUM_TRAIN_TIMESTEPS} in Stable Diffusion)."
        )
    schedule = NoiseSchedule.scaled_linear(start, end, steps)
    return schedule.to_zero_terminal_snr() if config.get("rescale_betas_zero_snr") else schedule
