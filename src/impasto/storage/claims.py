"""Objects that only one process can create, and a store's clock, for locks across machines.

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
    """Put a small object into the store, whole.

    Raises:
        StorageError: The store cannot be used.
    """
    with told(location):
        filesystem_of(location).pipe_file(key_of(location), content)


def create(location: Path, content: bytes) -> bool:
    """Create a small object; return False if another one exists at the location.

    S3 and Google's store decide that atomically (`If-None-Match: *`, `ifGenerationMatch=0`). With
    stores without such a condition, two processes that create at the same moment may both get True.

    An answer may be lost on its way, and the libraries then try again and find the object from the
    first try. So after a refusal or an error the object is read, and counts as created if it has
    this content.

    Args:
        location: The object.
        content: Its content, which must be unique to the caller: with a random part.

    Raises:
        StorageError: The store cannot be used. The object may have been created all the same.
    """
    if look_up(location) is not None:
        return False
    try:
        filesystem_of(location).pipe_file(key_of(location), content, mode="create")
    except Exception as error:  # each store's library has its own exception classes
        names = names_of(error)
        if names & _KNOWS_NO_CONDITION:
            write(location, content)
        elif not _is_there(location, content):
            if names & _TAKEN:
                return False
            raise fault_of(error, location) from error
    return True


def _is_there(location: Path, content: bytes) -> bool:
    """Return whether an object has this content; False if it cannot be read."""
    try:
        return read(location) == content
    except (StorageError, OSError):
        return False


_OWN = os.urandom(4).hex()
_TAKEN = {"FileExistsError", "PreconditionFailed", "ConditionalRequestConflict", "412"}
_KNOWS_NO_CONDITION = {"NotImplemented", "NotImplementedError"}


def modified_at(location: Path) -> float | None:
    """Return when an object was written, in seconds since 1970 by the store's clock, or None.

    Raises:
        StorageError: The store cannot be used.
    """
    try:
        with told(location):
            return float(filesystem_of(location).modified(key_of(location)).timestamp())
    except FileNotFoundError:
        return None


def clock_of(folder: Path) -> float:
    """Return the time of a store's clock, in seconds since 1970.

    Raises:
        StorageError: No object can be written below the folder.
    """
    probe = folder / f".clock-{os.getpid()}-{_OWN}-{threading.get_native_id()}"
    write(probe, b"impasto")
    try:
        modified = modified_at(probe)
    finally:
        with contextlib.suppress(StorageError):  # permission to put may not include removing
            remove(probe)
    if modified is None:
        raise StorageError(f"{shown(folder)}: an object that was just written there is missing.")
    return modified
