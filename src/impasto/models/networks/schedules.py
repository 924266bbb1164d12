"""Noise schedules as a model's scheduler configuration describes them."""

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
    """A model with a schedule that ends in noise alone, for training and samplers.

    A model that predicts noise is trained so, as sd-scripts does, and is drawn with as before:
    where there is noise alone, the noise says nothing of the image, and a sampler that begins there
    divides by zero.
    """
    config = {**model.scheduler_config, **ZERO_TERMINAL_SNR}
    contents = replace(model.contents, scheduler_config=config)
    schedule = schedule_of(config, contents.source)
    if not model.identity.prediction.begins_in_noise:
        return replace(model, schedule=schedule)
    return replace(model, contents=contents, schedule=schedule)


def original_schedule(model: BaseModel) -> NoiseSchedule:
    """The noise schedule that a model had before it was rescaled to end in noise alone."""
    config = {**model.scheduler_config, **dict.fromkeys(ZERO_TERMINAL_SNR, None)}
    return schedule_of(config, model.contents.source)


def schedule_of(config: Mapping[str, Any], source: str = "the model") -> NoiseSchedule:
    """The noise schedule that a scheduler's configuration describes.

    Raises:
        ModelError: It is none that a family has.
    """
    shape = config.get("beta_schedule", "scaled_linear")
    if shape != "scaled_linear":
        raise ModelError(
            f"{source}: the scheduler's beta_schedule is {shape!r}; Stable Diffusion has "
            f"scaled_linear."
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
            f"up to {MOST_TIMESTEPS}, and {NUM_TRAIN_TIMESTEPS} in Stable Diffusion."
        )
    schedule = NoiseSchedule.scaled_linear(start, end, steps)
    return schedule.to_zero_terminal_snr() if config.get("rescale_betas_zero_snr") else schedule
