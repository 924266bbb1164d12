"""What goes wrong while a run trains, as errors that say what is saved and how to go on."""

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

_NEWEST = "The newest state is what it goes on from"
_NONE_SAVED = "No state was saved yet"
_ELSEWHERE = "If a state was saved, it goes on from the newest"
_UNTRAINED = "Nothing was trained yet"


@dataclass
class StepCounter:
    """How many optimizer steps are done, for those who are told of an error after them.

    Attributes:
        step: That number.
    """

    step: int


@dataclass(frozen=True)
class Failures:
    """Saves what is still good, and explains.

    Attributes:
        config: The settings.
        accelerator: The processes.
        strategy: How they hold the model.
        optimizer: Has gradients that may be dropped.
        has_average: Whether a running average of the weights is kept.
        run: Where states go.
        optimizer_update: Knows whether a step has begun to change something and is not counted yet.
        save: Saves the state after some steps; all processes do.
        save_alone: The same, by this process, which waits for no other.
        newest_saved: Gives the step of the newest state on disk, after what is being written; 0
            without one.
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
        """The error of a step whose loss or gradient is NaN or infinite.

        The state from before it is saved where the weights are still those, and of a step.

        Args:
            step: Steps that were applied before it.
            fault: What is known of it.
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
                what += (
                    f" (with an average that took them in {fault.passed_over - 1} more times, "
                    "until this was found)"
                )
        return NonFiniteLossError(
            f"The loss or the gradient became NaN or infinite in step {step + 1}. The "
            f"usual causes are a learning rate that is too high (optimizer.lr is "
            f"{self.config.optimizer.lr:g}; try a tenth) and a base model with broken "
            f"weights. {what}"
        )

    def _applied(self, step: int) -> int | None:
        """How many steps the weights have had, of so many; None if one was applied in part."""
        try:
            self.optimizer_update.require_applied()
        except NonFiniteError as fault:
            return step - fault.passed_over if fault.weights_intact else None
        return step

    def _saved(self, step: int) -> tuple[str | None, str]:
        """Save the state of the steps that were applied, of so many, in this process alone.

        Returns:
            The beginning of the sentence that says so, None if no state could be saved; and the
            sentence, with a space, that says why not. Before the first step nothing is saved: a
            state would hold the base model, and tie the run to the settings that have just failed.
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
        """Save the state if latents or images are lost meanwhile, or a file cannot be written.

        The weights are good then. Where a model could not be written, the state may well be: it
        is often on another disk.

        Args:
            step: Steps that are done at first; the value is kept up to date by the caller.

        Raises:
            DatasetError: With what is saved.
            StorageError: Likewise.
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
        """Which state is there already, for a sentence that ends with the command to go on."""
        if not self.accelerator.is_main_process:  # there may be no disk here with the states
            return f"{_ELSEWHERE}. Continue with"
        return kept_text(self.newest_saved())

    def _has_state(self, step: int) -> bool:
        """Whether the run goes on from a state that was saved before; maybe, in other processes."""
        if not self.accelerator.is_main_process:
            return step > 0
        return self.newest_saved() > 0

    def _goes_on_from(self, step: int) -> str:
        """What the run goes on from after so many steps, as a sentence without its full stop."""
        if self._has_state(step):
            return _NEWEST if self.accelerator.is_main_process else _ELSEWHERE
        return _NONE_SAVED if step else _UNTRAINED

    def explaining_fetches(self, steps: Iterator[T], done: StepCounter) -> Iterator[T]:
        """Yield what the steps train on, and explain errors where it is fetched.

        Args:
            steps: Reads, decodes, encodes and copies as it is asked for the next one.
            done: How many steps are done then.

        Raises:
            OutOfMemoryError: Memory ran out.
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
        """Save the state and explain if memory runs out, or another process ends, meanwhile.

        Raises:
            OutOfMemoryError: Memory ran out.
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
            f"While {doing}, training.cuda_graphs step could not record the step: {error}. "
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
            # the others are in the middle of their step: none is waited for
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
