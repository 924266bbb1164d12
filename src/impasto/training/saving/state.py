"""Training states on disk: complete or absent, versioned, without pickle.

state.json               format_version, step, samples_seen, fingerprint of the run
weights.safetensors      the trained parameters, in the dtype that they are trained in
optimizer.safetensors    the optimizer's tensors
ema.safetensors          the running averages of the weights, if the run has any
hashes.json              a hash of state.json, and of each tensor of each file

States of earlier versions have no hashes; they can be read, but only their structure is checked.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from impasto import files, storage_errors
from impasto.checkpoints.reading import open_tensor_file
from impasto.checkpoints.tensors import LazyTensor, Tensors, total_bytes
from impasto.checkpoints.writing import in_file_order, tensor_hash, write_safetensors
from impasto.errors import ModelError, RunError
from impasto.parsing import parse_json, read_text
from impasto.progress import Progress, SilentProgress, in_mib
from impasto.runs import RunDirectory, step_name
from impasto.training.fingerprints.fingerprint import differences
from impasto.training.monitoring.metrics import MetricsWindow
from impasto.training.optim.finite_updates import are_finite

FORMAT_VERSION = 1
DESCRIPTION, HASHES = "state.json", "hashes.json"
_TENSOR_FILES = ("weights", "optimizer", "ema")
_WEIGHTS = ("weights", "ema")


class DamagedStateError(RunError):
    """A state differs from what was written: truncated, changed, or with parts missing."""


@dataclass(frozen=True)
class TrainingState:
    """All that a resumed run needs besides its settings and its dataset.

    All tensors are read lazily, one by one.

    Attributes:
        step: Optimizer steps completed.
        samples_seen: Images seen, including repeats, over all processes.
        fingerprint: The run that the state belongs to: base model, dataset, and all settings that
            change the results.
        weights: `<part>.<name>` -> trained tensor.
        optimizer: The optimizer's tensors.
        optimizer_scalars: The optimizer's numbers that are not tensors.
        ema: The averaged weights; empty if the run has none.
        scaler: The state of the fp16 loss scaler; empty without one.
        best_validation: The lowest validation loss so far; None before the first.
        window: Measurements of steps that no line of metrics includes yet.
        is_hashed: Whether the state has hashes, which those of earlier versions lack.
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
    window: MetricsWindow | None = None
    is_hashed: bool = True

    @property
    def size_bytes(self) -> int:
        """The size of all tensors in bytes."""
        return sum(total_bytes(tensors) for tensors in self.tensors())

    def copied(self) -> TrainingState:
        """Return a copy with all tensors in RAM, which training does not change."""
        weights, optimizer, ema = (
            {n: LazyTensor.of(tensors[n].read_as(tensors[n].dtype)) for n in in_file_order(tensors)}
            for tensors in self.tensors()
        )
        return replace(self, weights=weights, optimizer=optimizer, ema=ema)

    def read_on_all_ranks(self) -> None:
        """Read all tensors, each once and in the order in which they are written or copied.

        The other processes of a sharded run call this while the main process saves the state, since
        gathering a tensor needs all of them.
        """
        for tensors in self.tensors():
            for name in in_file_order(tensors):
                tensors[name].read()

    def tensors(self) -> tuple[Tensors, Tensors, Tensors]:
        """Return the tensors of the weights, of the optimizer, and of the averages."""
        return self.weights, self.optimizer, self.ema


def save_state(run: RunDirectory, state: TrainingState, *, keep: int) -> Path:
    """Write a state and sync it to disk, then remove all but the `keep` newest states.

    Raises:
        StorageError: The disk is full or the run directory cannot be written; older states stay.
    """
    target = run.states / step_name(state.step)
    if target.is_dir():  # the same step of the same run has the same bits
        state.read_on_all_ranks()
        return target
    with files.replace_folder(target) as partial:
        _write_into(partial, state)
    for step in run.saved_steps()[:-keep]:
        files.remove_folder(run.states / step_name(step))
    return target


