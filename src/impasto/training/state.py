"""Training states on disk: complete or absent, versioned, without pickle.

state.json               format_version, step, samples_seen, what the tensors belong to
weights.safetensors      the parts that learn, as they are kept
optimizer.safetensors    the optimizer's tensors
ema.safetensors          the running average of the weights, if there is one
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from impasto import files
from impasto.checkpoints.reading import open_tensor_file
from impasto.checkpoints.tensors import LazyTensor, Tensors, total_bytes
from impasto.checkpoints.writing import in_file_order, write_safetensors
from impasto.errors import ModelError, RunError
from impasto.runs import RunDirectory, step_name
from impasto.training.fingerprint import differences

FORMAT_VERSION = 1


@dataclass(frozen=True)
class TrainingState:
    """All that a resumed run needs besides its settings and its data.

    Attributes:
        step: Optimizer updates done.
        samples_seen: Pictures seen, repeats counted, over all processes.
        fingerprint: What the state belongs to: base model, data and settings that shape the run.
        weights: `<part>.<name>` -> tensor; read one by one, as all of them.
        optimizer: The optimizer's tensors.
        optimizer_scalars: The optimizer's numbers that are not tensors.
        ema: The averaged weights, or nothing.
        scaler: Of the loss in float16, or nothing.
        best_validation: The lowest validation loss so far.
    """

    step: int
    samples_seen: int
    fingerprint: Mapping[str, str]
    weights: Tensors
    optimizer: Tensors
    optimizer_scalars: Mapping[str, Any]
    ema: Tensors
    scaler: Mapping[str, float] = field(default_factory=dict)
    best_validation: float | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(total_bytes(tensors) for tensors in self._tensors())

    def copied(self) -> TrainingState:
        """A copy in the computer's memory, which training does not change."""
        weights, optimizer, ema = (
            {n: LazyTensor.of(tensors[n].read_as(tensors[n].dtype)) for n in in_file_order(tensors)}
            for tensors in self._tensors()
        )
        return replace(self, weights=weights, optimizer=optimizer, ema=ema)

    def read_along(self) -> None:
        """Read all tensors, each once and in the order in which they are written or copied.

        What processes that share a model out do while the first one saves it.
        """
        for tensors in self._tensors():
            for name in in_file_order(tensors):
                tensors[name].read()

    def _tensors(self) -> tuple[Tensors, ...]:
        return self.weights, self.optimizer, self.ema


def save_state(run: RunDirectory, state: TrainingState, *, keep: int) -> Path:
    """Write a state durably, then remove all but the `keep` newest.

    Raises:
        StorageError: The disk is full or the run directory cannot be written; older states stay.
    """
    target = run.states / step_name(state.step)
    if target.is_dir():  # the same step of the same run: the same bits
        state.read_along()
        return target
    with files.replace_folder(target) as partial:
        for name, tensors in (("weights", state.weights), ("optimizer", state.optimizer)):
            write_safetensors(partial / f"{name}.safetensors", tensors, {}, finite_only=False)
        if state.ema:
            write_safetensors(partial / "ema.safetensors", state.ema, {}, finite_only=False)
        description = {
            "format_version": FORMAT_VERSION,
            "step": state.step,
            "samples_seen": state.samples_seen,
            "fingerprint": dict(state.fingerprint),
            "optimizer_scalars": dict(state.optimizer_scalars),
            "scaler": dict(state.scaler),
            "best_validation": state.best_validation,
        }
        (partial / "state.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
    for step in run.saved_steps()[:-keep]:
        shutil.rmtree(run.states / step_name(step), ignore_errors=True)
    return target


def load_state(folder: Path, fingerprint: Mapping[str, str]) -> TrainingState:
    """Read a state and make sure that it belongs to this run.

    Raises:
        RunError: It is damaged, of a newer format, or of another run; the difference is named.
    """
    try:
        description = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        version = description["format_version"]
        if version > FORMAT_VERSION:
            raise RunError(
                f"{folder} was written by a newer Impasto (state format {version}; this one reads "
                f"up to {FORMAT_VERSION}). Update Impasto to resume it."
            )
        _require_same(folder, description["fingerprint"], fingerprint)
        ema_file = folder / "ema.safetensors"
        return TrainingState(
            step=description["step"],
            samples_seen=description["samples_seen"],
            fingerprint=description["fingerprint"],
            weights=open_tensor_file(folder / "weights.safetensors").tensors,
            optimizer=open_tensor_file(folder / "optimizer.safetensors").tensors,
            optimizer_scalars=description["optimizer_scalars"],
            ema=open_tensor_file(ema_file).tensors if ema_file.is_file() else {},
            scaler=description.get("scaler", {}),
            best_validation=description.get("best_validation"),
        )
    except (OSError, ValueError, KeyError, TypeError, ModelError) as error:
        raise RunError(
            f"The training state {folder} is damaged ({error!r}). Delete this folder and run the "
            f"same command: the next older state is used then."
        ) from error


def require_same_run(run: RunDirectory, fingerprint: Mapping[str, str]) -> None:
    """Make sure that a run's newest state can be continued with such a fingerprint.

    Raises:
        RunError: As `load_state`.
    """
    for step in run.saved_steps()[-1:]:
        load_state(run.states / step_name(step), fingerprint)


def _require_same(folder: Path, saved: Mapping[str, str], current: Mapping[str, str]) -> None:
    differing = differences(saved, current)
    if differing:
        raise RunError(
            f"{folder} cannot be resumed exactly, because this changed since: "
            f"{'; '.join(differing)}. Put it back as it was, or start a new run from the exported "
            f"model."
        )
