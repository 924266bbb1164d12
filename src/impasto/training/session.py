"""Builds everything that a run computes with, from its settings.

The one place where the settings tree is taken apart: what it makes takes plain arguments.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator

from impasto.checkpoints.keymap import TEXT_ENCODER, VAE
from impasto.config.run import RunConfig
from impasto.data.dataset import TrainingData
from impasto.data.sampler import EpochSampler
from impasto.diffusion.timesteps import TimestepSampler
from impasto.diffusion.weighting import LossWeight
from impasto.models.attention import use_kernel
from impasto.models.attention_kernels import build_kernel
from impasto.models.hypernetwork import (
    HypernetworkStack,
    load_hypernetworks,
)
from impasto.models.loading import BaseModel, load_base_model, with_zero_terminal_snr
from impasto.models.opening import OpenOptions
from impasto.models.parking import park
from impasto.models.saving import DTYPES
from impasto.models.text import ClipTextConditioner
from impasto.models.trainable import Trainable
from impasto.models.vae import moments_encoder, weights_fingerprint
from impasto.progress import Progress
from impasto.sampling.prompts import Prompt
from impasto.sampling.sampler import Sampler
from impasto.training.batches import build_epoch_sampler, count_steps
from impasto.training.compiling import compile_unet, plain_network
from impasto.training.devices import set_float32_precision
from impasto.training.ema import WeightAverage
from impasto.training.fingerprint import run_fingerprint
from impasto.training.methods import build_templates, build_trainable
from impasto.training.objective import (
    build_error,
    build_loss_weight,
    build_noise,
    build_timesteps,
    require_fitting_loss,
)
from impasto.training.optimizers import BuildOptimizer, build_optimizer, evaluation_weights
from impasto.training.pictures import Survey
from impasto.training.precision import Precision
from impasto.training.prepared import PreparedData, prepare_data
from impasto.training.previews import Previewer, build_prompts
from impasto.training.schedules import LrSchedule, build_lr_schedule
from impasto.training.step import StepRecipe
from impasto.training.text import build_conditioners, encode_captions_ahead
from impasto.training.validation import Validator
from impasto.training.weights import build_chunk_rules, build_dtypes

WAITING = "waiting-{part}-{process}.safetensors"
"""Files of the run directory that are there while it trains."""


@dataclass(frozen=True)
class Ingredients:
    """What a run may replace without a setting for it: used by recipes that train from scratch.

    Attributes:
        timesteps: Which noise levels are trained on; None takes the settings'.
        loss_weight: How much each of them counts; None takes the settings'.
        build_optimizer: Makes the optimizer from the parts that learn.
        lr_schedule: The factor on the learning rate by step; None takes the settings'.
    """

    timesteps: TimestepSampler | None = None
    loss_weight: LossWeight | None = None
    build_optimizer: BuildOptimizer = build_optimizer
    lr_schedule: LrSchedule | None = None


@dataclass(frozen=True)
class Session:
    """A run ready to train.

    Attributes:
        unet: The trainable's U-Net as accelerate wraps it; `synchronized` has all wrapped modules.
        conditioner: Text for training, with gradients where the text encoder learns.
        watching_conditioner: The same text encoder for validation and previews, without gradients.
        fingerprint: What a saved state has to agree with, by name.
    """

    config: RunConfig
    accelerator: Accelerator
    model: BaseModel
    trainable: Trainable
    unet: Any
    synchronized: tuple[Any, ...]
    conditioner: ClipTextConditioner
    watching_conditioner: ClipTextConditioner
    recipe: StepRecipe
    optimizer: torch.optim.Optimizer
    lr_schedule: LrSchedule
    data: TrainingData
    prepared: PreparedData
    sampler: EpochSampler
    validator: Validator | None
    previewer: Previewer
    ema: WeightAverage | None
    precision: Precision
    total_steps: int
    fingerprint: Mapping[str, str]

    @contextlib.contextmanager
    def shown_weights(self, *, average: bool = True) -> Iterator[None]:
        """The weights to look at and to export, in the place of those that are trained."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(evaluation_weights(self.optimizer))
            if average and self.ema is not None:
                stack.enter_context(self.ema.in_place())
            yield

    @contextlib.contextmanager
    def looked_at(self) -> Iterator[None]:
        """The weights to look at, computing in the precision of the run."""
        modules = [part.module for part in self.trainable.parts]
        were_training = [module.training for module in modules]
        for module in modules:
            module.eval()
        try:
            with self.shown_weights(), self.precision.autocast(), plain_network():
                yield
        finally:
            for module, was_training in zip(modules, were_training, strict=True):
                module.train(was_training)


