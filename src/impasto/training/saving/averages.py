"""Averages of the weights as they were now and then, which others are made of after training.

`averages/step-00000500.safetensors` of a run directory has the tensors `0.05/unet.conv_in.bias`:
the sigma_rel of an average (`optim/posthoc.py`), the part, and the name of a weight that learns.
They are differences from the weights that the run began with, which `averages/start.safetensors`
has in float32 by the same names. Mixing takes large shares of both signs, so what rounding to 16
bits adds has to be a part of how far weights moved, which is far less than their size.
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
    """Tensors of an average by the names that they have in files."""
    return {f"{sigma_rel:g}{SIGMA_REL}{name}": tensor for name, tensor in tensors.items()}


def start_file(run: RunDirectory) -> Path:
    """The file of the weights that a run began with."""
    return run.averages / "start.safetensors"


def write_start(run: RunDirectory, tensors: Tensors) -> None:
    """Write the weights that a run begins with durably, by name of weight.

    Raises:
        ModelError: A value is not finite.
        StorageError: The disk is full or the folder cannot be written.
    """
    run.averages.mkdir(exist_ok=True)
    write_safetensors(start_file(run), tensors, {}, hashed=False)


def read_start(run: RunDirectory) -> Tensors:
    """The weights that a run began with, unread, by name of weight.

    Raises:
        ModelError: The file is missing or damaged.
    """
    return open_tensor_file(start_file(run)).tensors


def less(tensor: LazyTensor, start: LazyTensor) -> LazyTensor:
    """The difference of two tensors, in float32."""
    return LazyTensor(
        tensor.shape,
        torch.float32,
        lambda: tensor.read().to(torch.float32) - start.read(),
        owns_memory=True,
    )


def write_snapshot(run: RunDirectory, done: int, tensors: Tensors) -> None:
    """Write averages less the start after `done` steps, over what an earlier try at them left.

    Raises:
        ModelError: A value does not fit the type that it is stored in.
        StorageError: The disk is full or the folder cannot be written.
    """
    run.averages.mkdir(exist_ok=True)
    write_safetensors(_file_of(run, done), tensors, {"step": str(done)}, hashed=False)


def stored_steps(run: RunDirectory) -> list[int]:
    """The steps after which averages were stored, in order."""
    if not run.averages.is_dir():
        return []
    matches = (_NAME.fullmatch(file.name) for file in run.averages.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def clear_later(run: RunDirectory, step: int) -> str:
    """Keep averages of steps that a run does again, or for the first time, out of its own.

    After a state those that come later are removed, as metrics are: its settings agree with the
    run's, which makes them again. Where a run begins anew nothing tells what they are of, so the
    folder is renamed as a whole.

    Args:
        run: The run.
        step: What it goes on from; 0 where it has no state.

    Returns:
        What was done, in words; empty if nothing was to do.

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
            f"{run.averages} has averages of steps that are done again, which could not be "
            f"taken away: {cause_of(error)}. Move them away and run the same command."
        ) from error
    return f"Removed {counted(len(later), 'files')} of averages from steps that are done again."


def read_snapshots(run: RunDirectory, last: int) -> Mapping[Profile, Tensors]:
    """All averages less the start that were stored up to a step, unread, by name of weight.

    Args:
        run: The run.
        last: The step after which the average that is made shall be; averages after it belong to
            later steps.

    Raises:
        ModelError: A file is damaged.
        RunError: There are none, none of `last`, or two are not of the same weights.
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
            f"{run.averages} has no averages after {last} steps. They are stored by a run with "
            f"training.posthoc_ema, at its end and saving.posthoc_every_steps."
        )
    shapes = {p: {name: t.shape for name, t in tensors.items()} for p, tensors in found.items()}
    wanted = shapes[Profile(last, TRACKED[0])]
    odd = [profile.step for profile, of in shapes.items() if of != wanted] if wanted else [last]
    if odd:
        raise RunError(
            f"{_file_of(run, odd[0])} does not have the weights that those after {last} steps are "
            f"of. Move it away: the average is then made of the rest."
        )
    return found


def _file_of(run: RunDirectory, step: int) -> Path:
    return run.averages / f"{step_name(step)}.safetensors"
