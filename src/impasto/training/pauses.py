"""Work between training steps: validation, previews, exports and states, each timed separately."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from impasto.errors import ImpastoError, StorageError
from impasto.progress import counted
from impasto.runs import RunDirectory
from impasto.runs.evidence import difference
from impasto.runs.validations import validations_of
from impasto.training.events import TrainingEvents
from impasto.training.monitoring.failures import Failures
from impasto.training.monitoring.previews import clear_samples
from impasto.training.monitoring.recorder import Recorder
from impasto.training.monitoring.validation import ValidationLoss, Validator
from impasto.training.monitoring.validation_groups import (
    group_rows,
    read_base_losses,
    write_base_losses,
)
from impasto.training.saving.averages import clear_later
from impasto.training.saving.saver import Saver
from impasto.training.session import Session
from impasto.training.triggers import Triggers

_DOING = {
    "validation": "measuring the validation loss",
    "previews": "drawing previews",
    "export": "exporting the model",
    "averages": "storing the averages of the weights",
}


class Pauses:
    """Evaluates a session and saves its states and models, while no training step is running.

    Args:
        session: The run.
        run: The directory that models, averages and previews are written to.
        events: Receives the events of the run.
        recorder: Records durations and writes lines of metrics.
        saver: Writes states and models.
        failures: Turns errors into messages that a user can act on.
        triggers: Decides which models are due.
        end: Called before training continues.

    Attributes:
        best: The lowest validation loss so far; None before the first.
    """

    def __init__(
        self,
        session: Session,
        run: RunDirectory,
        events: TrainingEvents,
        recorder: Recorder,
        saver: Saver,
        failures: Failures,
        triggers: Triggers,
        end: Callable[[], None],
    ) -> None:
        self._session, self._run, self._events = session, run, events
        self._recorder, self._saver = recorder, saver
        self._failures, self._triggers, self._end = failures, triggers, end
        self.best: float | None = None
        self._base: tuple[float, ...] | None = None

    def validate(self, done: int) -> None:
        """Measure the validation loss after `done` steps, and write it to the metrics.

        If it is the lowest so far and the settings keep the best model, that model is exported.
        Does nothing in a run without held-out images.
        """
        session, validator = self._session, self._session.validator
        if validator is None:
            return
        with self._outside_training("validation", done), session.evaluating():
            loss = validator.measure(
                session.trainable.unet,
                session.eval_conditioner,
                session.recipe,
                session.accelerator,
                self._events,
            )
        if not session.participates:  # it only had to take part in the measurement
            return
        is_lower = self.best is None or loss.mean < self.best
        if session.strategy.agreed(is_lower and math.isfinite(loss.mean)):
            self.best = loss.mean
            if self._session.config.keeps_best and done > 0:
                with self._outside_training("export", done):
                    self._saver.export_best(done, loss.mean)
        groups = self._groups_of(done, validator, loss)
        self._recorder.write(
            {"step": done, **loss.as_record(), **self._change(done, loss), **groups}
        )

    def _groups_of(self, done: int, validator: Validator, loss: ValidationLoss) -> dict[str, Any]:
        """Return the losses per group of images; empty without groups, or off the main process."""
        if not validator.groups or not self._session.accelerator.is_main_process:
            return {}
        if done == 0:
            write_base_losses(self._run, loss.each)
        base = read_base_losses(self._run, len(loss.each)) if done else None
        return {"validation_by": group_rows(validator.groups, loss.each, validator.alike, base)}

    def _change(self, done: int, loss: ValidationLoss) -> dict[str, float]:
        """Return the mean difference from the base model's loss, with its standard error.

        Both losses are of the same images, noise and timesteps. Empty at step 0, and if the loss of
        step 0 is unknown.
        """
        if done == 0:
            self._base = tuple(loss.recorded)
        elif self._base is None:
            before = validations_of(m for m in self._run.read_metrics() if m["step"] == 0)
            self._base = before[0].images if before else ()
        found = difference(loss.recorded, self._base or ())
        if found is None or done == 0:
            return {}
        return {"validation_change": found.mean, "validation_change_se": found.standard_error}

    def preview(self, done: int) -> None:
        """Draw previews after `done` steps unless they exist, and compare them if configured."""
        session, previewer = self._session, self._session.previewer
        if session.participates and session.strategy.agreed(previewer.is_due(self._run, done)):
            with self._outside_training("previews", done), session.evaluating():
                if self._session.accelerator.is_main_process:
                    previewer.draw(self._run, done, self._events)
                else:
                    previewer.generate_along()
        if previewer.distance is not None and session.participates:
            self._compare_previews(done)

    def _compare_previews(self, done: int) -> None:
        """Write the distance of the previews from real images to the metrics.

        If it cannot be measured, a note says why and the run continues.
        """
        with self._outside_training("previews", done):
            try:
                found = self._session.previewer.compare(self._run, done, self._events)
            except ImpastoError as error:
                self._events.note(f"The previews of step {done} were not compared: {error}")
                return
        self._recorder.write({"step": done, **found})

    def export_intermediate(self, done: int, *, missing_only: bool = False) -> None:
        """Export the models that are due after `done` steps, by epochs and by steps.

        Args:
            done: Steps that the weights have had.
            missing_only: Whether models that already exist are skipped. Used after a resume, since
                the process may have been killed after it saved the state of these steps and before
                it wrote their models.
        """
        endings = self._triggers.model_endings(done)
        if missing_only and endings:
            is_missing = self._session.accelerator.is_main_process and self._saver.lacks(endings)
            endings = endings if self._session.strategy.agreed(is_missing) else []
        if endings and self._session.participates:
            with self._outside_training("export", done):
                self._saver.export_intermediate(done, endings)

    def export_model(self, done: int) -> Path | None:
        """Export the final model and return its path; None in a process that takes no part."""
        if not self._session.participates:
            return None
        with self._outside_training("export", done):
            return self._saver.export_model()

    def begin(self, step: int) -> None:
        """Remove the results of an earlier attempt, before the state after `step` is read.

        Averages of later steps are removed, even if this run stores none. If the run starts from
        scratch, samples are removed too, and models no longer count as its own. Then the starting
        point of the averages is stored, if the run stores averages.
        """
        session = self._session
        if session.accelerator.is_main_process:
            for done in (clear_later(self._run, step), clear_samples(self._run, step)):
                if done:
                    self._events.note(done)
            if step == 0 and (models := self._saver.restart()):
                self._events.note(
                    f"{counted(models, 'models are')} left from an earlier attempt. Each stays "
                    f"until a model of the same name replaces it, and does not count as a model of "
                    f"this attempt."
                )
        if session.posthoc and session.participates:
            self._saver.store_start(step, session.posthoc)

    def store_averages(self, done: int) -> None:
        """Store the averages that EMAs of any length are computed from after training.

        They are stored under the last step that they include, a multiple of `training.ema_every`.
        Does nothing unless `training.posthoc_ema` is on.
        """
        session = self._session
        if session.posthoc and session.participates:
            taken = done - done % session.config.training.ema_every
            with self._outside_training("averages", done):
                self._saver.store_averages(taken, session.posthoc)

    def save(self, done: int, *, now: bool = False) -> None:
        """Save the state after `done` steps, with the measurements not yet written to the metrics.

        Args:
            done: Steps that the weights have had.
            now: Whether all processes wait until the state is on disk.
        """
        self._triggers.restart_clock()
        with (
            self._recorder.meter.aside("saving states"),
            self._failures.explaining_errors("saving the state", done),
        ):
            self._recorder.keep(done)
            window = self._recorder.meter.window(done)
            if self._session.participates:
                self._saver.save_state(done, self.best, now=now, window=window)
            if now:
                self._session.accelerator.wait_for_everyone()

    def save_alone(self, done: int) -> None:
        """Save the state of a run that ends with an error, without waiting for other processes.

        Raises:
            NonFiniteLossError: Weights are NaN or infinite; nothing is written.
            StorageError: The state could not be written.
        """
        with contextlib.suppress(StorageError):  # a state without image losses is better than none
            self._recorder.keep(done, alone=True)
        self._saver.save_last(done, self.best, self._recorder.meter.window(done))

    @contextlib.contextmanager
    def _outside_training(self, activity: str, done: int) -> Iterator[None]:
        """Time the enclosed work separately from training, and explain its errors."""
        with (
            self._recorder.meter.aside(activity),
            self._failures.explaining_errors(_DOING[activity], done),
        ):
            yield
        self._end()
