"""The learning-rate range test, on a session with the settings of a run.

Its steps are those of the run: the same images, batches, optimizer and precision. The loss after
each step is not that of its batch, which depends more on the timesteps drawn than on the weights,
but that of fixed images with fixed noise and timesteps, as in validation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from impasto.config.run import RunConfig
from impasto.data.caching.latent_cache import CachedPlan
from impasto.data.loading.step_batches import iterate_steps
from impasto.datasets.batching import validation_batch_size
from impasto.datasets.build import Survey
from impasto.datasets.fixed_draws import NoiseDraws
from impasto.errors import ConfigError
from impasto.optimizer_table import row_of
from impasto.progress import Progress, counted, duration_text
from impasto.training.analysis.borrowing import WITHOUT_AVERAGES, borrowed_session
from impasto.training.analysis.lr_range import LrCurve, LrRange, is_diverged
from impasto.training.builders.overrides import Overrides
from impasto.training.builders.processes import planned_processes
from impasto.training.compute.compile import within_limit
from impasto.training.devices import is_out_of_memory
from impasto.training.lifecycle.preflight import require_machine
from impasto.training.monitoring.fixed_draws import FixedDraws
from impasto.training.optim.finite_updates import NonFiniteError
from impasto.training.planning.changes import with_changes
from impasto.training.planning.out_of_memory import out_of_memory
from impasto.training.planning.resolved_run import resolve_run
from impasto.training.session import Session
from impasto.training.steps.prefetch import build_prefetcher
from impasto.training.steps.stepping import Stepper

DOING = "looking for a learning rate"
_NOTHING_ENCODED = (
    "The loss cannot be measured on fixed images: all images change each time they are shown "
    "(random_crop, color_aug, face_crop_aug_range). Remove these settings for the test, or hold "
    "images out (validation.split)."
)


@dataclass(frozen=True)
class Probe:
    """The images and timesteps that the loss is measured on after each step.

    Attributes:
        images: The most training images to use, spread over the dataset.
        timesteps: Number of timesteps per image, evenly spread.
    """

    images: int = 8
    timesteps: int = 4


def find_lr(config: RunConfig, tried: LrRange, probe: Probe, progress: Progress) -> LrCurve:
    """Train briefly at rising learning rates, and measure the loss after each step.

    The run directory is not touched, and the trained weights are discarded. Encoded latents and
    text remain in the caches of the run.

    Args:
        config: The settings of the run; all learning rates rise together, in their ratio to
            `optimizer.lr`.
        tried: The learning rates to try.
        probe: The images and timesteps that the loss is measured on.
        progress: Receives progress.

    Raises:
        ConfigError: The optimizer finds its learning rate itself, or settings are incompatible.
        ImpastoError: The run could not be started with these settings.
    """
    config = settings_of_test(config, tried, progress)
    require_machine(config)
    resolved = resolve_run(config, progress, planned_processes())
    config, known = resolved.config, resolved.survey
    overrides = Overrides(lr_schedule=_Rising(tried, config.optimizer.lr))
    with borrowed_session(config, progress, DOING, overrides, known) as session:
        try:
            return _tested(session, tried, _fixed_draws(session, probe), progress)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            then = "Nothing was written."
            raise out_of_memory(error, config, DOING, then, session.accelerator.device) from error


@dataclass(frozen=True)
class _Rising:
    """A schedule whose factor turns `optimizer.lr` into the learning rate that is tried."""

    tried: LrRange
    lr: float

    def __call__(self, step: int, total_steps: int) -> float:
        del total_steps
        return self.tried.rate_at(step) / self.lr


def _require_rate(config: RunConfig) -> None:
    if row_of(config.optimizer.kind).finds_lr:
        raise ConfigError(
            f"optimizer.kind {config.optimizer.kind} finds the learning rate itself, so the test "
            f"does not apply: leave optimizer.lr at 1."
        )


def settings_of_test(config: RunConfig, tried: LrRange, progress: Progress) -> RunConfig:
    """Return the settings of the test: no averages, previews or trackers, nor the run's schedule.

    A text encoder that is trained only in some steps is trained in all, with a note.

    Raises:
        ConfigError: The optimizer finds its learning rate itself.
    """
    _require_rate(config)
    changes: dict[str, dict[str, object]] = {
        "training": {"max_steps": tried.steps, "max_epochs": None},
        "previews": {name: f.default for name, f in type(config.previews).model_fields.items()},
        "logging": {name: f.default for name, f in type(config.logging).model_fields.items()},
        "schedule": {name: f.default for name, f in type(config.schedule).model_fields.items()},
    }  # fmt: skip
    method = config.method
    if method.kind == "full" and (
        method.text_encoder_from_step or method.text_encoder_until_step is not None
    ):
        progress.note("The text encoder is trained in all steps of the test.")
        changes["method"] = {"text_encoder_from_step": 0, "text_encoder_until_step": None}
    return with_changes(with_changes(config, WITHOUT_AVERAGES), changes)


def measured_images(known: Survey, probe: Probe) -> int:
    """Return how many images the loss would be measured on, before any is encoded.

    Raises:
        ConfigError: No image has fixed latents.
    """
    subsets = (image.record.subset for image in known.plan.images)
    usable = (s for s in subsets if s.augmentation is None and not s.is_reg)
    number = sum(1 for _ in islice(usable, probe.images))
    number = number or min(probe.images, len(known.split.held_out))
    if not number:
        raise ConfigError(_NOTHING_ENCODED)
    return number


def _fixed_draws(session: Session, probe: Probe) -> FixedDraws:
    """Build the measurement of the loss: on training images, or on held-out ones if none is fit.

    Raises:
        ConfigError: No image has fixed latents.
    """
    config, prepared = session.config, session.prepared
    plan = _sample(prepared.training, probe.images)
    if not plan.images and prepared.held_out is not None:
        plan = _sample(prepared.held_out, probe.images)
    if not plan.images:
        raise ConfigError(_NOTHING_ENCODED)
    return FixedDraws(
        plan,
        prepared.cache,
        session.model.scaling_factor,
        NoiseDraws(probe.timesteps, are_spread=False),
        partial(validation_batch_size, config),
    )


def _sample(plan: CachedPlan, number: int) -> CachedPlan:
    """Return at most `number` images with fixed latents, spread over the dataset.

    Regularisation images are left out.
    """
    usable = [
        i
        for i, (image, key) in enumerate(zip(plan.images, plan.keys, strict=True))
        if key.plain and not image.record.subset.is_reg
    ]
    number = min(number, len(usable))
    return plan.part(usable[i * len(usable) // number] for i in range(number))


def _tested(session: Session, tried: LrRange, draws: FixedDraws, progress: Progress) -> LrCurve:
    """Run the steps of the test until the loss diverges; return the measured curve.

    Raises:
        ConfigError: The base model's loss is not a finite positive number.
    """
    stepper = Stepper(session, progress.note)

    def measured() -> float:
        with session.evaluating():
            losses = draws.measure(session.trainable.unet, session.eval_conditioner, session.recipe)
        stepper.micro_steps.end_pause()
        return float(losses.mean())

    curve = LrCurve(measured(), [], [])
    if not math.isfinite(curve.first) or curve.first <= 0:
        raise ConfigError(
            f"The base model's loss on these images is {curve.first} before any step; expected a "
            f"finite number above 0. Check the model with impasto inspect."
        )
    steps = iterate_steps(
        session.data,
        session.sampler,
        0,
        tried.steps,
        session.accelerator.process_index,
        build_prefetcher(
            session.accelerator.device, session.conditioner if session.encodes_ahead else None
        ),
    )
    say = _TimeEstimate(tried.steps, draws, progress.note)
    with progress.stage("Trying learning rates", tried.steps, "steps") as advance:
        for optimizer_step, batches in steps:
            try:
                with within_limit():
                    stepper.step(optimizer_step, batches, lambda *_: None)
                stepper.update.require_applied()
                loss = measured()
            except NonFiniteError:
                loss = math.nan
            curve = replace(
                curve,
                rates=[*curve.rates, tried.rate_at(optimizer_step.step)],
                losses=[*curve.losses, loss],
            )
            advance(1)
            say.step_is_done()
            if is_diverged(curve.first, loss):
                break
    return curve


class _TimeEstimate:
    """Reports once, after the second step, which compiles nothing, how long the test will take.

    Args:
        steps: Number of steps of the test.
        draws: The measurement after each step.
        note: Receives the message.
    """

    def __init__(self, steps: int, draws: FixedDraws, note: Callable[[str], None]) -> None:
        self._steps, self._note, self._done = steps, note, 0
        self._passes = len(draws.plan.images) * draws.draws.per_image
        self._before = time.perf_counter()

    def step_is_done(self) -> None:
        """Count a completed step; after the second, report how long the rest will take."""
        self._done += 1
        now = time.perf_counter()
        if self._done == 2:
            left = (now - self._before) * (self._steps - 2)
            self._note(
                f"About {duration_text(left)} for the {counted(self._steps - 2, 'steps')} left, "
                f"each with {counted(self._passes, 'forward passes')} to measure the loss; less if "
                f"it diverges earlier."
            )
        self._before = now
