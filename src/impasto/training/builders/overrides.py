"""What a run may be given in code instead of settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch

from impasto.config.run import RunConfig
from impasto.diffusion.loss import ErrorMeasure
from impasto.diffusion.noise import Noise
from impasto.diffusion.timesteps import TimestepSampler
from impasto.diffusion.weighting import LossWeight
from impasto.errors import ConfigError
from impasto.models.text.text_conditioner import TextConditioner
from impasto.models.trainable import TrainedModule
from impasto.training.builders.idle_settings import (
    idle_settings,
    noting_reads,
    unread_settings,
)
from impasto.training.builders.methods import BuildTrainable, build_trainable
from impasto.training.optim.chunked import ChunkRules
from impasto.training.optim.lr_schedules import LrSchedule
from impasto.training.optim.optimizers import BuildOptimizer, build_optimizer

BuildConditioner = Callable[[TextConditioner], TextConditioner]
"""Makes of the conditioner that a run would have the one that it has."""


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """Parts of a run that are given in code, in the place of what the settings say.

    They become part of the run's fingerprint, by name: a run that was given one is resumed with the
    same code only.

    Attributes:
        timesteps: Which noise levels are trained on, called with `(randomness, num_timesteps)`;
            None takes the settings'. See `TimestepSampler`.
        loss_weight: How much each of them counts, called with `(t, schedule, prediction)`; None
            takes the settings'. See `LossWeight`.
        error: How an output is compared with its target, called with `(output, target, t,
            schedule)`; None takes the settings'. See `ErrorMeasure`.
        noise: How noise is made, an object with the methods `noise`, `on_input` and
            `generate_ahead`; None takes the settings'. See `Noise`.
        conditioner: Makes of what encodes captions, which it is called with, what is called in its
            place, in training, validation and previews; None takes that itself. What it makes is
            called within the step, with gradients, not ahead of it.
        trainable: Makes what learns of `(config, model)`, the settings and the base model, which
            has tensors without values when memory is predicted; None takes what `method` asks for.
            Its `export` gives tensors of the model's networks.
        build_optimizer: Makes the optimizer of `(modules, settings, rules)`: the parts that learn,
            each with its `lr`, the section `optimizer`, and how a step is done in parts. Memory is
            predicted as for `optimizer.kind` all the same.
        lr_schedule: The factor on the learning rate, called with `(step, total)`, the step that is
            about to be done, from 0, and the number of all; None takes the settings'.
    """

    timesteps: TimestepSampler | None = None
    loss_weight: LossWeight | None = None
    error: ErrorMeasure | None = None
    noise: Noise | None = None
    conditioner: BuildConditioner | None = None
    trainable: BuildTrainable | None = None
    build_optimizer: BuildOptimizer = build_optimizer
    lr_schedule: LrSchedule | None = None

    def given(self) -> dict[str, Any]:
        """What is given in code, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {n: p for n, p in values.items() if p is not None and p is not build_optimizer}

    def build_trainable(self) -> BuildTrainable:
        """What builds the trainable: the function given, or the one by the settings."""
        return self.trainable or build_trainable

    def require_fitting(self, config: RunConfig) -> None:
        """Make sure that what is given in code goes with the settings.

        Raises:
            ConfigError: The settings ask for a hypernetwork, and something else is to learn; or
                they are to be chosen by memory, which is not known of an optimizer that is given;
                or one is given that has no effect beside a part that replaces it.
        """
        if self.build_optimizer is not build_optimizer and config.training.memory is not None:
            raise ConfigError(
                f"training.memory chooses settings by what {config.optimizer.kind} "
                f"(optimizer.kind) takes, and Overrides.build_optimizer makes another one. Take "
                f"one of them out."
            )
        if self.trainable is not None and config.method.kind != "full":
            raise ConfigError(
                f"method.kind is {config.method.kind}, and Overrides.trainable says what learns. "
                f"Give one of them."
            )
        idle = idle_settings(config, self.given())
        if idle:
            raise ConfigError(f"{idle[0]}. Take one of them out.")

    def optimizer(
        self,
        modules: tuple[TrainedModule, ...],
        config: RunConfig,
        rules: ChunkRules,
        note: Callable[[str], None],
    ) -> torch.optim.Optimizer:
        """Build the optimizer.

        Args:
            modules: What learns.
            config: The settings.
            rules: How a step is done in parts.
            note: Is told of settings without effect in a run that was begun with them.

        Raises:
            ConfigError: A setting is given that the function in code does not look at.
        """
        if self.build_optimizer is build_optimizer:
            return build_optimizer(modules, config.optimizer, rules)
        read: set[str] = set()
        made = self.build_optimizer(modules, noting_reads(config.optimizer, read), rules)
        idle = unread_settings(config.optimizer, read)
        if idle and not config.is_begun:
            raise ConfigError(f"{idle[0]}, which does not read it. Take it out, or read it there.")
        for clause in idle:
            note(f"{clause}.")
        return made
