"""The training step: algorithm 1 of Ho et al. 2020 (arXiv:2006.11239), for latents and captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from impasto.data.records import Batch
from impasto.diffusion.conditioning import Conditioning
from impasto.diffusion.first_call import with_checks
from impasto.diffusion.loss import PLAIN_MASKING, ErrorMeasure, Masking, per_sample, squared
from impasto.diffusion.noise import PLAIN_NOISE, Latents, Noise
from impasto.diffusion.prediction import Prediction
from impasto.diffusion.schedule import NoiseSchedule
from impasto.diffusion.timesteps import ALL_TIMESTEPS, TimestepSampler
from impasto.diffusion.transfer import to_device
from impasto.diffusion.weighting import LossWeight, retention, unweighted
from impasto.models.networks.loading import BaseModel
from impasto.models.text.text_conditioner import TextConditioner


@dataclass(frozen=True)
class StepRecipe:
    """The functions and numbers that a training step computes with.

    Attributes:
        schedule: The forward process, on the device of the U-Net.
        prediction: What the U-Net predicts.
        timesteps: Draws the timesteps to train on.
        loss_weight: The weight of each timestep in the loss.
        noise: Draws the noise.
        error: Measures the error of an output against its target.
        retention: The tau of Diff-Tuning; None weights all timesteps alike.
        masking: How masks weight the loss.
    """

    schedule: NoiseSchedule
    prediction: Prediction
    timesteps: TimestepSampler = ALL_TIMESTEPS
    loss_weight: LossWeight = unweighted
    noise: Noise = PLAIN_NOISE
    error: ErrorMeasure = squared
    retention: float | None = None
    masking: Masking = PLAIN_MASKING

    @classmethod
    def of(cls, model: BaseModel, **options: Any) -> StepRecipe:
        """Return the recipe that fits a loaded model, on the device of its U-Net.

        Args:
            model: Gives the schedule and the prediction type.
            **options: Other attributes, by name, such as `loss_weight=`. The results of given
                functions are checked at their first call.
        """
        schedule = model.schedule.to(model.unet.device)
        checked = with_checks(options, "StepRecipe.of({})")
        return cls(schedule, model.identity.prediction, **checked)


@dataclass(frozen=True)
class StepOutput:
    """The losses of a training step.

    Attributes:
        losses: [B] weighted loss of each sample.
        t: [B] timestep of each sample.
        weights: [B] weight of each sample without the weight of its timestep; already included in
            `losses`.
    """

    losses: Float[Tensor, "b"]
    t: Int[Tensor, "b"]
    weights: Float[Tensor, "b"]


@dataclass(frozen=True)
class StepInputs:
    """The tensors of a batch that a training step computes with, on the device of the U-Net.

    Attributes:
        x_0: [B, 4, h, w] scaled latents.
        noise: [B, 4, h, w] the noise that the prediction target is computed from.
        input_noise: [B, 4, h, w] the noise that is added to the latents; None if it is `noise`.
        t: [B] timesteps in [0, T).
        conditioning: The U-Net's inputs for captions and sizes.
        weights: [B] weight of each sample in the loss.
        mask: [B, 1, h, w] weight of each latent pixel in the loss; None if all are 1.
    """

    x_0: Latents
    noise: Latents
    input_noise: Latents | None
    t: Int[Tensor, "b"]
    conditioning: Conditioning
    weights: Float[Tensor, "b"]
    mask: Float[Tensor, "b 1 h w"] | None

    def tensors(self) -> list[Tensor]:
        """Return all tensors, including the conditioning's; the first dimension is the batch."""
        given = (self.x_0, self.noise, self.input_noise, self.t, self.weights, self.mask)
        return [*(x for x in given if x is not None), *self.conditioning.tensors()]

    def map(self, change: Callable[[Tensor], Tensor]) -> StepInputs:
        """Return the same inputs with a function applied to every tensor."""
        return StepInputs(
            x_0=change(self.x_0),
            noise=change(self.noise),
            input_noise=None if self.input_noise is None else change(self.input_noise),
            t=change(self.t),
            conditioning=self.conditioning.map(change),
            weights=change(self.weights),
            mask=None if self.mask is None else change(self.mask),
        )


def training_step(
    unet: Any, conditioner: TextConditioner, batch: Batch, recipe: StepRecipe
) -> StepOutput:
    """Return the loss of each sample of a batch; gradients flow into all trained parameters.

    Args:
        unet: Called like diffusers' UNet2DConditionModel.
        conditioner: Encodes the captions if the batch has no conditioning yet.
        batch: Images of one bucket.
        recipe: The functions and numbers of the step.
    """
    inputs = step_inputs(conditioner, batch, recipe)
    return StepOutput(losses_of(unet, inputs, recipe), inputs.t, inputs.weights)


def step_inputs(conditioner: TextConditioner, batch: Batch, recipe: StepRecipe) -> StepInputs:
    """Draw noise and timesteps, encode captions, and move everything to the device.

    All data that a step copies from the CPU to the GPU is copied here.
    """
    schedule = recipe.schedule
    device = schedule.alphas_cumprod.device

    x_0 = to_device(batch.latents, device)
    noise = recipe.noise.noise(x_0, batch.randomness)
    t_host = recipe.timesteps(batch.randomness, schedule.num_timesteps)
    t = to_device(t_host, device)

    input_noise = recipe.noise.on_input(noise, batch.randomness)
    conditioning = batch.conditioning or conditioner(batch.captions, batch.geometry)
    return StepInputs(
        x_0=x_0,
        noise=noise,
        input_noise=None if input_noise is noise else input_noise,
        t=t,
        conditioning=conditioning.to(device),
        weights=to_device(_weights(batch, t_host, recipe), device),
        mask=None if batch.mask is None else to_device(batch.mask, device),
    )


def _weights(batch: Batch, t: Int[Tensor, "b"], recipe: StepRecipe) -> Float[Tensor, "b"]:
    """Return [B] weights: those of the dataset, times Diff-Tuning's factor if it is used."""
    if recipe.retention is None:
        return batch.weights
    where = batch.weights.device
    keeps = torch.zeros(len(t), dtype=torch.bool) if batch.keeps is None else batch.keeps.cpu()
    factor = retention(t, recipe.schedule.num_timesteps, recipe.retention, keeps)
    return batch.weights * to_device(factor, where)


def losses_of(unet: Any, inputs: StepInputs, recipe: StepRecipe) -> Float[Tensor, "b"]:
    """Return the loss of each sample; uses only tensors on the device, so the CPU never waits."""
    schedule, prediction, t = recipe.schedule, recipe.prediction, inputs.t
    on_input = inputs.noise if inputs.input_noise is None else inputs.input_noise

    x_t = schedule.add_noise(inputs.x_0, on_input, t)
    output = unet(x_t, t, **inputs.conditioning.arguments).sample
    target = prediction.target(inputs.x_0, inputs.noise, t, schedule)

    weights = recipe.loss_weight(t, schedule, prediction) * inputs.weights
    error = recipe.error(output, target, t, schedule)
    return per_sample(error, inputs.mask, recipe.masking) * weights


def micro_batch_loss(
    losses: Float[Tensor, "b"], samples_in_step: int, num_processes: int
) -> Float[Tensor, ""]:
    """Return the contribution of this micro-batch to the step's mean loss.

    Every sample of a step counts the same, however the step is split into micro-batches. The factor
    `num_processes` undoes the averaging of gradients over processes.
    """
    return torch.sum(losses) * (num_processes / samples_in_step)
