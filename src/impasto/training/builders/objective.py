"""Builds the training objective from the settings: error, loss weights, noise and timesteps."""

from __future__ import annotations

from collections.abc import Callable

from impasto.config.objective import HuberLoss, LossConfig, NoiseConfig, TimestepConfig
from impasto.diffusion.loss import (
    ErrorMeasure,
    Huber,
    Masking,
    SmoothL1,
    Threshold,
    absolute,
    squared,
)
from impasto.diffusion.noise import NoiseRecipe
from impasto.diffusion.schedule import NoiseSchedule
from impasto.diffusion.timesteps import (
    LogitNormal,
    Stratified,
    TimestepRange,
    TimestepSampler,
    Uniform,
)
from impasto.diffusion.weighting import (
    LossWeight,
    by_schedule,
    debiased,
    min_snr,
    noise_loss_like_v,
    product,
    soft_min_snr,
    v_loss_as_noise_loss,
)

PLAIN_ERRORS: dict[str, ErrorMeasure] = {"l2": squared, "l1": absolute}
HUBER_ERRORS: dict[str, Callable[[Threshold], ErrorMeasure]] = {
    "huber": Huber,
    "smooth_l1": SmoothL1,
}


def build_error(config: LossConfig) -> ErrorMeasure:
    """Build the error measure that compares an output with its target."""
    if isinstance(config, HuberLoss):
        threshold = Threshold(config.huber_schedule, config.huber_c, config.huber_scale)
        return HUBER_ERRORS[config.kind](threshold)
    return PLAIN_ERRORS[config.kind]


def build_masking(config: LossConfig) -> Masking:
    """Build the rule by which masks weight the loss."""
    return Masking(config.outside_mask, config.mask_by_area)


def build_loss_weight(config: LossConfig, original: NoiseSchedule) -> LossWeight:
    """Build the loss weight of each timestep: the product of all weightings that are set.

    Args:
        config: The section `loss`.
        original: The noise schedule before it was rescaled for training, if it was.
    """
    weights: list[LossWeight] = []
    if config.min_snr_gamma is not None:
        weights.append(min_snr(config.min_snr_gamma))
    if config.soft_min_snr_gamma is not None:
        weights.append(soft_min_snr(config.soft_min_snr_gamma))
    if config.v_loss_as_noise_loss:
        weights.append(v_loss_as_noise_loss)
    if config.noise_loss_like_v is not None:
        weights.append(noise_loss_like_v(config.noise_loss_like_v))
    if config.debiased:
        weights.append(debiased)
    weight = product(weights)
    return by_schedule(weight, original) if config.snr_schedule == "original" else weight


def build_noise(config: NoiseConfig) -> NoiseRecipe:
    """Build the recipe that draws the noise of a batch."""
    return NoiseRecipe(
        offset=config.offset,
        offset_is_random=config.offset_random_strength,
        adaptive_scale=config.adaptive_scale,
        multires_iterations=config.multires_iterations,
        multires_discount=config.multires_discount,
        perturbation=config.input_perturbation,
        perturbation_is_random=config.input_perturbation_random_strength,
    )


def build_timesteps(config: TimestepConfig) -> TimestepSampler:
    """Build the sampler that draws the timesteps of a batch."""
    within = TimestepRange(config.first, config.last)
    samplers: dict[str, TimestepSampler] = {
        "uniform": Uniform(within),
        "stratified": Stratified(within),
        "logit_normal": LogitNormal(config.logit_mean, config.logit_std, within),
    }
    return samplers[config.sampling]
