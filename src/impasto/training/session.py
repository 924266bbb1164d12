"""Builds everything that a run computes with, from its settings.

The one place where the settings tree is taken apart: what it makes takes plain arguments.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from impasto.checkpoints.keymap import TEXT_ENCODER, UNET, VAE
from impasto.config.run import RunConfig
from impasto.data.dataset import TrainingData
from impasto.data.encoding import MomentsEncoder
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
from impasto.models.vae import moments_encoder, tensors_fingerprint, tile
from impasto.progress import Progress
from impasto.sampling.prompts import Prompt
from impasto.sampling.sampler import Sampler
from impasto.training.batches import build_epoch_sampler, count_steps, validation_batch_size
from impasto.training.compiling import compile_unet, plain_network
from impasto.training.devices import release_cached_memory, set_arithmetic
from impasto.training.ema import WeightAverage
from impasto.training.fingerprint import Facts, run_fingerprint
from impasto.training.methods import build_templates, build_trainable
from impasto.training.native_precision import computed_kind
from impasto.training.objective import (
    build_error,
    build_loss_weight,
    build_noise,
    build_timesteps,
    require_fitting_loss,
)
from impasto.training.optimizer_state import part_names
from impasto.training.optimizers import BuildOptimizer, build_optimizer, evaluation_weights
from impasto.training.pictures import Survey
from impasto.training.placement import Placement
from impasto.training.precision import Precision
from impasto.training.prepared import PreparedData, prepare_data
from impasto.training.previews import Previewer, build_prompts
from impasto.training.schedules import LrSchedule, build_lr_schedule
from impasto.training.sharding import build_placement
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

    def given(self) -> dict[str, Any]:
        """What is given in code, by name."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {n: p for n, p in parts.items() if p is not None and p is not build_optimizer}


