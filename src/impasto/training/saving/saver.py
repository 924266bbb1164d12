"""The states and models of a run, written while training goes on where memory allows a copy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator

from impasto import files
from impasto.background import BackgroundWriter
from impasto.checkpoints.tensors import LazyTensor, Tensors, total_bytes
from impasto.checkpoints.writing import in_file_order
from impasto.errors import NonFiniteLossError
from impasto.models.writing.saving import DTYPES
from impasto.progress import Progress, counted
from impasto.runs import RunDirectory, step_name
from impasto.runs.given_code import how_to_resume
from impasto.training.builders.model_files import AVERAGE, intermediate_target
from impasto.training.monitoring.metrics import MetricsWindow
from impasto.training.optim.ema import EmaWeights
from impasto.training.optim.finite_updates import are_finite
from impasto.training.saving.averages import (
    less,
    named,
    read_start,
    start_file,
    write_snapshot,
    write_start,
)
from impasto.training.saving.export import (
    ExportSource,
    Trained,
    copy_trained,
    export_best,
    export_final,
    export_intermediate,
    trained_bytes,
)
from impasto.training.saving.own_models import OwnModels
from impasto.training.saving.session_state import SessionState
from impasto.training.saving.state import TrainingState, save_state

Export = Callable[[Trained, str], Path]


class EvalWeights(Protocol):
    """Puts the weights to export in the place of those that are trained, for a while."""

    def __call__(self, *, average: bool) -> contextlib.AbstractContextManager[None]:
        """Put them there; with `average`, the running average where one is kept."""


class Saver:
    """Writes what a run leaves, on the first process.

    The others do their share where the model is shared out, and write nothing.

    Training waits only for the copy out of its way; for all of it where that copy would not fit
    into RAM.

    Args:
        resumable: What goes into a state.
        source: What a model is exported from.
        accelerator: The processes.
        evaluation_weights: Puts the weights to export in the place of those that are trained: their
            running average where asked for.
        run: Where states go, and models unless the settings say otherwise.
        progress: Who is told.
    """

    def __init__(
        self,
        resumable: SessionState,
        source: ExportSource,
        accelerator: Accelerator,
        evaluation_weights: EvalWeights,
        run: RunDirectory,
        progress: Progress,
    ) -> None:
        self._session_state, self._source, self._accelerator = resumable, source, accelerator
        self._eval_weights = evaluation_weights
        self._run, self._progress = run, progress
        self._saving = source.config.saving
        self._writes = accelerator.is_main_process
        self._models = OwnModels(run, overwrite=self._saving.overwrite)
        self._background = BackgroundWriter()

    def save_state(
        self, done: int, best: float | None, *, now: bool, window: MetricsWindow | None = None
    ) -> None:
        """Save the state after `done` steps.

        Args:
            done: Steps.
            best: The lowest validation loss so far.
            now: Whether to wait until it is on disk.
            window: What is not in the metrics yet.

        Raises:
            NonFiniteLossError: Weights are NaN or infinite; nothing is written or removed.
            StorageError: It, or what was submitted before, could not be written.
        """
        if not self._session_state.strategy.agreed(done not in self._run.saved_steps()):
            return  # the same step of the same run: the same bits
        self._require_finite(done)
        state = self._session_state.capture(done, best, window)
        if not self._writes:
            state.read_on_all_ranks()
        elif not now and self._background.fits_in_memory(state.size_bytes):
            copy = state.copied()
            self._background.submit(lambda: self._write_state(copy))
        else:
            self._background.wait()
            self._write_state(state)

    def save_last(self, done: int, best: float | None, window: MetricsWindow | None) -> None:
        """Save the state of a run that ends by an error, also after a write that has failed.

        Args:
            done: As for `save_state`.
            best: Likewise.
            window: Likewise.

        Raises:
            NonFiniteLossError: As for `save_state`.
            StorageError: It could not be written.
        """
        self._background.wait_quietly()
        self.save_state(done, best, now=True, window=window)

    def newest_saved(self) -> int:
        """The step of the newest state on disk, after what is being written; 0 without one."""
        self._background.wait_quietly()
        return max(self._run.saved_steps(), default=0)

    def _require_finite(self, done: int) -> None:
        """Look at the weights, and their average: what is saved has to be good to go on from."""
        resumable, optimizer = self._session_state, self._source.config.optimizer
        averages = [t for a in resumable.averages().values() for t in a.tensors().values()]
        good = are_finite([*resumable.names, *averages])
        if resumable.strategy.is_sharded:
            bad = torch.tensor(int(not good), device=self._accelerator.device)
            good = not bool(self._accelerator.reduce(bad, "sum"))
        if not good:
            raise NonFiniteLossError(
                f"After {counted(done, 'steps')} there are weights that are NaN or infinite, "
                f"though every loss and gradient was finite: optimizer.kind "
                f"{optimizer.kind} made them so. No state was written. Lower "
                f"optimizer.lr (it is {optimizer.lr:g}). To continue from the "
                f"newest state before: {how_to_resume(self._run.path, self._run.address)}"
            )

    def store_start(self, step: int, averages: Mapping[float, EmaWeights]) -> None:
        """Store the weights that the run began with, unless it goes on and has stored them.

        Args:
            step: What it goes on from.
            averages: As they are before anything is taken in or restored: the weights themselves.

        Raises:
            StorageError: They could not be written.
        """
        strategy = self._session_state.strategy
        if not strategy.agreed(step == 0 or not start_file(self._run).is_file()):
            return
        tensors = strategy.whole(next(iter(averages.values())).tensors())
        if self._writes:
            write_start(self._run, tensors)
        else:
            for name in in_file_order(tensors):
                tensors[name].read()

    def store_averages(self, done: int, averages: Mapping[float, EmaWeights]) -> None:
        """Store averages that others are made of after training, as they are after `done` steps.

        Raises:
            ModelError: The weights that the run began with cannot be read any more.
            StorageError: They, or what was submitted before, could not be written.
        """
        strategy = self._session_state.strategy
        whole = {s: strategy.whole(average.tensors()) for s, average in averages.items()}
        if not self._writes:
            tensors = {n: t for s, own in whole.items() for n, t in named(s, own).items()}
            for name in in_file_order(tensors):
                tensors[name].read()
            return
        start, dtype = read_start(self._run), DTYPES[self._saving.posthoc_dtype]
        stored: dict[str, LazyTensor] = {}
        for sigma_rel, own in whole.items():
            moved = {n: less(tensor, start[n]).cast(dtype) for n, tensor in own.items()}
            stored |= named(sigma_rel, moved)
        if self._background.fits_in_memory(total_bytes(stored)):
            copies = {n: LazyTensor.of(stored[n].read_as(stored[n].dtype)) for n in sorted(stored)}
            self._background.submit(lambda: self._write_averages(done, copies))
        else:
            self._background.wait()
            self._write_averages(done, stored)

    def _write_averages(self, done: int, tensors: Tensors) -> None:
        self._run.require_locked()
        write_snapshot(self._run, done, tensors)

    def export_intermediate(self, done: int, endings: Sequence[str]) -> None:
        """Export the model as it is after `done` steps, once for each ending of its name."""
        source = replace(self._source, steps=done)
        for ending in endings:

            def export(trained: Trained, variant: str, ending: str = ending) -> Path:
                return export_intermediate(
                    source, trained, self._models, self._progress, ending, variant
                )

            self._export(export, now=False)

    def begin_anew(self) -> int:
        """Set the models of earlier attempts apart: this one begins at its first step.

        Returns:
            How many there are.
        """
        return self._models.begin_anew()

    def lacks(self, endings: Sequence[str]) -> bool:
        """Whether a model of one of these endings is not there."""
        targets = [
            intermediate_target(self._source.config, ending, variant)
            for ending in endings
            for variant in self._suffixes()
        ]
        return not all(target.exists() for target in targets)

    def export_best(self, done: int, loss: float) -> None:
        """Export the model as it is after `done` steps, in the place of the best before."""
        source = replace(self._source, steps=done)
        self._export(
            lambda trained, variant: export_best(
                source, trained, self._models, self._progress, variant, (done, loss)
            ),
            now=False,
        )

    def export_model(self) -> Path | None:
        """Export the model, wait until all is on disk, and return its path if it was written."""
        self._background.wait()
        paths = self._export(
            lambda trained, variant: export_final(
                self._source, trained, self._models, self._progress, variant
            ),
            now=True,
        )
        return paths[0] if self._writes else None

    def drop_states(self) -> None:
        """Remove the states of a run whose end is recorded, unless they are to be kept.

        Damaged ones that were renamed stay: they are the user's to look at.
        """
        if self._saving.keep_final_state:
            return
        for step in self._run.saved_steps():
            files.remove_folder(self._run.states / step_name(step))
        with contextlib.suppress(OSError):  # something else is in it
            self._run.states.rmdir()

    def raise_error(self) -> None:
        """Pass on the error of what could not be written meanwhile."""
        self._background.raise_error()

    def close(self) -> None:
        """Wait until all is done."""
        self._background.close()

    def _write_state(self, state: TrainingState) -> None:
        self._run.require_locked()
        save_state(self._run, state, keep=self._saving.keep_states)
        self._run.note_status(saved_step=state.step)

    def _export(self, export: Export, *, now: bool) -> list[Path]:
        paths = []
        shared = self._session_state.strategy.is_sharded  # what was put together is a copy
        for variant, average in self._suffixes().items():
            with self._eval_weights(average=average):
                trained: Trained = self._session_state.strategy.gather_modules(
                    self._source.trainable.export()
                )
                if not self._writes:
                    continue
                room = shared or self._background.fits_in_memory(trained_bytes(trained))
                if now or not room:
                    paths.append(export(trained, variant))
                else:
                    copy = trained if shared else copy_trained(trained)
                    self._submit(export, copy, variant)
        return paths

    def _submit(self, export: Export, copy: Trained, variant: str) -> None:
        self._background.submit(lambda: export(copy, variant))

    def _suffixes(self) -> Mapping[str, bool]:
        """What is exported: ending of the name -> whether it is the running average."""
        if self._session_state.ema is None:
            return {"": False}
        return {"instead": {"": True}, "never": {"": False}, "beside": {"": False, AVERAGE: True}}[
            self._saving.average
        ]