def _write_into(folder: Path, state: TrainingState) -> None:
    hashes: dict[str, Any] = {}
    for name, tensors in zip(_TENSOR_FILES, state.tensors(), strict=True):
        if tensors or name != "ema":
            of_file = hashes[f"{name}.safetensors"] = {}
            file = folder / f"{name}.safetensors"
            write_safetensors(file, tensors, {}, unchecked=tensors.keys(), hashes=of_file)
    description = {
        "format_version": FORMAT_VERSION,
        "step": state.step,
        "samples_seen": state.samples_seen,
        "fingerprint": dict(state.fingerprint),
        "optimizer_scalars": dict(state.optimizer_scalars),
        "scaler": dict(state.scaler),
        "best_validation": state.best_validation,
        **({} if state.window is None else {"window": asdict(state.window)}),
        "has_hashes": True,
    }
    files.write_json(folder / DESCRIPTION, description)
    hashes[DESCRIPTION] = files.sha256_of(folder / DESCRIPTION)
    files.write_json(folder / HASHES, hashes)


def load_state(
    folder: Path,
    fingerprint: Mapping[str, str],
    progress: Progress | None = None,
    *,
    check_tensors: bool = True,
) -> TrainingState:
    """Read a state, and make sure that it is undamaged and belongs to this run.

    Args:
        folder: The folder of the state.
        fingerprint: The fingerprint of this run.
        progress: Receives the progress of the check; None shows none.
        check_tensors: Whether to read all tensors and compare them with their hashes.

    Raises:
        DamagedStateError: The state differs from what was written.
        RunError: The state has a newer format, belongs to another run (the message names the
            differences), or cannot be read for a passing reason.
    """
    try:
        description = parse_json(read_text(folder / DESCRIPTION))
        version = description["format_version"]
        if version > FORMAT_VERSION:
            raise RunError(
                f"{folder} was written by a newer version of Impasto (state format {version}; this "
                f"version reads up to {FORMAT_VERSION}). Update Impasto to resume it."
            )
        hashes = _hashes_of(folder, description)
        step = _number(description["step"])
        _require_same(folder, dict(description["fingerprint"]), fingerprint, step)
        tensors = _tensors_of(folder, hashes)
        if check_tensors:
            _require_good(tensors, hashes, progress or SilentProgress())
        return _state_of(description, tensors, is_hashed=hashes is not None)
    except OSError as error:
        if error.errno not in _OF_DAMAGED_FILES:  # a passing error, such as too many open files
            raise RunError(
                f"{folder} cannot be read: {storage_errors.cause_of(error)}. Nothing was changed."
            ) from error
        raise DamagedStateError(
            f"The training state {folder} is damaged ({_error_text(error)})."
        ) from error
    except _SIGNS_OF_DAMAGE as error:
        raise DamagedStateError(
            f"The training state {folder} is damaged ({_error_text(error)})."
        ) from error


def recorded_fingerprint(run: RunDirectory) -> Mapping[str, str]:
    """Return the fingerprint of the newest readable state of a run; empty if there is none."""
    for step in reversed(run.saved_steps()):
        with contextlib.suppress(OSError, *_SIGNS_OF_DAMAGE):
            description = parse_json(read_text(run.states / step_name(step) / DESCRIPTION))
            return {str(k): str(v) for k, v in description["fingerprint"].items()}
    return {}


_OF_DAMAGED_FILES = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.EINVAL, errno.EILSEQ
}  # fmt: skip
"""Errors of the operating system for a file that is missing, not a file, or permanently
unreadable."""

_SIGNS_OF_DAMAGE = (
    ValueError, KeyError, TypeError, AttributeError, RecursionError, ModelError
)  # fmt: skip
"""Exceptions that damaged JSON and tensor files cause; hashes find all other damage."""


def _error_text(error: Exception) -> str:
    if isinstance(error, (ModelError, ValueError)) and str(error):
        return str(error).removesuffix(" Download or copy it again.").rstrip(".")
    if isinstance(error, OSError) and error.filename:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"- {error.strerror}"
        return f"{Path(error.filename).name} {what}"
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return repr(error)