@dataclass(frozen=True)
class Session:
    """A run ready to train.

    Attributes:
        placement: How processes hold what they train.
        unet: What training calls: the trainable's network as the placement wraps it.
        conditioner: Text for training, with gradients where the text encoder learns.
        watching_conditioner: The same text encoder for validation and previews, without gradients.
        part_by_group: The name of the part that each of the optimizer's groups is of.
        fingerprint: What a saved state has to agree with, by name.
    """

    config: RunConfig
    accelerator: Accelerator
    placement: Placement
    model: BaseModel
    trainable: Trainable
    unet: Any
    conditioner: ClipTextConditioner
    watching_conditioner: ClipTextConditioner
    recipe: StepRecipe
    optimizer: torch.optim.Optimizer
    part_by_group: tuple[str, ...]
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

    @property
    def takes_part(self) -> bool:
        """Whether this process does something where the model is looked at or saved."""
        return self.placement.is_shared or self.accelerator.is_main_process

    def agreed(self, answer: bool) -> bool:  # noqa: FBT001 - the question is the caller's
        """The first process's answer, on all that take part."""
        if not self.placement.is_shared:
            return answer
        told = torch.tensor([int(answer)], device=self.accelerator.device)
        return bool(broadcast(told))

    @contextlib.contextmanager
    def shown_weights(self, *, average: bool = True) -> Iterator[None]:
        """The weights to look at and to export, in the place of those that are trained."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(evaluation_weights(self.optimizer))
            if average and self.ema is not None:
                stack.enter_context(self.ema.in_place())
            self.placement.settle()
            stack.callback(self.placement.settle)
            yield

    @contextlib.contextmanager
    def looked_at(self) -> Iterator[None]:
        """The weights to look at, computing in the precision of the run."""
        modules = [part.module for part in self.trainable.parts]
        were_training = [module.training for module in modules]
        for module in modules:
            module.eval()
        try:
            with (
                self.shown_weights(),
                self.precision.autocast(),
                self._casts_for_averages(),
                plain_network(),
            ):
                yield
        finally:
            release_cached_memory(self.accelerator.device)
            for module, was_training in zip(modules, were_training, strict=True):
                module.train(was_training)

    @contextlib.contextmanager
    def _casts_for_averages(self) -> Iterator[None]:
        """Keep no 16-bit copies of float32 averages that stand in the place of 16-bit weights.

        Autocast keeps a copy of each weight that it casts, and training has none of these: looking
        at the averages would take more memory than any update.
        """
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(cached and self.config.training.weights == "fp32")
        try:
            yield
        finally:
            torch.set_autocast_cache_enabled(cached)


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
    set_arithmetic(tf32=config.training.tf32, deterministic=config.training.deterministic)
    placement = build_placement(config, accelerator)
    prompts = build_prompts(config)
    build_templates(config)
    previewed = load_hypernetworks(config.previews.hypernetworks)
    encoded = _load_and_encode(config, accelerator, progress, known)
    model, prepared = encoded.model, encoded.data

    lengths = config.model.max_tokens // 75  # of captions; one if they are always filled up
    shapes = len(prepared.plan.bucket_counts) * lengths
    trainable = _build_network(config, accelerator, model, shapes)
    rules = build_chunk_rules(config, trainable.parts, accelerator)
    conditioners = build_conditioners(
        config, accelerator.device, placement.wrap, model, trainable, progress
    )
    if config.training.cache_text_to_disk:
        encode_captions_ahead(accelerator, conditioners, prepared.captions(), prompts)
        if not prepared.changes_words and build_templates(config) is None:
            conditioners.training.leave_device()
            model = with_parked(model, TEXT_ENCODER, config, accelerator)
        release_cached_memory(accelerator.device)
    unet = placement.wrap(trainable.network)
    trainable.parts = placement.place(trainable.parts)
    optimizer = ingredients.build_optimizer(trainable.parts, config.optimizer, rules)
    part_by_group = part_names(optimizer, trainable.parts)
    placement.start(trainable.parts, optimizer)

    sampler = build_epoch_sampler(config, prepared.training, accelerator.num_processes)
    steps = count_steps(config, sampler)
    return Session(
        config=config,
        accelerator=accelerator,
        placement=placement,
        model=model,
        trainable=trainable,
        unet=unet,
        conditioner=conditioners.training,
        watching_conditioner=conditioners.watching,
        recipe=_build_recipe(config, model, accelerator.device, ingredients),
        optimizer=optimizer,
        part_by_group=part_by_group,
        lr_schedule=ingredients.lr_schedule
        or build_lr_schedule(config.schedule, config.optimizer.lr),
        data=_build_data(config, encoded, steps),
        prepared=prepared,
        sampler=sampler,
        validator=_build_validator(config, prepared, model),
        previewer=_build_previewer(prompts, model, trainable, conditioners.prompts, previewed),
        ema=_build_ema(config, trainable, placement),
        precision=placement.build_precision(computed_kind(config), accelerator.device),
        total_steps=steps,
        fingerprint=run_fingerprint(
            config,
            Facts(
                encoded.all_hashes(),
                model.contents,
                prepared.training,
                prepared.held_out,
                accelerator.num_processes,
                steps,
                ingredients.given(),
                partial(prepared.cache.hashes.of, progress=progress),
            ),
        ),
    )


@dataclass(frozen=True)
class _Encoded:
    """The base model, and pictures as its VAE encodes them.

    Attributes:
        encoder: For pictures that are encoded each time they are shown, if there are such.
        vae_hash: A hash of the VAE.
        hashes: Other network -> a hash of it as it was loaded, on its way.
    """

    model: BaseModel
    data: PreparedData
    encoder: MomentsEncoder | None
    vae_hash: str
    hashes: Mapping[str, Future[str]]

    def all_hashes(self) -> dict[str, str]:
        """The hashes of all networks, as states have them."""
        ready = {part: future.result() for part, future in self.hashes.items()}
        return {part: text[:16] for part, text in {**ready, VAE: self.vae_hash}.items()}


def _load_and_encode(
    config: RunConfig, accelerator: Accelerator, progress: Progress, known: Survey | None
) -> _Encoded:
    """Load the base model and encode the pictures; then the VAE leaves the device."""
    model = load_base_model(
        config.model.path, build_open_options(config), progress, build_dtypes(config)
    )
    require_fitting_loss(config.loss, config.noise, model.identity.prediction)
    if config.noise.zero_terminal_snr:
        model = with_zero_terminal_snr(model)
    device = accelerator.device
    encoding_vae = build_encoding_vae(config, model)
    encoder = moments_encoder(encoding_vae, batch_size=config.dataset.vae_batch_size, device=device)
    aside = ThreadPoolExecutor(1)  # hashing leaves Python free: 2 s of a full-size U-Net
    networks = {UNET: model.unet, TEXT_ENCODER: model.text_encoder}
    hashes = {
        part: aside.submit(tensors_fingerprint, network.state_dict())
        for part, network in networks.items()
    }
    aside.shutdown(wait=False)
    prepared = prepare_data(config, encoder, accelerator, progress, known)
    if not all(key.plain for key in prepared.training.keys):
        release_cached_memory(device)
        return _Encoded(model, prepared, encoder, encoder.fingerprint, hashes)
    encoding_vae.to("cpu")
    release_cached_memory(device)
    without = with_parked(model, VAE, config, accelerator)
    return _Encoded(without, prepared, None, encoder.fingerprint, hashes)


def _build_network(
    config: RunConfig, accelerator: Accelerator, model: BaseModel, sizes: int
) -> Trainable:
    """What learns, computing the way the settings ask for; `sizes` is how many shapes there are."""
    training, device = config.training, accelerator.device
    if training.attention != "sdpa":
        use_kernel(model.unet, build_kernel(training.attention, device))
    trainable = build_trainable(config, model)
    if training.channels_last:
        trainable.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    compile_unet(
        trainable.unet,
        training.compile,
        sizes=sizes,
        cuda_graphs=training.cuda_graphs,
        cache=config.dataset.derived_dir / "compiled",
        device=device,
    )
    return trainable


def _build_data(config: RunConfig, encoded: _Encoded, steps: int) -> TrainingData:
    return TrainingData(
        encoded.data.training,
        encoded.data.cache,
        encoded.model.scaling_factor,
        config.seed,
        steps,
        encoded.encoder,
        build_noise(config.noise),
        build_templates(config),
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
    tile(model.vae, tiled=config.dataset.vae_tiling)
    return model.vae if model.vae.dtype == dtype else copy.deepcopy(model.vae).to(dtype)


def _build_validator(
    config: RunConfig, prepared: PreparedData, model: BaseModel
) -> Validator | None:
    if prepared.held_out is None:
        return None
    return Validator(
        prepared.held_out,
        prepared.cache,
        model.scaling_factor,
        config.validation.timesteps,
        partial(validation_batch_size, config),
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


def _build_ema(
    config: RunConfig, trainable: Trainable, placement: Placement
) -> WeightAverage | None:
    training = config.training
    if training.ema_decay is None:
        return None
    learning = {
        f"{part.name}.{name}": parameter
        for part in trainable.parts
        for name, parameter in part.parameters().items()
    }
    return WeightAverage(
        learning,
        training.ema_decay,
        power=training.ema_power,
        every=training.ema_every,
        on_cpu=training.ema_on_cpu,
        in_their_place=placement.is_shared,
    )
