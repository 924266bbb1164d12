"""Builds the parts of a session that depend only on the settings, the model and the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import nn

from impasto.annotator_table import DEMO_TAGGER
from impasto.config.run import RunConfig
from impasto.data.caching.latent_cache import CachedPlan
from impasto.data.loading.dataset import TrainingData
from impasto.datasets.batching import validation_batch_size
from impasto.datasets.fixed_draws import planned_draws
from impasto.datasets.prepare import PreparedData
from impasto.diffusion.first_call import with_checks
from impasto.diffusion.schedule import NoiseSchedule
from impasto.diffusion.uncertainty import Uncertainty
from impasto.diffusion.weighting import LossWeight
from impasto.evaluation.image_features import CaptionedImage
from impasto.evaluation.networks import Network, TaggerNetwork, load_network
from impasto.evaluation.preview_distance import PreviewDistance, chosen_real
from impasto.models.networks.hypernetwork import HypernetworkStack, load_hypernetworks
from impasto.models.networks.loading import BaseModel
from impasto.models.networks.schedules import original_schedule
from impasto.models.text.text_conditioner import TextConditioner
from impasto.models.trainable import Trainable
from impasto.progress import Progress
from impasto.randomness import derive_rng
from impasto.sampling.prompts import Prompt, text_settings
from impasto.sampling.sampler import Sampler
from impasto.training.assembly.encoded_model import EncodedModel
from impasto.training.builders.methods import build_templates
from impasto.training.builders.objective import (
    build_error,
    build_loss_weight,
    build_masking,
    build_noise,
    build_timesteps,
)
from impasto.training.builders.overrides import Overrides
from impasto.training.builders.prompts import build_prompts
from impasto.training.builders.text import zeroes_empty_negative
from impasto.training.monitoring.fixed_draws import FixedDraws
from impasto.training.monitoring.previews import Previewer
from impasto.training.monitoring.validation import Validator
from impasto.training.monitoring.validation_groups import group_images
from impasto.training.optim.ema import EmaWeights
from impasto.training.optim.posthoc import TRACKED, power_decay
from impasto.training.parallel.strategy import ParallelStrategy
from impasto.training.step import StepRecipe


def build_data(
    config: RunConfig, encoded: EncodedModel, steps: int, overrides: Overrides
) -> TrainingData:
    """Build the object that makes batches of encoded images, with captions, masks and noise."""
    return TrainingData(
        encoded.data.training,
        encoded.data.cache,
        encoded.model.scaling_factor,
        config.seed,
        steps,
        encoded.encoder,
        overrides.noise or build_noise(config.noise),
        build_templates(config),
        assigns_noise=config.noise.immiscible and overrides.noise is None,
    )


def build_recipe(
    config: RunConfig, model: BaseModel, device: torch.device, overrides: Overrides
) -> StepRecipe:
    """Build the functions and numbers of a training step; overrides replace the settings."""
    schedule = model.schedule.to(device)
    given = with_checks(overrides.given(), "Overrides.{}")
    return StepRecipe(
        schedule,
        model.identity.prediction,
        given.get("timesteps") or build_timesteps(config.timesteps),
        given.get("loss_weight") or _loss_weight(config, schedule, model),
        given.get("noise") or build_noise(config.noise),
        given.get("error") or build_error(config.loss),
        config.loss.diff_tuning,
        build_masking(config.loss),
    )


def _loss_weight(config: RunConfig, schedule: NoiseSchedule, model: BaseModel) -> LossWeight:
    if config.loss.uncertainty:
        return Uncertainty(schedule, model.identity.prediction)
    device = schedule.alphas_cumprod.device
    return build_loss_weight(config.loss, original_schedule(model).to(device))


def build_validator(
    config: RunConfig, prepared: PreparedData, model: BaseModel
) -> Validator | None:
    """Build the validator that measures the validation loss; None without held-out images."""
    held_out, cache = prepared.held_out, prepared.cache
    if held_out is None or not held_out.images:
        return None
    draws = planned_draws(config, len(held_out.images))
    batch_size = partial(validation_batch_size, config)
    sample = _training_sample(config, prepared.training)
    number = min(len(held_out.images), len(sample.images) or len(held_out.images))
    units: dict[object, int] = {}
    records = [image.record for image in held_out.images]
    paths = [record.path for record in records]
    alike = [units.setdefault(prepared.alike.get(path, path), len(units)) for path in paths]
    told = config.validation
    return Validator(
        FixedDraws(held_out, cache, model.scaling_factor, draws, batch_size, number),
        alike,
        FixedDraws(sample, cache, model.scaling_factor, draws, batch_size, number)
        if sample.images
        else None,
        group_images(records, alike, told.by, told.by_images),
    )


def _training_sample(config: RunConfig, training: CachedPlan) -> CachedPlan:
    """Return `validation.training_images` of the trained images, chosen at random by the seed.

    Regularisation images are left out, and images that are augmented and encoded again at each use,
    since they have no cached latents to measure.
    """
    order = derive_rng(config.seed, "training-sample").permutation(len(training.images))
    usable = (
        int(index)
        for index in order
        if training.keys[int(index)].plain and not training.images[int(index)].record.subset.is_reg
    )
    chosen = sorted(islice(usable, config.validation.training_images))
    return CachedPlan(
        [training.images[index] for index in chosen],
        [training.keys[index] for index in chosen],
        (),
        0,
    )


@dataclass(frozen=True)
class PreviewMaterial:
    """The inputs of previews other than the model, loaded early so that errors show at once.

    Attributes:
        prompts: The prompts to draw.
        hypernetworks: Hypernetworks to draw with, besides the one that is trained.
        network: The network that compares previews with real images; None without comparison, and
            in all processes but the main one, which draws.
    """

    prompts: Sequence[Prompt]
    hypernetworks: HypernetworkStack
    network: Network | None

    @classmethod
    def of(cls, config: RunConfig, progress: Progress, *, is_main: bool) -> PreviewMaterial:
        """Load the prompts, hypernetworks and the network that the settings name.

        Raises:
            ConfigError: A prompt file or a network is missing or malformed.
            MissingDependencyError: A package that a network needs is not installed.
            ModelError: A hypernetwork or a network is missing or damaged.
        """
        return cls(
            build_prompts(config),
            load_hypernetworks(config.previews.hypernetworks),
            load_preview_network(config, progress) if is_main else None,
        )


def load_preview_network(config: RunConfig, progress: Progress) -> Network | None:
    """Load the network that compares previews with real images, on the CPU.

    Returns None if `previews.features` is not set.

    Raises:
        ConfigError: There is no network of that name.
        MissingDependencyError: A package that the network needs is not installed.
        ModelError: The network is missing, damaged, or computes no features.
    """
    name = config.previews.features
    if name is None:
        return None
    with torch.random.fork_rng(devices=()):  # transformers draws random weights before it reads
        network = load_network(name, torch.device("cpu"), progress, {"demo": DEMO_TAGGER}, "cpu")
    if isinstance(network, TaggerNetwork):
        network.tells_tags = False
    return network


def build_previewer(
    config: RunConfig,
    material: PreviewMaterial,
    model: BaseModel,
    trainable: Trainable,
    conditioner: TextConditioner,
    prepared: PreparedData,
) -> Previewer:
    """Build the previewer; it draws with the trained hypernetwork, if any, and then the others.

    Raises:
        ImpastoError: A prompt names an unknown hypernetwork, or one does not fit the model.
    """
    stack = HypernetworkStack()
    device: torch.device = next(trainable.unet.parameters()).device
    for known in (trainable.hypernetworks, material.hypernetworks):
        for name, network in known.networks.items():
            stack.add(name, network.to(device), known.strengths[name])
    for prompt in material.prompts:
        with stack.at(prompt.strengths):
            pass  # raises for an unknown name before training starts
    with stack.attached(trainable.unet):
        pass  # raises for a hypernetwork that does not fit the model
    sampler = Sampler(
        trainable.unet,
        model.vae,
        conditioner,
        model.scheduler_config,
        model.scaling_factor,
        hypernetworks=stack,
        cell=model.family.cell,
        tiled=config.previews.vae_tiling,
        zeroes_empty_text=zeroes_empty_negative(config, model),
        text_settings=text_settings(config.model.clip_skip, config.previews.emphasis),
    )
    return Previewer(sampler, material.prompts, _distance(material, prepared))


def _distance(material: PreviewMaterial, prepared: PreparedData) -> PreviewDistance | None:
    """Return the comparison of previews with held-out images, or else with trained ones.

    None if there are no prompts, or no network to compare with. Regularisation images are left out
    of the trained ones.
    """
    if material.network is None or not material.prompts:
        return None
    held_out = prepared.held_out.images if prepared.held_out is not None else ()
    images = held_out or [i for i in prepared.training.images if not i.record.subset.is_reg]
    real = list({image.record.path: CaptionedImage.of(image.record) for image in images}.values())
    texts = [prompt.plain_text for prompt in material.prompts]
    source = "held out" if held_out else "trained on"
    return PreviewDistance(material.network, chosen_real(real, texts), source, texts)


def build_ema(
    config: RunConfig, trainable: Trainable, strategy: ParallelStrategy
) -> EmaWeights | None:
    """Build the running average (EMA) of the trained parameters; None if `ema_decay` is not set."""
    training = config.training
    if training.ema_decay is None:
        return None
    return EmaWeights(
        _learning(trainable),
        training.ema_decay,
        power=training.ema_power,
        every=training.ema_every,
        on_cpu=training.ema_on_cpu,
        copies_values=strategy.is_sharded,
    )


def build_posthoc(
    config: RunConfig, trainable: Trainable, strategy: ParallelStrategy
) -> dict[float, EmaWeights]:
    """Build the averages, by sigma_rel, that post-hoc EMA combines; empty if it is off."""
    training = config.training
    if not training.posthoc_ema:
        return {}
    return {
        sigma_rel: EmaWeights(
            _learning(trainable),
            power_decay(sigma_rel, training.ema_every),
            every=training.ema_every,
            on_cpu=training.ema_on_cpu,
            copies_values=strategy.is_sharded,
        )
        for sigma_rel in TRACKED
    }


def _learning(trainable: Trainable) -> dict[str, nn.Parameter]:
    """Return the trained parameters as "part.name" -> parameter."""
    return {
        f"{trained.name}.{name}": parameter
        for trained in trainable.modules
        for name, parameter in trained.parameters().items()
    }
