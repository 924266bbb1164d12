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
from impasto.errors import RunError
from impasto.runs import RunDirectory, step_name
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


def read_snapshots(run: RunDirectory, last: int) -> Mapping[Profile, Tensors]:
    """All averages less the start that were stored up to a step, unread, by name of weight.

    Args:
        run: The run.
        last: The step after which the average that is made shall be; averages after it belong to
            later steps, or to steps that were lost and done again.

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
    first = next(iter(shapes.values()))
    odd = [profile.step for profile, of in shapes.items() if of != first or not of]
    if odd:
        raise RunError(
            f"{_file_of(run, odd[0])} does not have the weights of the others. Move it away: the "
            f"average is then made of the rest."
        )
    return found


def _file_of(run: RunDirectory, step: int) -> Path:
    return run.averages / f"{step_name(step)}.safetensors"
