"""Messages for failed writes and reads: the disk is full, one file is at fault, or neither."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from impasto.errors import StorageError
from impasto.remote_paths import shown

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ONE_FILE = {errno.ENAMETOOLONG, errno.EACCES, errno.EISDIR, errno.EINVAL, errno.EPERM}
_NO_SPACE_TEXT = ("No space left", "Disk quota", "File too large", "not enough space")


def is_out_of_space(error: BaseException) -> bool:
    """Return whether an error, of Python or of safetensors' Rust code, means a full disk."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _NO_SPACE
    return any(text in str(error) for text in _NO_SPACE_TEXT)


def is_file_specific(error: BaseException) -> bool:
    """Return whether a failed write concerns only one file, so that others may still be written."""
    cause = error.__cause__ if isinstance(error, StorageError) else error
    return isinstance(cause, OSError) and cause.errno in _ONE_FILE


def cause_of(error: BaseException) -> str:
    """Return the operating system's short reason for a failed write."""
    cause = error.__cause__ if isinstance(error, StorageError) else error
    return cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)


@contextlib.contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn a failed write of `path` into a StorageError; other errors are not changed."""
    try:
        yield
    except OSError as error:
        raise storage_error(path, error) from error
    except (SafetensorError, RuntimeError) as error:  # a full disk under Rust's and torch's writers
        if is_out_of_space(error):
            raise storage_error(path, error) from error
        raise


@contextlib.contextmanager
def read_reported(path: Path) -> Iterator[None]:
    """Turn a failed read of `path` into a StorageError; other errors are not changed."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{shown(path)} could not be read: {cause_of(error)}. Check that it exists and that "
            f"you may read it, and run the same command again."
        ) from error


def storage_error(path: Path, error: BaseException) -> StorageError:
    """Return the error for a failed write of `path`, with the operating system's reason."""
    cause, where = cause_of(error), shown(path)
    if is_out_of_space(error):
        return StorageError(
            f"The disk is full: {where} could not be written ({cause}). Existing files are "
            f"unchanged. Free some space, or choose another folder, and run the same command again."
        )
    if os.name == "nt" and isinstance(error, PermissionError):
        return StorageError(
            f"{where} could not be written: {cause}. On Windows, what another program has open "
            f"cannot be replaced. Close the program that uses it (another run, a web UI that has "
            f"the model loaded, a preview), or check that it is not read-only, and run the same "
            f"command again. Existing files are unchanged."
        )
    return StorageError(
        f"{where} could not be written: {cause}. Check that the folder exists, is not read-only "
        f"and belongs to you, or choose another folder."
    )
