"""Turns failures of a running training into errors that say what is saved and how to continue."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator

from impasto.config.run import RunConfig
from impasto.datasets.distributed import is_process_loss
from impasto.errors import DatasetError, ImpastoError, NonFiniteLossError, RunError, StorageError
from impasto.progress import counted
from impasto.runs import RunDirectory, step_name
from impasto.runs.given_code import how_to_resume
from impasto.runs.status import kept_text
from impasto.training.devices import is_out_of_memory
from impasto.training.optim.finite_updates import NonFiniteError
from impasto.training.optim.graph_recorder import NotRecordableError
from impasto.training.optim.updates import OptimizerUpdate
from impasto.training.parallel.strategy import ParallelStrategy
from impasto.training.planning.out_of_memory import out_of_memory

T = TypeVar("T")

_NEWEST = "A resume continues from the newest state"
_NONE_SAVED = "No state was saved yet"
_ELSEWHERE = "If a state was saved, a resume continues from the newest one"
_UNTRAINED = "Nothing was trained yet"


@dataclass
class StepCounter:
    """The number of completed optimizer steps, kept up to date for error handling.

    Attributes:
        step: Optimizer steps completed.
    """

    step: int


@dataclass(frozen=True)
class Failures:
    """Saves the state after an error if the weights are intact, and explains the error.

    Attributes:
        config: The settings.
        accelerator: The processes.
        strategy: How the processes hold the model.
        optimizer: Its gradients are dropped to free memory.
        has_average: Whether the run has a running average of the weights.
        run: The directory of the saved states.
        optimizer_update: Tells whether a step has changed weights but is not counted yet.
        save: Saves the state after the given number of steps; called by all processes.
        save_alone: Does the same in this process, without waiting for others.
        newest_saved: Waits for background writes, and returns the step of the newest state on disk,
            or 0.
    """

    config: RunConfig
    accelerator: Accelerator
    strategy: ParallelStrategy
    optimizer: torch.optim.Optimizer
    has_average: bool
    run: RunDirectory
    optimizer_update: OptimizerUpdate
    save: Callable[[int], None]
    save_alone: Callable[[int], None]
    newest_saved: Callable[[], int]

    def not_finite(self, step: int, fault: NonFiniteError) -> NonFiniteLossError:
        """Return the error for a step whose loss or gradient is NaN or infinite.

        If the weights are still those from before that step, their state is saved, unless no step
        was trained.

        Args:
            step: Steps that were applied before the failed one.
            fault: Details of the failure.
        """
        resume = how_to_resume(self.run.path, self.run.address)
        what = f"To continue from the newest state before it: {resume}"
        if fault.weights_intact and step == 0:
            what = f"{_UNTRAINED}. Change the run's config.toml, and begin again with: {resume}"
        elif fault.weights_intact:
            self.save(step)
            folder = self.run.states / step_name(step)
            what = f"The weights from before it are saved in {folder}"
            if self.has_average and fault.passed_over > 1:
                updates = counted(fault.passed_over - 1, "more updates")
                what += f" (their running average took {updates} before this was found)"
        return NonFiniteLossError(
            f"The loss or the gradient became NaN or infinite in step {step + 1}. The "
            f"usual causes are a learning rate that is too high (optimizer.lr is "
            f"{self.config.optimizer.lr:g}; try a tenth) and a base model with broken "
            f"weights. {what}"
        )

    def _applied(self, step: int) -> int | None:
        """Return how many of `step` steps were applied; None if one was applied only in part."""
        try:
            self.optimizer_update.require_applied()
        except NonFiniteError as fault:
            return step - fault.passed_over if fault.weights_intact else None
        return step

    def _saved(self, step: int) -> tuple[str | None, str]:
        """Save the state of those of `step` steps that were applied, in this process alone.

        Before the first step nothing is saved, since the state would only hold the base model, and
        would tie the run to the settings that have just failed.

        Returns:
            A clause that says what is saved, or None if saving failed; and a sentence, followed by
            a space, that says why saving failed, or an empty string.
        """
        applied = self._applied(step)
        if applied is None:
            return None, ""
        if applied == 0:
            return _UNTRAINED, ""
        try:
            self.save_alone(applied)
        except (NonFiniteLossError, StorageError, RuntimeError, MemoryError) as fault:
            if isinstance(fault, RuntimeError) and not is_out_of_memory(fault):
                raise
            reason = str(fault).removesuffix(".")
            return None, f"The state after {counted(applied, 'steps')} was not saved: {reason}. "
        return f"The state after {counted(applied, 'steps')} is saved", ""

    @contextlib.contextmanager
    def saving_on_error(self, step: int) -> Iterator[StepCounter]:
        """Within the context, save the state after a dataset or storage error, and explain it.

        The weights are intact then. If a model could not be written, its state often can, since it
        may be on another disk.

        Args:
            step: Steps completed so far; the caller keeps the yielded counter up to date.

        Raises:
            DatasetError: Images or latents cannot be read; the message says what is saved.
            StorageError: A file cannot be written; the message says what is saved.
        """
        done = StepCounter(step)
        try:
            yield done
        except (DatasetError, StorageError) as error:
            saved, why_not = None, ""
            if self.accelerator.num_processes == 1 and not self.optimizer_update.is_stepping:
                self.optimizer.zero_grad()
                saved, why_not = self._saved(done.step)
            then = f"{saved}. Continue with" if saved else why_not + self._kept()
            kind = DatasetError if isinstance(error, DatasetError) else StorageError
            resume = how_to_resume(self.run.path, self.run.address)
            raise kind(f"{error} {then}: {resume}") from error

    def _kept(self) -> str:
        """Return which state exists, as the start of a sentence that ends with a resume command."""
        if not self.accelerator.is_main_process:  # this machine may not have the disk with states
            return f"{_ELSEWHERE}. Continue with"
        return kept_text(self.newest_saved())

    def _has_state(self, step: int) -> bool:
        """Return whether the run has a saved state; other processes than the main one guess."""
        if not self.accelerator.is_main_process:
            return step > 0
        return self.newest_saved() > 0

    def _goes_on_from(self, step: int) -> str:
        """Return what a resume after `step` steps starts from, as a sentence without full stop."""
        if self._has_state(step):
            return _NEWEST if self.accelerator.is_main_process else _ELSEWHERE
        return _NONE_SAVED if step else _UNTRAINED

    def explaining_fetches(self, steps: Iterator[T], done: StepCounter) -> Iterator[T]:
        """Yield the batches of steps, and explain errors that occur while one is prepared.

        Args:
            steps: Reads, decodes, encodes and copies a batch when it is advanced.
            done: The number of steps completed.

        Raises:
            OutOfMemoryError: RAM or VRAM ran out.
            RunError: Another process has ended.
        """
        while True:
            with self.explaining_errors("preparing the next batch", done.step):
                try:
                    item = next(steps)
                except StopIteration:
                    return
            yield item

    @contextlib.contextmanager
    def explaining_errors(self, doing: str, step: int) -> Iterator[None]:
        """Within the context, explain errors; save the state if memory runs out.

        Args:
            doing: The activity, to follow "while" in the message.
            step: Steps completed.

        Raises:
            OutOfMemoryError: RAM or VRAM ran out.
            RunError: Another process has ended, or a step cannot be recorded as a CUDA graph.
        """
        try:
            yield
        except NotRecordableError as error:
            raise self._not_recordable(doing, step, error) from error
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise self._out_of_memory(error, doing, step) from error
            if self.accelerator.num_processes > 1 and is_process_loss(error):
                raise RunError(
                    f"Another process of this run ended in step {step + 1}, so this one stops; "
                    f"its own message says why. Continue from the newest state with the same "
                    f"launcher: {how_to_resume(self.run.path, self.run.address)}"
                ) from error
            raise

    def _not_recordable(self, doing: str, step: int, error: NotRecordableError) -> RunError:
        self.optimizer.zero_grad()
        saved, why_not = self._saved(step)
        then = saved or why_not + self._goes_on_from(step)
        return RunError(
            f'While {doing}, training.cuda_graphs = "step" could not record the step: {error}. '
            f'{then}. Set training.cuda_graphs to "off" in its config.toml, and continue with: '
            f"{how_to_resume(self.run.path, self.run.address)}"
        )

    def _out_of_memory(self, error: BaseException, doing: str, step: int) -> ImpastoError:
        saved, why_not = None, ""
        if self.optimizer_update.is_stepping:
            saved = "The optimizer was changing the weights, so no state was saved"
            saved += f". {self._goes_on_from(step)}" if self._has_state(step) else ""
        else:
            self.optimizer.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            # do not wait for the other processes, which are in the middle of their step
            if self.accelerator.is_main_process and not self.strategy.is_sharded:
                saved, why_not = self._saved(step)
        return out_of_memory(
            error,
            self.config,
            doing,
            f"{saved or why_not + self._goes_on_from(step)}.",
            self.accelerator.device,
            how_to_resume(self.run.path, self.run.address),
            has_state=self._has_state(step),
        )