def _hashes_of(folder: Path, description: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the hashes of a state, after checking state.json; None in states of older versions.

    Raises:
        ValueError: `hashes.json` is missing, or state.json differs from its hash.
    """
    file = folder / HASHES
    if not file.is_file():
        if description.get("has_hashes"):
            raise ValueError(f"{HASHES} is missing")
        return None
    hashes: Mapping[str, Any] = parse_json(read_text(file))
    if hashes[DESCRIPTION] != files.sha256_of(folder / DESCRIPTION):
        raise ValueError(f"{DESCRIPTION} does not match its hash")
    return hashes


def _tensors_of(folder: Path, hashes: Mapping[str, Any] | None) -> dict[str, Tensors]:
    """Return the tensors of each file, lazily read, after comparing their names with the hashes.

    Raises:
        ValueError: A file is not safetensors, or its tensors are not those in the hashes.
    """
    found: dict[str, Tensors] = {}
    for name in _TENSOR_FILES:
        file = f"{name}.safetensors"
        is_there = (folder / file).is_file()
        is_expected = name != "ema" or is_there or (hashes is not None and file in hashes)
        found[name] = _open(folder / file) if is_expected else {}
        if hashes is not None and found[name].keys() != hashes.get(file, {}).keys():
            raise ValueError(f"{file} has missing or unexpected tensors")
    return found


def _open(file: Path) -> Tensors:
    """Open a safetensors file; a file of another format, such as a pickle, is never parsed.

    Raises:
        ValueError: The file is not safetensors.
    """
    with file.open("rb") as content:
        head = content.read(9)
    if head[8:] != b"{" or int.from_bytes(head[:8], "little") + 8 > file.stat().st_size:
        raise ValueError(f"{file.name} is not a safetensors file")
    return open_tensor_file(file).tensors


def _require_good(
    tensors: Mapping[str, Tensors], hashes: Mapping[str, Any] | None, progress: Progress
) -> None:
    """Make sure that tensors match their hashes, and that weights are finite.

    Earlier versions could write weights that are NaN, and did not always write hashes.

    Raises:
        ValueError: A tensor differs from its hash, or a weight is not finite.
    """
    read = tensors if hashes is not None else {k: v for k, v in tensors.items() if k in _WEIGHTS}
    size = sum(total_bytes(own) for own in read.values())
    with progress.stage("Checking the state", size >> 20, "MiB") as advance:
        count = in_mib(advance)
        for component, own in read.items():
            file = f"{component}.safetensors"
            for name, tensor in own.items():
                values = tensor.read()
                if hashes is not None and tensor_hash(values) != hashes[file][name]:
                    raise ValueError(f"{name} in {file} does not match its hash")
                if component in _WEIGHTS and not are_finite([values]):
                    raise ValueError(f"{name} in {file} holds NaN or infinite values")
                count(tensor.size_bytes)


def _state_of(
    description: Mapping[str, Any], tensors: Mapping[str, Tensors], *, is_hashed: bool
) -> TrainingState:
    best = description.get("best_validation")
    return TrainingState(
        step=_number(description["step"]),
        samples_seen=_number(description["samples_seen"]),
        fingerprint=description["fingerprint"],
        weights=tensors["weights"],
        optimizer=tensors["optimizer"],
        optimizer_scalars=dict(description["optimizer_scalars"]),
        ema=tensors["ema"],
        scaler=dict(description.get("scaler", {})),
        best_validation=None if best is None else float(best),
        window=MetricsWindow.of(description["window"]) if "window" in description else None,
        is_hashed=is_hashed,
    )


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"{value!r} is not a valid number of steps or images")
    return value


def _require_same(
    folder: Path, saved: Mapping[str, str], current: Mapping[str, str], done: int
) -> None:
    differing = differences(saved, current, done)
    if differing:
        has_exported = RunDirectory(folder.parents[1]).exported_model() is not None
        raise RunError(
            f"{folder} cannot be resumed exactly, because this changed since: "
            f"{'; '.join(differing)}. Undo the change, or start a new run"
            f"{' from the exported model' if has_exported else ''}."
        )
