"""Builds the session of a run from its settings.

Only here is the settings tree taken apart: the objects that are built take plain arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from accelerate import Accelerator

from impasto.config.compatibility import require_compatible
from impasto.config.run import RunConfig
from impasto.data.caching.text_npz import GivenTexts
from impasto.data.loading.sampler import EpochSampler
from impasto.datasets.batching import build_epoch_sampler, count_steps
from impasto.datasets.build import Survey
from impasto.datasets.prepare import PreparedData
from impasto.models.networks.loading import BaseModel
from impasto.models.reading.opening_ahead import OpenedAhead
from impasto.models.trainable import Trainable
from impasto.progress import Progress, SilentProgress
from impasto.sampling.prompts import Prompt
from impasto.training.assembly.encoded_model import (
    EncodedModel,
    hash_now,
    hashing_ends_first,
    load_and_encode,
)
from impasto.training.assembly.session_parts import (
    PreviewMaterial,
    build_data,
    build_ema,
    build_posthoc,
    build_previewer,
    build_recipe,
    build_validator,
)
from impasto.training.assembly.trained_network import build_learning, build_network
from impasto.training.builders.given_text import find_given_texts
from impasto.training.builders.idle_settings import idle_settings
from impasto.training.builders.lr_schedule import build_lr_schedule
from impasto.training.builders.methods import build_templates
from impasto.training.builders.model import keep_base, with_offloaded
from impasto.training.builders.overrides import CheckedLrSchedule, Overrides
from impasto.training.builders.processes import build_strategy, facts_of
from impasto.training.builders.text import Conditioners, build_conditioners, encode_captions_ahead
from impasto.training.compute.precision import caches_casts, computed_kind
from impasto.training.devices import release_cached_memory, set_arithmetic
from impasto.training.fingerprints.fingerprint import Facts, recorded_texts, run_fingerprint
from impasto.training.optim.lr_schedules import LrSchedule
from impasto.training.optim.mixed_precision import Precision
from impasto.training.parallel.strategy import ParallelStrategy
from impasto.training.planning.memory_facts import unloads_text_encoder
from impasto.training.session import Session


def build_session(
    config: RunConfig,
    accelerator: Accelerator,
    progress: Progress,
    overrides: Overrides,
    known: Survey | None = None,
    recorded: Mapping[str, str] | None = None,
    opened: OpenedAhead | None = None,
) -> Session:
    """Load the model, encode the images, and build all parts of a session on their devices.

    Args:
        config: The settings.
        accelerator: The device and processes of the run.
        progress: Receives progress and notes.
        overrides: Functions and objects that the caller gave in code.
        known: The scanned images; None scans them here.
        recorded: The fingerprint of the state that is resumed; None or empty for a new run.
        opened: The base model if it is open already; None opens it here.

    Raises:
        ImpastoError: The settings contradict each other, or do not fit the model, the dataset or
            the machine.
    """
    require_compatible(
        config, facts_of(config, accelerator.num_processes, device=accelerator.device)
    )
    set_arithmetic(tf32=config.training.tf32, deterministic=config.training.deterministic)
    build = _Builder(config, accelerator, progress, overrides, build_strategy(config, accelerator))
    previews = PreviewMaterial.of(config, progress, is_main=accelerator.is_main_process)
    build_templates(config)
    for clause in idle_settings(config, overrides.given()):  # in a new run these are errors
        progress.note(f"{clause}.")
    encoded = build.encoded(known, opened)
    with hashing_ends_first(encoded.hashes):
        return _session(build, encoded, previews, recorded or {})


def _session(
    build: _Builder,
    encoded: EncodedModel,
    previews: PreviewMaterial,
    recorded: Mapping[str, str],
) -> Session:
    """Build the session of a run from a base model that has encoded the images."""
    config, accelerator, overrides = build.config, build.accelerator, build.overrides
    prepared = encoded.data
    merged = keep_base(
        config, accelerator, encoded.model, build.progress,
        any_component=overrides.trainable is not None,
    )  # fmt: skip
    trainable = build.network(encoded)
    text = build.text(encoded, trainable, previews.prompts, recorded)
    model, conditioners = text.model, text.conditioners
    learning = build_learning(
        config, accelerator, build.strategy, overrides, trainable, build.progress.note
    )
    sampler, steps = build.epochs(prepared)
    return Session(
        config=config,
        accelerator=accelerator,
        strategy=build.strategy,
        model=model,
        trainable=trainable,
        unet=learning.unet,
        conditioner=overrides.tell(conditioners.training),
        eval_conditioner=overrides.tell(conditioners.watching),
        captions=conditioners.training,
        encodes_ahead=conditioners.training.is_frozen and overrides.conditioner is None,
        recipe=build_recipe(config, model, accelerator.device, overrides),
        optimizer=learning.optimizer,
        module_by_group=learning.module_by_group,
        lr_schedule=build.lr_schedule(),
        data=build_data(config, encoded, steps, overrides),
        prepared=prepared,
        sampler=sampler,
        validator=build_validator(config, prepared, model),
        previewer=build_previewer(
            config, previews, model, trainable, overrides.tell(conditioners.prompts), prepared
        ),
        ema=build_ema(config, trainable, build.strategy),
        posthoc=build_posthoc(config, trainable, build.strategy),
        precision=build.precision(),
        stream=learning.stream,
        merged=merged,
        total_steps=steps,
        fingerprint=build.fingerprint(encoded, text, steps),
    )


@dataclass(frozen=True)
class _Text:
    """The base model and the conditioners that encode captions with its text encoders.

    Attributes:
        model: The base model; its text encoders are offloaded if nothing needs them.
        conditioners: One conditioner per use: training, evaluation, and previews' prompts.
        given: Text encoder outputs that are read from files; None if there are none.
    """

    model: BaseModel
    conditioners: Conditioners
    given: GivenTexts | None


@dataclass(frozen=True)
class _Builder:
    """Builds the parts of a session from the settings and the caller's overrides."""

    config: RunConfig
    accelerator: Accelerator
    progress: Progress
    overrides: Overrides
    strategy: ParallelStrategy

    def encoded(self, known: Survey | None, opened: OpenedAhead | None) -> EncodedModel:
        """Load the base model and encode the images."""
        given = self.overrides.trainable is not None  # the caller's code may use any network
        encoded = load_and_encode(
            self.config,
            self.accelerator,
            self.progress,
            known,
            all_at_once=given,
            opened=opened,
        )
        if given:
            encoded.all_hashes()  # wait, since the caller's code may change weights in place
        return encoded

    def network(self, encoded: EncodedModel) -> Trainable:
        """Build the trained parameters, and apply the settings of computation to the network."""
        shapes = len(encoded.data.plan.bucket_counts) * self.config.model.caption_lengths
        return build_network(self.config, self.accelerator, encoded.model, shapes, self.overrides)

    def text(
        self,
        encoded: EncodedModel,
        trainable: Trainable,
        prompts: Sequence[Prompt],
        recorded: Mapping[str, str],
    ) -> _Text:
        """Build the conditioners, and encode captions ahead if `cache_text_to_disk` is on."""
        config, accelerator, prepared = self.config, self.accelerator, encoded.data
        if not (config.trains_text_encoder or unloads_text_encoder(config)):
            trainable.states.stay_on(accelerator.device)
        given = find_given_texts(
            config,
            encoded.model,
            trainable.states,
            lambda: prepared.records,
            accelerator.device,
            self.progress if accelerator.is_main_process else SilentProgress(),
            recorded_texts(recorded),
        )
        conditioners = build_conditioners(
            config,
            accelerator.device,
            self.strategy.wrap,
            encoded.model,
            trainable,
            self.progress,
            hash_now if self.overrides.trainable else encoded.hash_of,
            given,
        )
        model = encoded.model
        if config.training.cache_text_to_disk:
            encode_captions_ahead(conditioners, prepared.captions(), prompts, prepared.peers)
            model = _without_text_encoders(config, accelerator, model, prepared, conditioners)
        return _Text(model, conditioners, given)

    def epochs(self, prepared: PreparedData) -> tuple[EpochSampler, int]:
        """Return the sampler that orders the images, and the number of steps of the run.

        Raises:
            ConfigError: A setting does not fit this number of steps.
        """
        config, processes = self.config, self.accelerator.num_processes
        sampler = build_epoch_sampler(config, prepared.training, processes)
        steps = count_steps(config, sampler)
        device = self.accelerator.device
        require_compatible(config, facts_of(config, processes, device=device, total_steps=steps))
        return sampler, steps

    def lr_schedule(self) -> LrSchedule:
        """Return the learning-rate schedule: the factor of all learning rates at each step."""
        config = self.config
        given = self.overrides.lr_schedule
        if given is not None:
            return CheckedLrSchedule(given)
        return build_lr_schedule(config.schedule, config.optimizer.lr)

    def precision(self) -> Precision:
        """Return the mixed precision of the run."""
        return self.strategy.build_precision(
            computed_kind(self.config),
            self.accelerator.device,
            caches_casts=caches_casts(self.config),
        )

    def fingerprint(self, encoded: EncodedModel, text: _Text, steps: int) -> dict[str, str]:
        """Return the facts that a saved state must agree with, by name."""
        prepared = encoded.data
        return run_fingerprint(
            self.config,
            Facts(
                encoded.all_hashes(),
                text.model.contents,
                prepared.training,
                prepared.held_out,
                self.accelerator.num_processes,
                steps,
                self.overrides.given(),
                partial(prepared.cache.hashes.of, progress=self.progress),
                {} if text.given is None else text.given.recorded,
            ),
        )


def _without_text_encoders(
    config: RunConfig,
    accelerator: Accelerator,
    model: BaseModel,
    prepared: PreparedData,
    conditioners: Conditioners,
) -> BaseModel:
    """Return the model with its text encoders offloaded, since their outputs are cached on disk.

    They stay on the device if captions change each time an image is used.
    """
    if not prepared.changes_captions and build_templates(config) is None:
        conditioners.training.leave_device()
        for component in model.family.text_encoders:
            model = with_offloaded(model, component.name, config, accelerator)
    release_cached_memory(accelerator.device)
    return model
