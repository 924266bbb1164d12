"""Stores snapshots of averaged weights, which post-hoc EMA combines after training.

`averages/step-00000500.safetensors` of a run directory holds tensors such as
`0.05/unet.conv_in.bias`: the sigma_rel of an average (`optim/posthoc.py`), the part of the model,
and the name of a trained weight. They are differences from the weights that the run began with,
which `averages/start.safetensors` holds in float32 by the same names. Combining them uses large
factors of both signs, so the error of rounding to 16 bits has to be relative to the distance that
weights moved, which is far smaller than the weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from impasto.checkpoints.reading import open_tensor_file
from impasto.checkpoints.tensors import LazyTensor, Tensors
from impasto.checkpoints.writing import write_safetensors
from impasto.errors import RunError, StorageError
from impasto.progress import counted
from impasto.runs import RunDirectory, step_name
from impasto.storage_errors import cause_of
from impasto.training.optim.posthoc import TRACKED, Profile
from impasto.training.saving.session_state import SIGMA_REL

_NAME = re.compile(r"step-(\d{8,})\.safetensors", re.ASCII)


def named(sigma_rel: float, tensors: Tensors) -> Tensors:
    """Return the tensors of an average under their names in files, which begin with sigma_rel."""
    return {f"{sigma_rel:g}{SIGMA_REL}{name}": tensor for name, tensor in tensors.items()}


def start_file(run: RunDirectory) -> Path:
    """Return the path of the file with the weights that a run began with."""
    return run.averages / "start.safetensors"


def write_start(run: RunDirectory, tensors: Tensors) -> None:
    """Write the weights that a run begins with, by weight name, and sync them to disk.

    Raises:
        ModelError: A value is not finite.
        StorageError: The disk is full or the folder cannot be written.
    """
    run.averages.mkdir(exist_ok=True)
    write_safetensors(start_file(run), tensors, {}, hashed=False)


def read_start(run: RunDirectory) -> Tensors:
    """Return the weights that a run began with, lazily read, by weight name.

    Raises:
        ModelError: The file is missing or damaged.
    """
    return open_tensor_file(start_file(run)).tensors


def less(tensor: LazyTensor, start: LazyTensor) -> LazyTensor:
    """Return the difference of two tensors in float32, computed when it is read."""
    return LazyTensor(
        tensor.shape,
        torch.float32,
        lambda: tensor.read().to(torch.float32) - start.read(),
        owns_memory=True,
    )


def write_snapshot(run: RunDirectory, done: int, tensors: Tensors) -> None:
    """Write the averages after `done` steps as differences from the start; replaces older ones.

    Raises:
        ModelError: A value is out of range of the dtype that it is stored in.
        StorageError: The disk is full or the folder cannot be written.
    """
    run.averages.mkdir(exist_ok=True)
    write_safetensors(_file_of(run, done), tensors, {"step": str(done)}, hashed=False)


def stored_steps(run: RunDirectory) -> list[int]:
    """Return the steps after which averages were stored, in ascending order."""
    if not run.averages.is_dir():
        return []
    matches = (_NAME.fullmatch(file.name) for file in run.averages.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def clear_later(run: RunDirectory, step: int) -> str:
    """Remove the averages of steps that a run is going to train again.

    In a run that continues from a state, later averages are deleted, as later metrics are: its
    settings agree with the state, so it will compute the same averages again. In a run that starts
    from scratch, it is unknown how the averages were trained, so the folder is renamed instead.

    Args:
        run: The run.
        step: The step of the state that it continues from; 0 if it has no state.

    Returns:
        A sentence that says what was done; empty if there were no such averages.

    Raises:
        StorageError: A file or the folder cannot be moved or removed.
    """
    later = [_file_of(run, stored) for stored in stored_steps(run) if stored > step]
    if not later:
        return ""
    try:
        if step == 0:
            target = run.abandon(run.averages)
            return (
                f"The averages of an earlier attempt are kept in {target}; impasto ema does not "
                f"use them. Delete that folder if you do not need it."
            )
        for file in later:
            file.unlink()
    except OSError as error:
        raise StorageError(
            f"{run.averages} has averages of steps that are trained again, which could not be "
            f"removed: {cause_of(error)}. Move them away and run the same command."
        ) from error
    return f"Removed {counted(len(later), 'files')} of averages of steps that are trained again."


def read_snapshots(run: RunDirectory, last: int) -> Mapping[Profile, Tensors]:
    """Return all averages that were stored up to a step, as lazily read differences from the start.

    Args:
        run: The run.
        last: The last step to include: that of the average which is going to be computed.

    Returns:
        Step and sigma_rel -> tensors by weight name.

    Raises:
        ModelError: A file is damaged.
        RunError: No averages were stored after step `last`, or two files have different weights.
    """
    found: dict[Profile, Tensors] = {}
    for step in stored_steps(run):
        if step <= last:
            tensors = open_tensor_file(_file_of(run, step)).tensors
            for sigma_rel in TRACKED:
                head = f"{sigma_rel:g}{SIGMA_REL}"
                own = {n.removeprefix(head): t for n, t in tensors.items() if n.startswith(head)}
                found[Profile(step, sigma_rel)] = own
    if Profile(last, TRACKED[0]) not in found:
        raise RunError(
            f"{run.averages} has no averages after {last} steps. A run with training.posthoc_ema "
            f"stores them at its end and every saving.posthoc_every_steps."
        )
    shapes = {p: {name: t.shape for name, t in tensors.items()} for p, tensors in found.items()}
    wanted = shapes[Profile(last, TRACKED[0])]
    odd = [profile.step for profile, of in shapes.items() if of != wanted] if wanted else [last]
    if odd:
        raise RunError(
            f"{_file_of(run, odd[0])} has other weights than the averages after {last} steps. "
            f"Move it away; the average is then computed from the other files."
        )
    return found


def _file_of(run: RunDirectory, step: int) -> Path:
    return run.averages / f"{step_name(step)}.safetensors"
