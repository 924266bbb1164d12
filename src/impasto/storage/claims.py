"""Objects that only one may put, and the clock of a store: what locks between machines need.

Conditional writes: "Conditional writes" in the S3 User Guide (`If-None-Match`), and "Request
preconditions" in Google Cloud Storage's documentation (`ifGenerationMatch`).
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from impasto.errors import StorageError
from impasto.remote_paths import key_of, shown
from impasto.storage.faults import fault_of, names_of, told
from impasto.storage.objects import filesystem_of, look_up, read, remove


def write(location: Path, content: bytes) -> None:
    """Put a few bytes into the store, whole.

    Raises:
        StorageError: The store cannot be used.
    """
    with told(location):
        filesystem_of(location).pipe_file(key_of(location), content)


def create(location: Path, content: bytes) -> bool:
    """Put a few bytes where nothing is yet; False where something else is.

    S3 and Google's store decide that themselves (`If-None-Match: *`, `ifGenerationMatch=0`). Of
    those that know no such condition, two that ask at the same moment may both be told True.

    An answer may be lost on its way, and the libraries then ask again, which meets what was put the
    first time. So what is there after a refusal or an error is read, and counts if it is this.

    Args:
        location: The object.
        content: Its bytes, which nobody else may put: with a random part.

    Raises:
        StorageError: The store cannot be used. It may have put the object all the same.
    """
    if look_up(location) is not None:
        return False
    try:
        filesystem_of(location).pipe_file(key_of(location), content, mode="create")
    except Exception as error:  # each store's library raises classes of its own
        names = names_of(error)
        if names & _KNOWS_NO_CONDITION:
            write(location, content)
        elif not _is_there(location, content):
            if names & _TAKEN:
                return False
            raise fault_of(error, location) from error
    return True


def _is_there(location: Path, content: bytes) -> bool:
    """Whether an object has this content, as far as the store says."""
    try:
        return read(location) == content
    except (StorageError, OSError):
        return False


_OWN = os.urandom(4).hex()
_TAKEN = {"FileExistsError", "PreconditionFailed", "ConditionalRequestConflict", "412"}
_KNOWS_NO_CONDITION = {"NotImplemented", "NotImplementedError"}


def modified_at(location: Path) -> float | None:
    """When an object was put, in seconds since 1970 by the store's clock; None without one.

    Raises:
        StorageError: The store cannot be used.
    """
    try:
        with told(location):
            return float(filesystem_of(location).modified(key_of(location)).timestamp())
    except FileNotFoundError:
        return None


def clock_of(folder: Path) -> float:
    """What the clock of a store says, in seconds since 1970.

    Raises:
        StorageError: Nothing can be put below the folder.
    """
    probe = folder / f".clock-{os.getpid()}-{_OWN}-{threading.get_native_id()}"
    write(probe, b"impasto")
    try:
        modified = modified_at(probe)
    finally:
        with contextlib.suppress(StorageError):  # who may put may not be allowed to remove
            remove(probe)
    if modified is None:
        raise StorageError(f"{shown(folder)}: what was just put there is missing.")
    return modified
