"""The devices on which a queue is processed: their names, their locks, and requests to stop.

A device is named as in `CUDA_VISIBLE_DEVICES`. The process that trains on it holds the lock
`.device-NAME.lock` in the queue's folder, so there is one job at a time, and other programs see
whether that process is alive.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from impasto import files, locks
from impasto.errors import RunError
from impasto.lock_file import LockHolder

VISIBLE = "CUDA_VISIBLE_DEVICES"

_LOCK = re.compile(r"\.device-([\w-]+)\.lock", re.ASCII)
_MOST = 1024  # more GPUs than any machine has


def device_name(number: int, environment: Mapping[str, str] = os.environ) -> str:
    """Return CUDA's name of a GPU, counted from 0 among those that this process may use.

    Raises:
        RunError: `CUDA_VISIBLE_DEVICES` names fewer.
    """
    visible = [name.strip() for name in environment.get(VISIBLE, "").split(",") if name.strip()]
    if not visible:
        return str(number)
    if number >= len(visible):
        raise RunError(
            f"There is no device {number}: {VISIBLE} is {environment[VISIBLE]!r}, which names "
            f"{len(visible)}, and they are counted from 0."
        )
    return visible[number]


def lock_name(device: str) -> str:
    """Return the name of a device's lock file in the queue's folder."""
    return f".device-{plain_name(device)}.lock"


def runners_of(folder: Path) -> dict[str, LockHolder]:
    """Return the living processes that work on a queue, by the plain names of their devices."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}
    found = {}
    for name in names:
        match = _LOCK.fullmatch(name)
        holder = locks.lock_holder(folder, name) if match else None
        if match and holder is not None:
            found[match[1]] = holder
    return found


def runner_of(folder: Path, device: str) -> LockHolder | None:
    """Return the living process that works on a device; None if there is none."""
    return locks.lock_holder(folder, lock_name(device))


def ask_runner_to_stop(folder: Path, device: str) -> None:
    """Tell the process that works on a device to save and end, by a file, which Windows allows too.

    Raises:
        RunError: No process works on it.
        StorageError: It cannot be written.
    """
    holder = runner_of(folder, device)
    if holder is None or holder.owner is None:
        raise RunError(
            f"No process runs the queue on device {device}, so there is nothing to stop."
        )
    files.write_text(_stop_file(folder, device), holder.owner.token)


def is_asked_to_stop(folder: Path, device: str, token: str) -> bool:
    """Return whether the process with a token, which works on a device, was told to stop."""
    try:
        return _stop_file(folder, device).read_text(encoding="utf-8") == token
    except (OSError, ValueError):
        return False


def forget_stop(folder: Path, device: str) -> None:
    """Remove the request to stop, once it has been carried out."""
    with contextlib.suppress(OSError):
        _stop_file(folder, device).unlink()


def is_device_number(number: int) -> bool:
    """Return whether a machine could have a device of this number."""
    return 0 <= number < _MOST


def _stop_file(folder: Path, device: str) -> Path:
    return folder / f".device-{plain_name(device)}.stop"


def plain_name(device: str) -> str:
    """Return the name of a device in file names and URLs."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", device)
