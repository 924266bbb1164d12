"""Parts of a run that may be given in code instead of by settings."""

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
"""Takes the conditioner of the settings and returns the one to use."""

_CALLED_WITH = CALLED_WITH | {
    "conditioner": ("conditioner",),
    "trainable": ("config", "model"),
    "build_optimizer": ("modules", "settings", "rules"),
    "lr_schedule": ("step", "total"),
}
_OF_NOISE = ("noise", "on_input", "generate_ahead")


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """Parts of a run that are given in code, instead of those that the settings describe.

    They become part of the run's fingerprint, by name: a run that was given one can only be resumed
    with the same code.

    Their results are checked in the first step. `B` is the batch size, `T` the number of timesteps,
    1000.

    Attributes:
        timesteps: Draws the timesteps to train on. Called with `(randomness, num_timesteps)`;
            returns integers [B] in [0, T), a `torch.int64` tensor on the CPU. If they are computed
            from `randomness.uniform("timestep")`, [B] in [0, 1), a resumed run draws the same. None
            uses the settings.
        loss_weight: The weight of each timestep's loss. Called with `(t, schedule, prediction)`;
            returns floats [B] on the device of `t`, or one number. None uses the settings.
        error: Compares an output with its target. Called with `(output, target, t, schedule)`;
            returns the error of each element, floats of the shape of the output, [B, 4, h, w],
            which are averaged over each sample. None uses the settings.
        noise: Draws noise; an object with three methods. `noise(x_0, randomness)` returns the noise
            that the U-Net learns to predict, and `on_input(noise, randomness)` the noise that is
            added to the latents, both floats of the shape of the latents and on their device;
            `generate_ahead(shape, randomness)` may draw ahead in a thread, and returns nothing.
            None uses the settings.
        conditioner: Wraps the conditioner. Called with the conditioner that encodes captions;
            returns a replacement, which is called with `(captions, geometry)` in training,
            validation and previews, and returns the same kind of result. The replacement is called
            within the step, with gradients, not ahead of it. None uses the conditioner itself.
        trainable: Builds the trainable networks. Called with `(config, model)`, the settings and
            the base model, which has tensors without values when memory is predicted; returns a
            `Trainable` with at least one trained parameter. Its `export` must return tensors of the
            model's networks. None uses the section `method`.
        build_optimizer: Builds the optimizer. Called with `(modules, settings, rules)`: the trained
            networks, each with its `lr`, the section `optimizer`, and whether steps are made chunk
            by chunk; returns a `torch.optim.Optimizer` whose `step` needs no closure. Memory is
            still predicted as for `optimizer.kind`.
        lr_schedule: The factor on the learning rate. Called with `(step, total)`, the next step,
            counted from 0, and the total number of steps; returns a finite number. None uses the
            settings.
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
        """Return the parts that are given in code, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {n: p for n, p in values.items() if p is not None and p is not build_optimizer}

    def __post_init__(self) -> None:
        """Check that each part can be called with the arguments that it will get.

        Raises:
            ConfigError: A function takes other arguments than it is called with.
            TypeError: A part is not callable, or the noise lacks a method.
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
        """Return the function that builds the trainable: the given one, or that of the settings."""
        return self.trainable or build_trainable

    def tell(self, conditioner: TextConditioner) -> TextConditioner:
        """Return the conditioner to use: the given function's result, or `conditioner` itself.

        Raises:
            ConfigError: The given function returns something that cannot be called.
        """
        if self.conditioner is None:
            return conditioner
        made = self.conditioner(conditioner)
        if not callable(made):
            raise ConfigError(
                f"Overrides.conditioner returned {made!r}; expected a function of (captions, "
                f"geometry) that replaces the conditioner."
            )
        return made

    def require_fitting(self, config: RunConfig) -> None:
        """Check that the parts given in code are compatible with the settings.

        Raises:
            ConfigError: The settings train a hypernetwork, but the trainable is given in code; or
                settings are to be chosen by memory, which cannot be predicted for an optimizer
                given in code; or a setting has no effect since a given part replaces it.
        """
        if self.build_optimizer is not build_optimizer and config.training.memory is not None:
            raise ConfigError(
                f"training.memory chooses settings by the memory that {config.optimizer.kind} "
                f"(optimizer.kind) takes, but Overrides.build_optimizer builds another optimizer. "
                f"Remove one of them."
            )
        if self.trainable is not None and config.method.kind != "full":
            raise ConfigError(
                f"method.kind is {config.method.kind}, but Overrides.trainable decides what is "
                f"trained. Remove one of them."
            )
        idle = idle_settings(config, self.given())
        if idle:
            raise ConfigError(f"{idle[0]}. Remove one of them.")

    def optimizer(
        self,
        modules: tuple[TrainedModule, ...],
        config: RunConfig,
        rules: ChunkRules,
        note: Callable[[str], None],
    ) -> torch.optim.Optimizer:
        """Build the optimizer of a run, by the function given in code if there is one.

        Args:
            modules: The trained networks.
            config: The settings of the run.
            rules: Whether, and for which features, weights are stepped chunk by chunk.
            note: Receives notes about settings without effect, in a run that has already started.

        Raises:
            ConfigError: An optimizer setting is set that the function in code does not read, or the
                function returns something else than a usable optimizer.
        """
        if self.build_optimizer is build_optimizer:
            return build_optimizer(modules, config.optimizer, rules)
        read: set[str] = set()
        made = self.build_optimizer(modules, noting_reads(config.optimizer, read), rules)
        _require_optimizer(made)
        idle = unread_settings(config.optimizer, read)
        if idle and not config.is_begun:
            raise ConfigError(f"{idle[0]}, which does not read it. Remove it, or read it there.")
        for clause in idle:
            note(f"{clause}.")
        return made


@dataclass(frozen=True)
class CheckedLrSchedule:
    """A learning-rate schedule given in code, whose results are checked to be finite numbers.

    Attributes:
        schedule: The function given in code.
    """

    schedule: LrSchedule

    def __call__(self, step: int, total: int) -> float:
        """Return the factor on the learning rate in a step, counted from 0.

        Raises:
            ConfigError: The factor is not a finite number.
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
    """Check that a function in code has returned a `Trainable` with trained parameters.

    Raises:
        ConfigError: It is not a `Trainable`, or none of its parameters is trained.
    """
    if not isinstance(made, Trainable):
        raise ConfigError(
            f"Overrides.trainable returned {made!r:.60}, a {type(made).__name__}; expected a "
            f"Trainable, as impasto.build_trainable(config, model) returns one."
        )
    if not any(trained.count() for trained in made.modules):
        raise ConfigError(
            "Overrides.trainable returned a Trainable that trains nothing: no parameter of its "
            "modules has requires_grad. Set it for some, or remove Overrides.trainable."
        )


def _require_optimizer(made: Any) -> None:
    """Check that a function in code has returned an optimizer that steps without a closure.

    Raises:
        ConfigError: It is not an optimizer, or it is one that needs a closure.
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
