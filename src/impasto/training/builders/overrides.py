"""What a run may be given in code instead of settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch

from impasto.config.run import RunConfig
from impasto.diffusion.first_call import CALLED_WITH, require_called_with
from impasto.diffusion.loss import ErrorMeasure
from impasto.diffusion.noise import Noise
from impasto.diffusion.timesteps import TimestepSampler
from impasto.diffusion.weighting import LossWeight
from impasto.errors import ConfigError
from impasto.models.text.text_conditioner import TextConditioner
from impasto.models.trainable import Trainable, TrainedModule
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

_CALLED_WITH = CALLED_WITH | {
    "conditioner": ("conditioner",),
    "trainable": ("config", "model"),
    "build_optimizer": ("modules", "settings", "rules"),
    "lr_schedule": ("step", "total"),
}
_OF_NOISE = ("noise", "on_input", "generate_ahead")


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """Parts of a run that are given in code, in the place of what the settings say.

    They become part of the run's fingerprint, by name: a run that was given one is resumed with the
    same code only.

    What they return is checked in the first step. `B` is the number of samples of a batch, `T` that
    of the noise levels, 1000.

    Attributes:
        timesteps: Which noise levels are trained on. Called with `(randomness, num_timesteps)`;
            returns integers [B] in [0, T), a `torch.int64` tensor on the CPU. Drawn of
            `randomness.uniform("timestep")`, [B] in [0, 1), they are the same when a run is
            resumed. None takes the settings'.
        loss_weight: How much each of them counts. Called with `(t, schedule, prediction)`; returns
            floats [B] on the device of `t`, or one number. None takes the settings'.
        error: How an output is compared with its target. Called with `(output, target, t,
            schedule)`; returns the error at each place, floats of the shape of the output,
            [B, 4, h, w], of which the mean over each sample is taken. None takes the settings'.
        noise: How noise is made, an object with three methods: `noise(x_0, randomness)` returns
            what the U-Net is to find, and `on_input(noise, randomness)` what is added to the
            latents, both floats of the shape of the latents and on their device;
            `generate_ahead(shape, randomness)` may draw ahead in a thread, and returns nothing.
            None takes the settings'.
        conditioner: Called with what encodes captions; returns what is called in its place with
            `(captions, geometry)`, in training, validation and previews, and returns what that
            does. None takes that itself. It is called within the step, with gradients, not ahead.
        trainable: Makes what learns. Called with `(config, model)`, the settings and the base
            model, which has tensors without values when memory is predicted; returns a `Trainable`
            of whose parameters some learn. None takes what `method` asks for. Its `export` gives
            tensors of the model's networks.
        build_optimizer: Makes the optimizer. Called with `(modules, settings, rules)`: the parts
            that learn, each with its `lr`, the section `optimizer`, and how a step is done in
            parts; returns a `torch.optim.Optimizer` whose `step` needs no closure. Memory is
            predicted as for `optimizer.kind` all the same.
        lr_schedule: The factor on the learning rate. Called with `(step, total)`, the step that is
            about to be done, from 0, and the number of all; returns a finite number. None takes the
            settings'.
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

    def __post_init__(self) -> None:
        """Make sure that each part can be called as it will be.

        Raises:
            ConfigError: A function takes other arguments than it is called with.
            TypeError: One is no function, or the noise lacks a method.
        """
        for name, part in (self.given() | {"build_optimizer": self.build_optimizer}).items():
            if name == "noise":
                continue
            if not callable(part):
                raise TypeError(
                    f"Overrides({name}={part!r}): expected a function called with "
                    f"({', '.join(_CALLED_WITH[name])}), found {part!r}, a {type(part).__name__}."
                )
            require_called_with(part, f"Overrides.{name}", _CALLED_WITH[name])
        lacking = [m for m in _OF_NOISE if self.noise and not hasattr(self.noise, m)]
        if lacking:
            raise TypeError(
                f"Overrides(noise={self.noise!r}): expected an object with the methods "
                f"{', '.join(_OF_NOISE)}; this {type(self.noise).__name__} has no {lacking[0]}."
            )

    def build_trainable(self) -> BuildTrainable:
        """What builds the trainable: the function given, or the one by the settings."""
        return self.trainable or build_trainable

    def tell(self, conditioner: TextConditioner) -> TextConditioner:
        """What encodes captions: what code makes of that of the run, or that itself.

        Raises:
            ConfigError: It makes nothing that can be called.
        """
        if self.conditioner is None:
            return conditioner
        made = self.conditioner(conditioner)
        if not callable(made):
            raise ConfigError(
                f"Overrides.conditioner returned {made!r}; expected what is called with (captions, "
                f"geometry) in the place of the conditioner."
            )
        return made

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
        _require_optimizer(made)
        idle = unread_settings(config.optimizer, read)
        if idle and not config.is_begun:
            raise ConfigError(f"{idle[0]}, which does not read it. Take it out, or read it there.")
        for clause in idle:
            note(f"{clause}.")
        return made


@dataclass(frozen=True)
class CheckedLrSchedule:
    """A learning-rate schedule that is given in code, and has to give finite numbers.

    Attributes:
        schedule: The function.
    """

    schedule: LrSchedule

    def __call__(self, step: int, total: int) -> float:
        """The factor on the learning rate in a step, counted from 0.

        Raises:
            ConfigError: It is no finite number.
        """
        factor = self.schedule(step, total)
        try:
            is_finite = math.isfinite(factor)
        except TypeError:
            is_finite = False
        if not is_finite:
            raise ConfigError(
                f"Overrides.lr_schedule returned {factor!r} for ({step}, {total}), which is step "
                f"{step + 1} of {total}; expected a finite number, the factor on the learning rate."
            )
        return factor


def require_trainable(made: Trainable) -> None:
    """Make sure that what code makes in the place of a method of training has something to learn.

    Raises:
        ConfigError: It is no `Trainable`, or nothing of it learns.
    """
    if not isinstance(made, Trainable):
        raise ConfigError(
            f"Overrides.trainable returned {made!r:.60}, a {type(made).__name__}; expected a "
            f"Trainable, as impasto.build_trainable(config, model) makes one."
        )
    if not any(trained.count() for trained in made.modules):
        raise ConfigError(
            "Overrides.trainable returned a Trainable of which nothing learns: no parameter of "
            "its modules has requires_grad. Let some have it, or leave method's as it is."
        )


def _require_optimizer(made: Any) -> None:
    """Make sure that what code makes steps weights by their gradients alone.

    Raises:
        ConfigError: It is no optimizer, or one that needs a closure.
    """
    expected = "expected a torch.optim.Optimizer whose step needs no closure"
    if not (hasattr(made, "param_groups") and hasattr(made, "step")):
        raise ConfigError(
            f"Overrides.build_optimizer returned {made!r:.60}, a {type(made).__name__}; {expected}."
        )
    if isinstance(made, torch.optim.LBFGS):
        raise ConfigError(
            f"Overrides.build_optimizer returned LBFGS, which computes the loss several times a "
            f"step; {expected}."
        )
