"""Builds everything that a run computes with, from its settings.

The one place where the settings tree is taken apart: what it makes takes plain arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from torch import nn

from impasto.config.compatibility import require_compatible
from impasto.config.run import RunConfig
from impasto.data.dataset import TrainingData
from impasto.data.encoding import MomentsEncoder
from impasto.datasets.batching import build_epoch_sampler, count_steps, validation_batch_size
from impasto.datasets.build import Survey
from impasto.datasets.prepare import PreparedData, prepare_data
from impasto.errors import ConfigError
from impasto.models.attention import use_kernel
from impasto.models.attention_kernels import build_kernel
from impasto.models.hypernetwork import (
    HypernetworkStack,
    load_hypernetworks,
)
from impasto.models.loading import BaseModel, load_base_model, with_zero_terminal_snr
from impasto.models.text import TextConditioner
from impasto.models.trainable import Trainable
from impasto.models.vae import moments_encoder, tensors_fingerprint, weights_fingerprint
from impasto.progress import Progress, SilentProgress
from impasto.sampling.prompts import Prompt
from impasto.sampling.sampler import Sampler
from impasto.training.compile import compile_unet
from impasto.training.devices import release_cached_memory, set_arithmetic
from impasto.training.fingerprint import Facts, recorded_texts, run_fingerprint
from impasto.training.given_text import find_given_texts
from impasto.training.lr_schedule import build_lr_schedule
from impasto.training.methods import build_templates
from impasto.training.model import build_encoding_vae, build_open_options, with_offloaded
from impasto.training.monitoring.previews import Previewer
from impasto.training.monitoring.validation import Validator
from impasto.training.objective import (
    build_error,
    build_loss_weight,
    build_noise,
    build_timesteps,
)
from impasto.training.optim.chunked import ChunkedOptimizer, ChunkRules
from impasto.training.optim.ema import EmaWeights
from impasto.training.optim.state import part_names
from impasto.training.overrides import Overrides
from impasto.training.parallel.strategy import ParallelStrategy
from impasto.training.param_dtypes import (
    build_chunk_rules,
    build_dtypes,
    build_weight_stream,
)
from impasto.training.precision import computed_kind
from impasto.training.processes import build_strategy, facts_of
from impasto.training.prompts import build_prompts
from impasto.training.session import Session
from impasto.training.step import StepRecipe
from impasto.training.text import (
    Conditioners,
    build_conditioners,
    encode_captions_ahead,
    zeroes_empty_negative,
)


def build_session(
    config: RunConfig,
    accelerator: Accelerator,
    progress: Progress,
    overrides: Overrides,
    known: Survey | None = None,
    recorded: Mapping[str, str] | None = None,
) -> Session:
    """Load the model, prepare the data, and put everything where it computes.

    Args:
        config: The settings.
        accelerator: Where it computes.
        progress: Is told how far it is.
        overrides: What is given in code.
        known: What was found of the images already.
        recorded: The fingerprint of the state that is resumed.

    Raises:
        ImpastoError: As the parts it calls.
    """
    processes, device = accelerator.num_processes, accelerator.device
    require_compatible(config, facts_of(config, processes, device=device))
    set_arithmetic(tf32=config.training.tf32, deterministic=config.training.deterministic)
    strategy = build_strategy(config, accelerator)
    prompts = build_prompts(config)
    build_templates(config)
    previewed = load_hypernetworks(config.previews.hypernetworks)
    encoded = _load_and_encode(config, accelerator, progress, known)
    model, prepared = encoded.model, encoded.data

    if overrides.trainable:
        encoded.all_hashes()  # code may change weights in place, while they are hashed
    lengths = config.model.max_tokens // 75  # of captions; one if they are always filled up
    shapes = len(prepared.plan.bucket_counts) * lengths
    trainable = _build_network(config, accelerator, model, shapes, overrides)
    rules = build_chunk_rules(config, trainable.parts, accelerator)
    told = progress if accelerator.is_main_process else SilentProgress()
    given = find_given_texts(
        config,
        model,
        trainable.states,
        prepared.records,
        device,
        told,
        recorded_texts(recorded or {}),
    )
    hash_of = _hash_now if overrides.trainable else encoded.hash_of
    conditioners = build_conditioners(
        config, device, strategy.wrap, model, trainable, progress, hash_of, given
    )
    if config.training.cache_text_to_disk:
        encode_captions_ahead(accelerator, conditioners, prepared.captions(), prompts)
        model = _without_text_encoders(config, accelerator, model, prepared, conditioners)
    tell = overrides.conditioner or _as_it_is
    stream = build_weight_stream(config, trainable, device)
    unet = strategy.wrap(trainable.network) if stream is None else stream.place()
    trainable.parts = strategy.place(trainable.parts)
    optimizer = overrides.build_optimizer(trainable.parts, config.optimizer, rules)
    _require_chunks(optimizer, rules)
    part_by_group = part_names(optimizer, trainable.parts)
    strategy.start(trainable.parts, optimizer)

    sampler = build_epoch_sampler(config, prepared.training, processes)
    steps = count_steps(config, sampler)
    require_compatible(config, facts_of(config, processes, steps, device))
    return Session(
        config=config,
        accelerator=accelerator,
        strategy=strategy,
        model=model,
        trainable=trainable,
        unet=unet,
        conditioner=tell(conditioners.training),
        eval_conditioner=tell(conditioners.watching),
        captions=conditioners.training,
        encodes_ahead=conditioners.training.is_frozen and overrides.conditioner is None,
        recipe=_build_recipe(config, model, accelerator.device, overrides),
        optimizer=optimizer,
        part_by_group=part_by_group,
        lr_schedule=overrides.lr_schedule
        or build_lr_schedule(config.schedule, config.optimizer.lr),
        data=_build_data(config, encoded, steps, overrides),
        prepared=prepared,
        sampler=sampler,
        validator=_build_validator(config, prepared, model),
        previewer=_build_previewer(
            prompts,
            model,
            trainable,
            tell(conditioners.prompts),
            previewed,
            tiled=config.previews.vae_tiling,
            zeroes_empty_text=zeroes_empty_negative(config, model),
        ),
        ema=_build_ema(config, trainable, strategy),
        precision=strategy.build_precision(
            computed_kind(config), device, caches_casts=stream is None
        ),
        stream=stream,
        total_steps=steps,
        fingerprint=run_fingerprint(
            config,
            Facts(
                encoded.all_hashes(),
                model.contents,
                prepared.training,
                prepared.held_out,
                processes,
                steps,
                overrides.given(),
                partial(prepared.cache.hashes.of, progress=progress),
                {} if given is None else given.recorded,
            ),
        ),
    )


def _without_text_encoders(
    config: RunConfig,
    accelerator: Accelerator,
    model: BaseModel,
    prepared: PreparedData,
    conditioners: Conditioners,
) -> BaseModel:
    """The model whose text encoders have left the device, unless captions change as they are shown.

    What they answer is on the disk by now.
    """
    if not prepared.changes_words and build_templates(config) is None:
        conditioners.training.to_cpu()
        for part in model.family.text_encoders:
            model = with_offloaded(model, part.name, config, accelerator)
    release_cached_memory(accelerator.device)
    return model


def _hash_now(_: str, network: nn.Module) -> str:
    """The hash of a network that code may have changed since it was loaded."""
    return weights_fingerprint(network)


@dataclass(frozen=True)
class _Encoded:
    """The base model, and images as its VAE encodes them.

    Attributes:
        encoder: For images that are encoded each time they are shown, if there are such.
        vae_hash: A hash of the VAE.
        hashes: Other network -> a hash of it as it was loaded, on its way.
    """

    model: BaseModel
    data: PreparedData
    encoder: MomentsEncoder | None
    vae_hash: str
    hashes: Mapping[str, Future[str]]

    def hash_of(self, name: str, network: nn.Module) -> str:
        """The hash of a network as it was loaded, which a frozen one still is."""
        return self.hashes[name].result() if name in self.hashes else _hash_now(name, network)

    def all_hashes(self) -> dict[str, str]:
        """The hashes of all networks, as states have them."""
        ready = {part: future.result() for part, future in self.hashes.items()}
        vae = self.model.family.vae.name
        return {part: text[:16] for part, text in {**ready, vae: self.vae_hash}.items()}


def _load_and_encode(
    config: RunConfig, accelerator: Accelerator, progress: Progress, known: Survey | None
) -> _Encoded:
    """Load the base model and encode the images; then the VAE leaves the device."""
    method = config.method
    model = load_base_model(
        config.model.path,
        build_open_options(config),
        progress,
        build_dtypes(config),
        exact=method.frozen_text_encoders if method.kind == "full" else (),
    )
    prediction, processes = model.identity.prediction, accelerator.num_processes
    known_facts = facts_of(config, processes, device=accelerator.device, prediction=prediction)
    require_compatible(config, known_facts)
    if config.noise.zero_terminal_snr:
        model = with_zero_terminal_snr(model)
    device = accelerator.device
    encoding_vae = build_encoding_vae(config, model)
    encoder = moments_encoder(
        encoding_vae,
        batch_size=config.dataset.vae_batch_size,
        device=device,
        npz_endings=model.family.npz_endings,
    )
    aside = ThreadPoolExecutor(1)  # hashing leaves Python free: 2 s of a full-size U-Net
    vae = model.family.vae.name
    texts = model.text_encoders  # these first: captions on disk wait for their hashes
    hashes = {
        part: aside.submit(tensors_fingerprint, model.networks[part].state_dict())
        for part in sorted(model.networks, key=lambda part: part not in texts)
        if part != vae
    }
    aside.shutdown(wait=False)
    prepared = prepare_data(config, encoder, accelerator, progress, known)
    if not prepared.training.encoded_ahead:
        release_cached_memory(device)
        return _Encoded(model, prepared, encoder, encoder.fingerprint, hashes)
    encoding_vae.to("cpu")
    release_cached_memory(device)
    without = with_offloaded(model, vae, config, accelerator)
    return _Encoded(without, prepared, None, encoder.fingerprint, hashes)


def _build_network(
    config: RunConfig, accelerator: Accelerator, model: BaseModel, sizes: int, overrides: Overrides
) -> Trainable:
    """What learns, computing the way the settings ask for; `sizes` is how many shapes there are."""
    training, device = config.training, accelerator.device
    if training.attention != "sdpa":
        use_kernel(model.unet, build_kernel(training.attention, device))
    trainable = overrides.build_trainable()(config, model)
    _require_exportable(config, trainable, model)
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


def _require_chunks(optimizer: torch.optim.Optimizer, rules: ChunkRules) -> None:
    """Make sure that an optimizer that was given in code keeps to what the settings ask of it.

    Raises:
        ConfigError: It does not.
    """
    if rules.need is not None and not isinstance(optimizer, ChunkedOptimizer):
        raise ConfigError(
            f"{rules.need} is asked of every optimizer, and {type(optimizer).__name__}, which was "
            f"given in code, does not do it: make it with ChunkedOptimizer(groups, build, rules) "
            f"of impasto.training.optim.chunked, or take the setting out."
        )


def _as_it_is(conditioner: TextConditioner) -> TextConditioner:
    return conditioner


def _require_exportable(config: RunConfig, trainable: Trainable, model: BaseModel) -> None:
    """Make sure that what learns has a place in the exported model.

    Raises:
        ConfigError: A way of training that was given in code exports what is no network.
    """
    if config.method.kind != "full":
        return
    foreign = sorted(set(trainable.export()) - set(model.networks))
    if foreign:
        raise ConfigError(
            f"{type(trainable).__name__}.export() gives {foreign[0]!r}, which is no network of the "
            f"model; it has {', '.join(model.networks)}. Give tensors of these, with what was "
            f"learned added to them."
        )


def _build_data(
    config: RunConfig, encoded: _Encoded, steps: int, overrides: Overrides
) -> TrainingData:
    return TrainingData(
        encoded.data.training,
        encoded.data.cache,
        encoded.model.scaling_factor,
        config.seed,
        steps,
        encoded.encoder,
        overrides.noise or build_noise(config.noise),
        build_templates(config),
    )


def _build_recipe(
    config: RunConfig, model: BaseModel, device: torch.device, overrides: Overrides
) -> StepRecipe:
    return StepRecipe(
        model.schedule.to(device),
        model.identity.prediction,
        overrides.timesteps or build_timesteps(config.timesteps),
        overrides.loss_weight or build_loss_weight(config.loss),
        overrides.noise or build_noise(config.noise),
        overrides.error or build_error(config.loss),
    )


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
    conditioner: TextConditioner,
    others: HypernetworkStack,
    *,
    tiled: bool,
    zeroes_empty_text: bool,
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
        trainable.unet,
        model.vae,
        conditioner,
        model.scheduler_config,
        model.scaling_factor,
        hypernetworks=stack,
        cell=model.family.cell,
        tiled=tiled,
        zeroes_empty_text=zeroes_empty_text,
    )
    return Previewer(sampler, prompts)


def _build_ema(
    config: RunConfig, trainable: Trainable, strategy: ParallelStrategy
) -> EmaWeights | None:
    training = config.training
    if training.ema_decay is None:
        return None
    learning = {
        f"{part.name}.{name}": parameter
        for part in trainable.parts
        for name, parameter in part.parameters().items()
    }
    return EmaWeights(
        learning,
        training.ema_decay,
        power=training.ema_power,
        every=training.ema_every,
        on_cpu=training.ema_on_cpu,
        copies_values=strategy.is_sharded,
    )
