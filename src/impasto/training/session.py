"""A run that is ready to train: all objects that the training loop uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from impasto.config.run import RunConfig
from impasto.data.loading.dataset import TrainingData
from impasto.data.loading.sampler import EpochSampler
from impasto.datasets.prepare import PreparedData
from impasto.diffusion.uncertainty import Uncertainty
from impasto.models.networks.loading import BaseModel
from impasto.models.reading.recorded import has_random_weights
from impasto.models.text.text_conditioner import ClipTextConditioner, TextConditioner
from impasto.models.trainable import Trainable
from impasto.models.writing.saving import MergedWithBase
from impasto.progress import counted
from impasto.sampling.sampler import rescale_advice
from impasto.training.compute.compile import plain_network
from impasto.training.devices import release_cached_memory
from impasto.training.monitoring.previews import Previewer
from impasto.training.monitoring.recorder import RecorderInputs
from impasto.training.monitoring.validation import Validator
from impasto.training.optim.ema import EmaWeights
from impasto.training.optim.lr_schedules import LrSchedule
from impasto.training.optim.mixed_precision import Precision
from impasto.training.optim.optimizers import evaluation_weights
from impasto.training.optim.state import parameter_names
from impasto.training.optim.streaming import WeightStream
from impasto.training.parallel.strategy import ParallelStrategy
from impasto.training.planning.advice import advice_on
from impasto.training.planning.exposure import exposure_of
from impasto.training.saving.export import ExportSource
from impasto.training.saving.session_state import SessionState
from impasto.training.step import StepRecipe


@dataclass(frozen=True)
class Session:
    """All objects that a training run consists of, built and ready.

    Attributes:
        strategy: How the trained weights are distributed over processes.
        unet: The network that training calls: the trainable's, as the parallel strategy wraps it.
        conditioner: Encodes captions for training; with gradients if a text encoder is trained.
        eval_conditioner: The same for validation and previews, without gradients.
        captions: The conditioner for captions within `conditioner`.
        encodes_ahead: Whether captions of a batch can be encoded while the previous batch is
            trained on.
        stream: Brings weights to the device block by block; None if all of them stay there.
        module_by_group: The name of the model part that each of the optimizer's groups belongs to.
        ema: The running average that is evaluated and exported; None if the run has none.
        merged: Merges exported weights with those of the base model; None exports them unchanged.
        posthoc: Averages that EMAs of other lengths are computed from after training, by sigma_rel.
        fingerprint: Facts that a saved state must agree with, by name.
    """

    config: RunConfig
    accelerator: Accelerator
    strategy: ParallelStrategy
    model: BaseModel
    trainable: Trainable
    unet: Any
    conditioner: TextConditioner
    eval_conditioner: TextConditioner
    captions: ClipTextConditioner
    encodes_ahead: bool
    recipe: StepRecipe
    optimizer: torch.optim.Optimizer
    module_by_group: tuple[str, ...]
    lr_schedule: LrSchedule
    data: TrainingData
    prepared: PreparedData
    sampler: EpochSampler
    validator: Validator | None
    previewer: Previewer
    ema: EmaWeights | None
    posthoc: Mapping[float, EmaWeights]
    precision: Precision
    stream: WeightStream | None
    merged: MergedWithBase | None
    total_steps: int
    fingerprint: Mapping[str, str]

    @property
    def participates(self) -> bool:
        """Whether this process takes part when the model is evaluated or saved."""
        return self.strategy.participates

    @property
    def uncertainty(self) -> Uncertainty | None:
        """The learned loss weights; None if loss weights are fixed."""
        weight = self.recipe.loss_weight
        return weight if isinstance(weight, Uncertainty) else None

    @property
    def averages(self) -> tuple[EmaWeights, ...]:
        """All running averages of the weights."""
        return (*(() if self.ema is None else (self.ema,)), *self.posthoc.values())

    def dataset_facts(self) -> dict[str, Any]:
        """Return the dataset in numbers: images, buckets, and captions over the token limit."""
        texts = self.prepared.training.table.records.fixed_captions()
        return {
            **self.prepared.summary(),
            "too_long": self.captions.too_long(texts),
            "max_tokens": self.config.model.max_tokens,
        }

    def facts(self) -> dict[str, Any]:
        """Return the model family, trained parts, device and number of processes, for display."""
        identity = self.model.identity
        return {
            "family": identity.family.name,
            "prediction": identity.prediction.name,
            "parts": {trained.name: trained.count() for trained in self.trainable.modules},
            "device": str(self.accelerator.device),
            "processes": self.accelerator.num_processes,
            "steps_per_epoch": self.sampler.steps_per_epoch,
        }

    def remarks(self) -> Iterator[str]:
        """Yield notes and warnings for the user to read before the first step, as sentences."""
        if self.strategy.description:
            yield self.strategy.description
        records = self.prepared.training.table.records
        exposure = exposure_of(records, self.sampler, self.total_steps)
        weights = sum(trained.count() for trained in self.trainable.modules)
        device = self.accelerator.device
        is_random = has_random_weights(self.model.contents)
        identity = self.model.identity
        for line in advice_on(
            self.config, identity, device, exposure, weights, is_random=is_random
        ):
            yield f"Warning: {line}"
        shown = sorted({text for prompt in self.previewer.prompts for text in prompt.texts})
        if cut := self.captions.too_long(shown):
            yield (
                f"Warning: {counted(cut, 'prompts of previews have')} over "
                f"{self.config.model.max_tokens} tokens; the tokens beyond are ignored."
            )
        prompts, setting = self.previewer.prompts, "previews.guidance_rescale = 0.7"
        if advice := rescale_advice(self.model.scheduler_config, prompts, setting):
            yield advice

    def resumable(self) -> SessionState:
        """Return the objects whose states are saved and restored with a run."""
        return SessionState(
            strategy=self.strategy,
            names=parameter_names(self.trainable.modules),
            optimizer=self.optimizer,
            precision=self.precision,
            ema=self.ema,
            posthoc=self.posthoc,
            uncertainty=self.uncertainty,
            sampler=self.sampler,
            fingerprint=self.fingerprint,
        )

    def export_source(self) -> ExportSource:
        """Return the weights and facts that models are exported from."""
        return ExportSource(
            config=self.config,
            model=self.model,
            trainable=self.trainable,
            steps=self.total_steps,
            samples_before=self.sampler.samples_before,
            images=len(self.prepared.training.images),
            base_hash=self.fingerprint["base model"],
            merged=self.merged,
        )

    def recorded(self) -> RecorderInputs:
        """Return the objects that metrics are measured on."""
        return RecorderInputs(
            config=self.config,
            accelerator=self.accelerator,
            sampler=self.sampler,
            optimizer=self.optimizer,
            module_by_group=self.module_by_group,
            modules=self.trainable.modules,
            num_timesteps=self.recipe.schedule.num_timesteps,
            lost=self.data.lost,
            remade=self.data.remade,
            number_of_images=len(self.data.plan.images),
        )

    @contextlib.contextmanager
    def eval_weights(self, *, average: bool = True) -> Iterator[None]:
        """Replace the trained weights by those to evaluate and export, within the context.

        Args:
            average: Whether to use the running average, if the run has one.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(evaluation_weights(self.optimizer))
            if average and self.ema is not None:
                stack.enter_context(self.ema.swapped_in())
            self.strategy.reshard()
            stack.callback(self.strategy.reshard)
            yield

    @contextlib.contextmanager
    def evaluating(self, *, average: bool = True) -> Iterator[None]:
        """Put the model into eval mode with the weights to evaluate, in the precision of the run.

        Args:
            average: Whether to use the running average, if the run has one.
        """
        modules = [trained.module for trained in self.trainable.modules]
        were_training = [module.training for module in modules]
        for module in modules:
            module.eval()
        try:
            with (
                self.eval_weights(average=average),
                self.precision.autocast(),
                self._casts_while_evaluating(),
                plain_network(),
            ):
                yield
        finally:
            release_cached_memory(self.accelerator.device)
            for module, was_training in zip(modules, were_training, strict=True):
                module.train(was_training)

    @contextlib.contextmanager
    def _casts_while_evaluating(self) -> Iterator[None]:
        """Let autocast cache its 16-bit copies of weights for all forward passes of an evaluation.

        The cache takes less VRAM than the gradients, which do not exist now. It is off if weights
        are trained in 16 bits, since evaluation then uses float32 averages, whose copies are larger
        than anything in training; and it is off if weights are streamed.
        """
        training, cached = self.config.training, torch.is_autocast_cache_enabled()
        keeps = training.weight_dtype == "fp32" and not training.stream_weights
        torch.set_autocast_cache_enabled(keeps)
        try:
            yield
        finally:
            torch.set_autocast_cache_enabled(cached)
