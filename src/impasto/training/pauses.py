"""What is done between steps: validation, previews, exports and states, each timed by itself."""

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
    """Looks at a session and writes what it has come to, while no step is under way.

    Args:
        session: The run.
        run: Where it leaves what it makes.
        events: Receives the events of the run.
        recorder: Takes the times and the lines of metrics.
        saver: Writes states and models.
        failures: Explain errors.
        triggers: Know which models are due.
        end: Called when training goes on.

    Attributes:
        best: The least validation loss so far; None before the first.
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
        """Measure the validation loss after `done` steps, and export the best model if it is."""
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
        if not session.participates:  # its share is done
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
        """The losses of some of the images by themselves; nothing where none are asked for."""
        if not validator.groups or not self._session.accelerator.is_main_process:
            return {}
        if done == 0:
            write_base_losses(self._run, loss.each)
        base = read_base_losses(self._run, len(loss.each)) if done else None
        return {"validation_by": group_rows(validator.groups, loss.each, validator.alike, base)}

    def _change(self, done: int, loss: ValidationLoss) -> dict[str, float]:
        """By how much the loss is above that of the base model over the same images and draws."""
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
        """Draw previews after `done` steps, unless that was done before."""
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
        """Write down how far the previews are from real images; a fault there ends no run."""
        with self._outside_training("previews", done):
            try:
                found = self._session.previewer.compare(self._run, done, self._events)
            except ImpastoError as error:
                self._events.note(f"The previews of step {done} were not compared: {error}")
                return
        self._recorder.write({"step": done, **found})

    def export_intermediate(self, done: int, *, missing_only: bool = False) -> None:
        """Export what is due after `done` steps, by epochs and by steps.

        The state of these steps may have been saved and the process killed before the models
        were written: then they are `missing_only` after a resume.
        """
        endings = self._triggers.model_endings(done)
        if missing_only and endings:
            is_missing = self._session.accelerator.is_main_process and self._saver.lacks(endings)
            endings = endings if self._session.strategy.agreed(is_missing) else []
        if endings and self._session.participates:
            with self._outside_training("export", done):
                self._saver.export_intermediate(done, endings)

    def export_model(self, done: int) -> Path | None:
        """Export the model as it is after `done` steps; None in a process that takes no part."""
        if not self._session.participates:
            return None
        with self._outside_training("export", done):
            return self._saver.export_model()

    def begin(self, step: int) -> None:
        """Put away what is not of this run, before anything of the state after `step` is read.

        Averages of later steps are not, whether or not it stores some itself; where it begins
        anew, neither are samples nor models. Then what averages are told from is stored.
        """
        session = self._session
        if session.accelerator.is_main_process:
            for done in (clear_later(self._run, step), clear_samples(self._run, step)):
                if done:
                    self._events.note(done)
            if step == 0 and (models := self._saver.begin_anew()):
                self._events.note(
                    f"{counted(models, 'models are')} left of an earlier attempt. What is there "
                    f"stays until a model of the same name replaces it, and does not count as this "
                    f"one's."
                )
        if session.posthoc and session.participates:
            self._saver.store_start(step, session.posthoc)

    def store_averages(self, done: int) -> None:
        """Store what averages of any length are made of after training, if the run keeps it.

        They are of the last step that they have taken in, which `training.ema_every` says.
        """
        session = self._session
        if session.posthoc and session.participates:
            taken = done - done % session.config.training.ema_every
            with self._outside_training("averages", done):
                self._saver.store_averages(taken, session.posthoc)

    def save(self, done: int, *, now: bool = False) -> None:
        """Save the state after `done` steps, with what no line of metrics tells of them yet.

        Args:
            done: Steps that the weights have had.
            now: Whether all processes wait until it is on disk.
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
        """Save the state of a run that ends by an error, in this process, without the others.

        Raises:
            NonFiniteLossError: Weights are NaN or infinite; nothing is written.
            StorageError: It could not be written.
        """
        with contextlib.suppress(StorageError):  # a state without these rows is better than none
            self._recorder.keep(done, alone=True)
        self._saver.save_last(done, self.best, self._recorder.meter.window(done))

    @contextlib.contextmanager
    def _outside_training(self, activity: str, done: int) -> Iterator[None]:
        """Something that is not training: timed by itself, and explained if memory runs out."""
        with (
            self._recorder.meter.aside(activity),
            self._failures.explaining_errors(_DOING[activity], done),
        ):
            yield
        self._end()
