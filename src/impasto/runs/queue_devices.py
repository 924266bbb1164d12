"""The devices that a queue is worked off on: their names, their locks, who is asked to stop.

A device goes by what `CUDA_VISIBLE_DEVICES` calls it. Whoever works on it holds the lock
`.device-NAME.lock` of the queue's folder, so there is one job at a time, and other programs see
whether it lives.
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
    """What CUDA calls a GPU, counted from 0 among those that this process may use.

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
    """The lock file of a device, in the queue's folder."""
    return f".device-{plain_name(device)}.lock"


def runners_of(folder: Path) -> dict[str, LockHolder]:
    """The living processes that work a queue off, by the plain names of their devices."""
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
    """The living process that works on a device, if there is one."""
    return locks.lock_holder(folder, lock_name(device))


def ask_runner_to_stop(folder: Path, device: str) -> None:
    """Ask whoever works on a device to save and to end; a file, which serves on Windows too.

    Raises:
        RunError: No process works on it.
        StorageError: It cannot be written.
    """
    holder = runner_of(folder, device)
    if holder is None or holder.owner is None:
        raise RunError(f"No process works on device {device} now, so there is nothing to stop.")
    files.write_text(_stop_file(folder, device), holder.owner.token)


def is_asked_to_stop(folder: Path, device: str, token: str) -> bool:
    """Whether the process of a token, which works on a device, was asked to stop."""
    try:
        return _stop_file(folder, device).read_text(encoding="utf-8") == token
    except (OSError, ValueError):
        return False


def forget_stop(folder: Path, device: str) -> None:
    """Remove what asked to stop, once that is done."""
    with contextlib.suppress(OSError):
        _stop_file(folder, device).unlink()


def is_device_number(number: int) -> bool:
    """Whether a machine could have a device of this number."""
    return 0 <= number < _MOST


def _stop_file(folder: Path, device: str) -> Path:
    return folder / f".device-{plain_name(device)}.stop"


def plain_name(device: str) -> str:
    """What a device is called in names of files and in addresses."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", device)