def build_session(
    config: RunConfig,
    accelerator: Accelerator,
    progress: Progress,
    ingredients: Ingredients,
    known: Survey | None = None,
) -> Session:
    """Load the model, prepare the data, and put everything where it computes.

    `known` is what was found of the pictures already.

    Raises:
        ImpastoError: As the parts it calls.
    """
    prompts = build_prompts(config)
    build_templates(config)
    previewed = load_hypernetworks(config.previews.hypernetworks)
    model = load_base_model(
        config.model.path, build_open_options(config), progress, build_dtypes(config)
    )
    require_fitting_loss(config.loss, config.noise, model.identity.prediction)
    if config.noise.zero_terminal_snr:
        model = with_zero_terminal_snr(model)
    encoding_vae = build_encoding_vae(config, model).to(accelerator.device)
    encoder = moments_encoder(encoding_vae, batch_size=config.dataset.vae_batch_size)
    with ThreadPoolExecutor(1) as aside:  # hashing leaves Python free: 2 s of a full-size U-Net
        hashed = aside.submit(weights_fingerprint, model.unet)
        prepared = prepare_data(config, encoder, accelerator, progress, known)
        base_fingerprint = hashed.result()[:16]
    encodes_later = not all(key.plain for key in prepared.training.keys)
    if not encodes_later:
        encoding_vae.to("cpu")
        model = with_parked(model, VAE, config, accelerator)

    if config.training.attention != "sdpa":
        use_kernel(model.unet, build_kernel(config.training.attention, accelerator.device))
    trainable = build_trainable(config, model)
    if config.training.channels_last:
        trainable.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rules = build_chunk_rules(config, trainable.parts, accelerator)
    conditioners = build_conditioners(config, accelerator, model, trainable, progress)
    if config.training.cache_text_to_disk:
        encode_captions_ahead(accelerator, conditioners, prepared.captions(), prompts)
        if not prepared.changes_words and build_templates(config) is None:
            model = with_parked(model, TEXT_ENCODER, config, accelerator)
    set_float32_precision(tf32=config.training.tf32)
    compile_unet(
        trainable.unet,
        config.training.compile,
        sizes=len(prepared.plan.bucket_counts),
        cuda_graphs=config.training.cuda_graphs,
        cache=config.dataset.derived_dir / "compiled",
        device=accelerator.device,
    )
    unet = accelerator.prepare(trainable.network.to(accelerator.device))
    optimizer = ingredients.build_optimizer(trainable.parts, config.optimizer, rules)

    sampler = build_epoch_sampler(config, prepared.training, accelerator.num_processes)
    steps = count_steps(config, sampler)
    return Session(
        config=config,
        accelerator=accelerator,
        model=model,
        trainable=trainable,
        unet=unet,
        synchronized=tuple(m for m in (unet, conditioners.wrapped) if m is not None),
        conditioner=conditioners.training,
        watching_conditioner=conditioners.watching,
        recipe=_build_recipe(config, model, accelerator.device, ingredients),
        optimizer=optimizer,
        lr_schedule=ingredients.lr_schedule
        or build_lr_schedule(config.schedule, config.optimizer.lr),
        data=TrainingData(
            prepared.training,
            prepared.cache,
            model.scaling_factor,
            config.seed,
            steps,
            encoder if encodes_later else None,
            build_templates(config),
        ),
        prepared=prepared,
        sampler=sampler,
        validator=_build_validator(config, prepared, model),
        previewer=_build_previewer(prompts, model, trainable, conditioners.prompts, previewed),
        ema=_build_ema(config, trainable),
        precision=Precision(config.training.mixed_precision, accelerator.device),
        total_steps=steps,
        fingerprint=run_fingerprint(
            config, base_fingerprint, prepared.training, accelerator.num_processes, steps
        ),
    )


