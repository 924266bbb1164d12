"""The training loop: optimizer steps, and the validation, previews and saving due between them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

from impasto import files
from impasto.data.loading.sampler import MicroBatch, OptimizerStep
from impasto.data.loading.step_batches import iterate_steps
from impasto.data.records import Batch
from impasto.errors import Interrupted, NonFiniteLossError, RunError
from impasto.member_paths import plain
from impasto.progress import counted
from impasto.runs import RunDirectory
from impasto.runs.commands import CommandName
from impasto.runs.given_code import how_to_resume
from impasto.training.analysis.merged_loss import measure_merged
from impasto.training.events import TrainingEvents
from impasto.training.lifecycle.requests import Requests
from impasto.training.monitoring.command_listener import CommandListener
from impasto.training.monitoring.failures import Failures
from impasto.training.monitoring.frozen_check import FrozenCheck
from impasto.training.monitoring.metrics import MetricsWindow
from impasto.training.monitoring.recorder import Recorder
from impasto.training.optim.finite_updates import NonFiniteError
from impasto.training.optim.state import require_savable
from impasto.training.pauses import Pauses
from impasto.training.saving.restore import restore_newest
from impasto.training.saving.saver import Saver
from impasto.training.session import Session
from impasto.training.signals import STOPPING, StopRequest
from impasto.training.step import StepOutput
from impasto.training.steps.compile_timer import CompileTimer
from impasto.training.steps.prefetch import build_prefetcher
from impasto.training.steps.stepping import Stepper
from impasto.training.triggers import Triggers


class TrainingLoop:
    """Trains a session from its newest saved state to its last step.

    Args:
        session: The run, ready to train.
        run: The directory that states, models, metrics and previews are written to.
        events: Receives the events of the run; silent on all processes but the main one.
        preparing_s: Seconds that loading, scanning and encoding took, for the metrics.
        stop: Receives signals that ask to stop; None if signals are not handled.
        commands: Receives commands for the run while it trains; None except on the main process.
    """

    def __init__(
        self,
        session: Session,
        run: RunDirectory,
        events: TrainingEvents,
        preparing_s: float = 0.0,
        stop: StopRequest | None = None,
        commands: CommandListener | None = None,
    ) -> None:
        self._session, self._run, self._events = session, run, events
        self._stop = stop or StopRequest()
        self._config = session.config
        self._accelerator = session.accelerator
        self._is_main = session.accelerator.is_main_process
        self._session_state = session.resumable()
        self._stepper = Stepper(session, events.note)
        self._micro_steps, self._optimizer_update = self._stepper.micro_steps, self._stepper.update
        self._has_stepped = False
        self._window: MetricsWindow | None = None
        self._triggers = Triggers(session.config, session.sampler.steps_per_epoch)
        self._requests = Requests(
            self._stop, commands, session.accelerator, self._triggers.log, self._missing_for
        )
        self._frozen_check: FrozenCheck | None = None
        self._recorder = Recorder(session.recorded(), run, events, preparing_s)
        self._compile_timer = CompileTimer(
            self._config.training.compile, self._micro_steps, self._recorder.meter, events.note
        )
        self._saver = Saver(
            self._session_state,
            session.export_source(),
            session.accelerator,
            session.eval_weights,
            run,
            events,
        )
        self._failures = Failures(
            config=session.config,
            accelerator=session.accelerator,
            strategy=session.strategy,
            optimizer=session.optimizer,
            has_average=bool(session.averages),
            run=run,
            optimizer_update=self._optimizer_update,
            save=lambda step: self._pauses.save(step, now=True),
            save_alone=lambda step: self._pauses.save_alone(step),
            newest_saved=self._saver.newest_saved,
        )
        self._pauses = Pauses(
            session,
            run,
            events,
            self._recorder,
            self._saver,
            self._failures,
            self._triggers,
            self._micro_steps.end_pause,
        )

    def train(self, restored: Callable[[], None] = lambda: None) -> None:
        """Train to the last step, then validate, draw previews and export the model.

        Args:
            restored: Called once the newest state, if any, was loaded and fits the settings, and
                before anything is written.

        Raises:
            Interrupted: A signal or a command asked to stop.
            NonFiniteLossError: The loss or the gradient became NaN or infinite.
            OutOfMemoryError: RAM or VRAM ran out.
            RunError: Another process of the run has ended, or the state is beyond the last step.
            StorageError: A state or the export could not be written.
        """
        step = self._restore()
        restored()
        self._recorder.open(step)
        try:
            self._train_from(step)
        finally:
            with contextlib.closing(self._saver):
                self._recorder.close()

    def _train_from(self, step: int) -> None:
        session = self._session
        self._frozen_check = FrozenCheck(session.trainable.modules, session.model.networks)
        self._announce(step)
        if step == 0:
            self._pauses.validate(0)
            if self._config.previews.at_first:
                self._pauses.preview(0)
        elif step < session.total_steps:
            self._pauses.export_intermediate(step, missing_only=True)
        with (
            self._stop.after_step(self._stop_message()),
            self._failures.saving_on_error(step) as done,
        ):
            is_due = self._triggers.line(step, session.total_steps)
            self._recorder.begin(step, self._window, is_due=is_due)
            steps_with_batches = iterate_steps(
                session.data,
                session.sampler,
                step,
                session.total_steps,
                self._accelerator.process_index,
                build_prefetcher(
                    self._accelerator.device,
                    session.conditioner if session.encodes_ahead else None,
                ),
            )
            fetched = self._failures.explaining_fetches(steps_with_batches, done)
            for optimizer_step, batches in self._recorder.meter.time_waiting(fetched):
                bucket = session.prepared.training.images[
                    optimizer_step.micro_batches[0].samples[0].image
                ].bucket
                doing = f"training on {bucket} images"
                with (
                    self._failures.explaining_errors(doing, optimizer_step.step),
                    self._compile_timer.step(bucket, optimizer_step),
                ):
                    self.step(optimizer_step, batches)
                done.step = optimizer_step.step + 1
                self._optimizer_update.is_stepping = False  # the step is complete, and counted
                self._after_step(done.step)
        self._finish()

    def _announce(self, step: int) -> None:
        """Write `dataset.json` and the status, report warnings, and report the start."""
        session, dataset = self._session, self._session.dataset_facts()
        if self._is_main:
            files.write_json(self._run.path / "dataset.json", dataset)
            self._run.write_status("training", step=step, total_steps=session.total_steps)
        for remark in session.remarks():
            self._events.note(remark)
        self._events.started({**session.facts(), **dataset}, step, session.total_steps)

    def _stop_message(self) -> str:
        if self._accelerator.num_processes == 1:
            return STOPPING
        return "Stopping at the next line of metrics; Ctrl-C again stops at once, without saving."

    def wait_for_metrics(self) -> None:
        """Wait for the device, and discard the measurements so far; for benchmarks."""
        self._recorder.meter.read()
        self._recorder.meter.restart()

    def step(self, optimizer_step: OptimizerStep, batches: Iterator[Batch]) -> None:
        """Run one optimizer step: all its micro-batches, clipping, the update, the averages."""
        session = self._session
        try:
            result = self._stepper.step(
                optimizer_step, batches, partial(self._seen, optimizer_step.step)
            )
        except NonFiniteError as fault:
            self._look(optimizer_step.step)  # if an earlier step failed too, report that one
            raise self._failures.not_finite(optimizer_step.step, fault) from None
        if not self._has_stepped:
            require_savable(session.optimizer)
            self._has_stepped = True
        done, size = optimizer_step.step + 1, optimizer_step.size
        self._recorder.meter.add(done, result.loss, result.norm, size)
        for average in session.averages:
            average.update(optimizer_step.step)
        if self._frozen_check is not None and result.lr_factor > 0:
            self._check_frozen_modules(self._frozen_check, optimizer_step.step)
            self._frozen_check = None

    def _seen(self, step: int, micro_batch: MicroBatch, output: StepOutput) -> None:
        """Add the losses of a micro-batch to the metrics, and to the losses per image."""
        self._recorder.meter.add_samples(output)
        if self._recorder.image_losses is not None and not micro_batch.is_padding:
            images = self._session.prepared.training.images
            paths = [images[s.image].record.path.as_posix() for s in micro_batch.samples]
            shown = [plain(path) for path in paths]
            self._recorder.image_losses.add(step, shown, output)

    def _check_frozen_modules(self, frozen_check: FrozenCheck, step: int) -> None:
        """Warn if a trained part of the model has not changed, or a frozen part has."""
        if self._session.precision.scales:
            return  # the first steps may be skipped until the scale is found
        learning = [
            trained.name
            for trained in self._session.trainable.modules
            if trained.is_trained_at(step)
        ]
        for finding in frozen_check.findings(learning):
            self._events.note(f"Warning: {finding}")

    def _after_step(self, done: int) -> None:
        """Do what is due or requested after `done` steps; raises `Interrupted` if asked to stop."""
        total = self._session.total_steps
        self._events.stepped(done)
        self._saver.raise_error()
        last = done == total
        stopping, asked = self._requests.stop_signal(done), self._requests.asked(done)
        triggers = self._triggers
        at_once = last or stopping is not None or "save" in asked  # power may be cut right after
        saving = at_once or triggers.state(done, self._accelerator)
        storing = last or triggers.averages(done, total)
        if saving or triggers.log(done):
            self._log(done, early=not triggers.line(done, total))
        elif asked or storing or triggers.uses_weights(done):
            self._look(done)
        if last or triggers.validation(done) or "validate" in asked:
            self._pauses.validate(done)
        if last or triggers.preview(done) or "preview" in asked:
            self._pauses.preview(done)
        if storing:  # before the state, so that a run resumed from it has these averages
            self._pauses.store_averages(done)
        if saving:
            self._pauses.save(done, now=at_once)
        if not last:
            self._pauses.export_intermediate(done)
        self._requests.answer(done)
        if stopping is not None and not last:
            raise Interrupted(
                f"{done} of {counted(total, 'steps are')} done, and the state is saved. "
                "Continue with: "
                f"{how_to_resume(self._run.path, self._run.address)}",
                stopping,
            )

    def _missing_for(self, name: CommandName) -> str:
        """Return why this run cannot carry out a command, or an empty string if it can."""
        if name == "validate" and self._session.validator is None:
            return "this run has no held-out images: set validation.split or validation.image_dir"
        if name == "preview" and not self._session.previewer.prompts:
            return "this run has no prompts: set previews.prompts or previews.prompt_file"
        return ""

    def _log(self, done: int, *, early: bool) -> None:
        """Write a line of metrics, and stop the run if its loss scale has collapsed.

        If a state is saved `early`, by a signal or the clock, the line is written later, when it is
        due: a run that was stopped and resumed writes the same metrics as one that was not.
        """
        self._look(done)  # a line with steps that were not applied would be removed on resume
        if not early:
            self._recorder.log(done)
        try:
            self._session.precision.require_living_scale()
        except NonFiniteLossError:
            self._pauses.save(done, now=True)
            raise

    def _look(self, done: int) -> None:
        """Make sure that all steps were applied, before the weights are evaluated or written.

        Raises:
            NonFiniteLossError: A step was not applied: its loss or gradient is NaN or infinite.
        """
        try:
            self._optimizer_update.require_applied()
        except NonFiniteError as fault:
            raise self._failures.not_finite(done - fault.passed_over, fault) from None

    def _restore(self) -> int:
        """Load the newest state and return its step; return 0 if the run has no state."""
        state = restore_newest(
            self._session_state,
            self._accelerator,
            self._run,
            self._events,
            self._pauses.begin,
        )
        if state is None:
            return 0
        if state.step > self._session.total_steps:
            raise RunError(
                f"{self._run.address} has completed {counted(state.step, 'steps')}, but its "
                f"settings end at {self._session.total_steps}. A run can be made longer, not "
                f"shorter: raise training.max_steps or max_epochs in its config.toml. To export "
                f"models of earlier steps, set saving.model_every_steps."
            )
        self._pauses.best = state.best_validation
        self._window = state.window
        return state.step

    def _finish(self) -> None:
        """Export the model and write the final status; then measure a merged model's loss."""
        total = self._session.total_steps
        model = self._pauses.export_model(total)
        timings = {name: round(s, 2) for name, s in self._recorder.meter.timings_s.items()}
        end = {
            "step": total,
            "total_steps": total,
            "steps_per_epoch": self._session.sampler.steps_per_epoch,
            "timings_s": timings,
            **({"model": self._run.record_of(model)} if model else {}),
        }
        if self._is_main:
            self._run.write_status("finished", **end)
            self._saver.drop_states()
        self._accelerator.wait_for_everyone()
        if self._is_main:
            merged_loss = measure_merged(self._session, self._events)
            if merged_loss is not None:
                self._run.write_status("finished", **end, merged_loss=merged_loss)
