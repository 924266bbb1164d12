"""The training step: algorithm 1 of Ho et al. 2020 (arXiv:2006.11239), for latents and captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from impasto.data.records import Batch
from impasto.diffusion.loss import ErrorMeasure, per_sample, squared
from impasto.diffusion.noise import PLAIN_NOISE, Noise
from impasto.diffusion.prediction import Prediction
from impasto.diffusion.schedule import NoiseSchedule
from impasto.diffusion.timesteps import ALL_TIMESTEPS, TimestepSampler
from impasto.diffusion.transfer import to_device
from impasto.diffusion.weighting import LossWeight, unweighted
from impasto.models.loading import BaseModel
from impasto.models.text import TextConditioner


@dataclass(frozen=True)
class StepRecipe:
    """The functions and numbers that a training step computes with.

    Attributes:
        schedule: The forward process, on the device of the U-Net.
        prediction: What the U-Net predicts.
        timesteps: Which noise levels are trained on.
        loss_weight: How much each of them counts.
        noise: How the noise is made.
        error: How an output is compared with its target.
    """

    schedule: NoiseSchedule
    prediction: Prediction
    timesteps: TimestepSampler = ALL_TIMESTEPS
    loss_weight: LossWeight = unweighted
    noise: Noise = PLAIN_NOISE
    error: ErrorMeasure = squared

    @classmethod
    def of(cls, model: BaseModel, **parts: Any) -> StepRecipe:
        """The recipe of a model as loaded, on the device of its U-Net.

        Args:
            model: Has the schedule and the kind of prediction.
            parts: Other attributes, by name, such as `loss_weight=`.
        """
        schedule = model.schedule.to(model.unet.device)
        return cls(schedule, model.identity.prediction, **parts)


@dataclass(frozen=True)
class StepOutput:
    """The losses of a training step.

    Attributes:
        losses: [B] weighted loss of each sample.
        t: [B] its timestep.
    """

    losses: Float[Tensor, "b"]
    t: Int[Tensor, "b"]


def training_step(
    unet: Any, conditioner: TextConditioner, batch: Batch, recipe: StepRecipe
) -> StepOutput:
    """The loss of each sample of a batch; gradients flow into whatever learns.

    Args:
        unet: Called as diffusers' UNet2DConditionModel.
        conditioner: Is asked where the batch was not encoded ahead.
        batch: Of one bucket.
        recipe: What is computed with.
    """
    schedule, prediction = recipe.schedule, recipe.prediction
    device = schedule.alphas_cumprod.device

    x_0 = to_device(batch.latents, device)
    noise = recipe.noise.noise(x_0, batch.randomness)
    t = to_device(recipe.timesteps(batch.randomness, schedule.num_timesteps), device)

    x_t = schedule.add_noise(x_0, recipe.noise.on_input(noise, batch.randomness), t)
    conditioning = batch.conditioning or conditioner(batch.captions, batch.geometry)
    conditioning = conditioning.to(device)
    output = unet(x_t, t, **conditioning.arguments).sample
    target = prediction.target(x_0, noise, t, schedule)

    mask = None if batch.mask is None else to_device(batch.mask, device)
    weights = recipe.loss_weight(t, schedule, prediction) * to_device(batch.weights, device)
    return StepOutput(per_sample(recipe.error(output, target, t, schedule), mask) * weights, t)


def micro_batch_loss(
    losses: Float[Tensor, "b"], samples_in_step: int, num_processes: int
) -> Float[Tensor, ""]:
    """This micro-batch's share of the step's mean loss.

    Every sample of a step counts the same, however it was cut into micro-batches. Gradients are
    averaged over processes, which the factor undoes.
    """
    return torch.sum(losses) * (num_processes / samples_in_step)