def _build_recipe(
    config: RunConfig, model: BaseModel, device: torch.device, ingredients: Ingredients
) -> StepRecipe:
    return StepRecipe(
        model.schedule.to(device),
        model.identity.prediction,
        ingredients.timesteps or build_timesteps(config.timesteps),
        ingredients.loss_weight or build_loss_weight(config.loss),
        build_noise(config.noise),
        build_error(config.loss),
    )


def build_open_options(config: RunConfig) -> OpenOptions:
    """What the settings say about the base model."""
    model = config.model
    return OpenOptions(model.family, model.prediction_type, model.weights, model.variant, model.vae)


def with_parked(
    model: BaseModel, part: str, config: RunConfig, accelerator: Accelerator
) -> BaseModel:
    """The model with a part that is not needed now in a file; on a processor only.

    Where there is a GPU, such parts wait in the computer's memory.
    """
    if accelerator.device.type != "cpu":
        return model
    name = WAITING.format(part=part, process=accelerator.process_index)
    module = {VAE: model.vae, TEXT_ENCODER: model.text_encoder}[part]
    waiting = park(module, config.output_dir / name)
    named = {n: waiting[f"text_model.{n}"] if f"text_model.{n}" in waiting else waiting[n]
             for n in model.contents.parts[part]}  # fmt: skip
    parts = {**model.contents.parts, part: named}
    return replace(model, contents=replace(model.contents, parts=parts))


def build_encoding_vae(config: RunConfig, model: BaseModel) -> Any:
    """The VAE as pictures are encoded with: a copy where it is not in float32."""
    dtype = DTYPES[config.dataset.vae_precision]
    return model.vae if model.vae.dtype == dtype else copy.deepcopy(model.vae).to(dtype)


def _build_validator(
    config: RunConfig, prepared: PreparedData, model: BaseModel
) -> Validator | None:
    if prepared.held_out is None:
        return None
    return Validator(
        prepared.held_out, prepared.cache, model.scaling_factor, config.validation.timesteps
    )


def _build_previewer(
    prompts: Sequence[Prompt],
    model: BaseModel,
    trainable: Trainable,
    conditioner: ClipTextConditioner,
    others: HypernetworkStack,
) -> Previewer:
    """Previews with the hypernetwork that is trained, if one is, and the others after it."""
    stack = HypernetworkStack()
    device: torch.device = next(trainable.unet.parameters()).device
    for known in (trainable.hypernetworks, others):
        for name, network in known.networks.items():
            stack.add(name, network.to(device), known.strengths[name])
    for prompt in prompts:
        with stack.at(prompt.strengths):
            pass  # a name that is not there is found before training
    with stack.attached(trainable.unet):
        pass  # and so is one that does not fit the model
    sampler = Sampler(
        trainable.unet, model.vae, conditioner, model.scheduler_config, model.scaling_factor, stack
    )
    return Previewer(sampler, prompts)


def _build_ema(config: RunConfig, trainable: Trainable) -> WeightAverage | None:
    training = config.training
    if training.ema_decay is None:
        return None
    learning = {
        f"{part.name}.{name}": parameter
        for part in trainable.parts
        for name, parameter in part.parameters().items()
    }
    return WeightAverage(
        learning, training.ema_decay, power=training.ema_power, on_cpu=training.ema_on_cpu
    )
