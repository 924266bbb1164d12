"""Writes the states and models of a run, in the background if RAM has room for a copy."""

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
    """Replaces the trained weights by those to export, for a while."""

    def __call__(self, *, average: bool) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the weights are replaced.

        Args:
            average: Whether to use the running average, if the run has one.
        """


class Saver:
    """Writes the states, averages and models of a run, on the main process.

    The other processes write nothing, but take part in gathering a sharded model.

    Training waits only while tensors are copied to RAM; if the copy would not fit, training waits
    until all is written.

    Args:
        resumable: The objects that states are captured from.
        source: The inputs of exports.
        accelerator: The processes.
        evaluation_weights: Replaces the trained weights by those to export, for a while.
        run: The directory for states, and for models unless the settings name another.
        progress: Receives progress and notes.
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
        """Save the state after `done` steps; does nothing if the run has that state already.

        Args:
            done: Steps completed.
            best: The lowest validation loss so far; None before the first.
            now: Whether to wait until the state is on disk.
            window: Measurements that are not in the metrics yet.

        Raises:
            NonFiniteLossError: Weights are NaN or infinite; nothing is written or removed.
            StorageError: The state, or a file submitted before, could not be written.
        """
        if not self._session_state.strategy.agreed(done not in self._run.saved_steps()):
            return  # the same step of the same run has the same bits
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
        """Save the state of a run that ends with an error, even after a failed background write.

        Args:
            done: Steps completed.
            best: The lowest validation loss so far; None before the first.
            window: Measurements that are not in the metrics yet.

        Raises:
            NonFiniteLossError: Weights are NaN or infinite; nothing is written or removed.
            StorageError: The state could not be written.
        """
        self._background.wait_quietly()
        self.save_state(done, best, now=True, window=window)

    def newest_saved(self) -> int:
        """Return the step of the newest state on disk, or 0; waits for background writes."""
        self._background.wait_quietly()
        return max(self._run.saved_steps(), default=0)

    def _require_finite(self, done: int) -> None:
        """Make sure that the weights and their averages are finite before they are saved.

        Raises:
            NonFiniteLossError: A weight is NaN or infinite.
        """
        resumable, optimizer = self._session_state, self._source.config.optimizer
        averages = [t for a in resumable.averages().values() for t in a.tensors().values()]
        good = are_finite([*resumable.names, *averages])
        if resumable.strategy.is_sharded:
            bad = torch.tensor(int(not good), device=self._accelerator.device)
            good = not bool(self._accelerator.reduce(bad, "sum"))
        if not good:
            raise NonFiniteLossError(
                f"After {counted(done, 'steps')} some weights are NaN or infinite, "
                f"though every loss and gradient was finite: optimizer.kind "
                f"{optimizer.kind} made them so. No state was written. Lower "
                f"optimizer.lr (it is {optimizer.lr:g}). To continue from the "
                f"newest earlier state: {how_to_resume(self._run.path, self._run.address)}"
            )

    def store_start(self, step: int, averages: Mapping[float, EmaWeights]) -> None:
        """Store the weights that the run begins with, unless a resumed run has stored them already.

        Args:
            step: The step that the run continues from; 0 for a new run.
            averages: The averages before the first update and before a restore, when they still
                equal the weights.

        Raises:
            StorageError: The weights could not be written.
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
        """Store the averages after `done` steps, which post-hoc EMA combines after training.

        Raises:
            ModelError: The weights that the run began with cannot be read.
            StorageError: The averages, or a file submitted before, could not be written.
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
        """Export the model after `done` steps, once per name suffix in `endings`."""
        source = replace(self._source, steps=done)
        for ending in endings:

            def export(trained: Trained, variant: str, ending: str = ending) -> Path:
                return export_intermediate(
                    source, trained, self._models, self._progress, ending, variant
                )

            self._export(export, now=False)

    def restart(self) -> int:
        """Mark existing models as those of an abandoned attempt, since the run starts from scratch.

        Returns:
            The number of models of abandoned attempts.
        """
        return self._models.restart()

    def lacks(self, endings: Sequence[str]) -> bool:
        """Return whether a model with one of these name suffixes is missing on the disk."""
        targets = [
            intermediate_target(self._source.config, ending, variant)
            for ending in endings
            for variant in self._suffixes()
        ]
        return not all(target.exists() for target in targets)

    def export_best(self, done: int, loss: float) -> None:
        """Export the model after `done` steps as the best one, replacing the previous best."""
        source = replace(self._source, steps=done)
        self._export(
            lambda trained, variant: export_best(
                source, trained, self._models, self._progress, variant, (done, loss)
            ),
            now=False,
        )

    def export_model(self) -> Path | None:
        """Export the final model and wait until it is on disk.

        Returns its path; None in all processes but the main one. If both the model and its running
        average are exported, the path is that of the model.
        """
        self._background.wait()
        paths = self._export(
            lambda trained, variant: export_final(
                self._source, trained, self._models, self._progress, variant
            ),
            now=True,
        )
        return paths[0] if self._writes else None

    def drop_states(self) -> None:
        """Remove the states of a finished run, unless `saving.keep_final_state` is on.

        Damaged states that were renamed stay, so that the user can inspect them.
        """
        if self._saving.keep_final_state:
            return
        for step in self._run.saved_steps():
            files.remove_folder(self._run.states / step_name(step))
        with contextlib.suppress(OSError):  # the folder holds other files
            self._run.states.rmdir()

    def raise_error(self) -> None:
        """Raise the error of a background write that has failed, if one has."""
        self._background.raise_error()

    def close(self) -> None:
        """Wait for background writes, and end the writer."""
        self._background.close()

    def _write_state(self, state: TrainingState) -> None:
        self._run.require_locked()
        save_state(self._run, state, keep=self._saving.keep_states)
        self._run.note_status(saved_step=state.step)

    def _export(self, export: Export, *, now: bool) -> list[Path]:
        paths = []
        shared = self._session_state.strategy.is_sharded  # gathered tensors are copies already
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
        """Return the variants to export: name suffix -> whether it is the running average."""
        if self._session_state.ema is None:
            return {"": False}
        return {"instead": {"": True}, "never": {"": False}, "beside": {"": False, AVERAGE: True}}[
            self._saving.average
        ]
