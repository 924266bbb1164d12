"""Durable writing: a reader finds the old content or the new, never half of either.

Everything is written beside its destination under a temporary name, flushed to the disk (fsync),
and renamed. Used by every layer that leaves something on disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from impasto.errors import StorageError
from impasto.progress import Advance

PARTIAL_SUFFIX = ".partial"
_HASHED_AT_ONCE = 4 << 20
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_SPACE_TEXT = ("No space left", "Disk quota", "File too large", "not enough space")


_KEEPS: ContextVar[bool] = ContextVar("keeps", default=True)


@contextlib.contextmanager
def nothing_kept() -> Iterator[None]:
    """Within this, nothing is remembered or made ready for writing: for dry runs, which look."""
    token = _KEEPS.set(False)
    try:
        yield
    finally:
        _KEEPS.reset(token)


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; on success it becomes `path`, on any failure it is removed.

    Raises:
        StorageError: The disk is full or the folder cannot be written; `path` is as it was before.
    """
    partial = _partial_name(path)
    with _reported(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _flush(partial)
            partial.replace(path)
            _flush_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder; on success it becomes `path`, on any failure it is removed.

    A folder already at `path` is replaced whole, and only after the new one is complete on disk.

    Raises:
        StorageError: As for `replace_file`.
    """
    partial = _partial_name(path)
    with _reported(path):
        try:
            partial.mkdir(parents=True)
            yield partial
            for file in sorted(p for p in partial.rglob("*") if p.is_file()):
                _flush(file)
            _flush_folder(partial)
            if path.exists():
                outgoing = _partial_name(path)
                path.replace(outgoing)
                partial.replace(path)
                shutil.rmtree(outgoing, ignore_errors=True)
            else:
                partial.replace(path)
            _flush_folder(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text durably, with Unix line ends on every system."""
    with replace_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write JSON durably, keys in the order given, non-ASCII as it is."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def remember_json(path: Path, value: Any) -> None:
    """Write JSON that only makes the next time faster; nothing within `nothing_kept`."""
    if _KEEPS.get():
        write_text(path, json.dumps(value, ensure_ascii=False))


def sha256_of(path: Path, advance: Advance | None = None) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; `advance` is told the number of bytes read."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_HASHED_AT_ONCE))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if advance is not None:
                advance(count)
    return digest.hexdigest()


def remove_leftovers(folder: Path) -> int:
    """Remove what a killed process left under a temporary name in `folder`; return how many."""
    leftovers = list(folder.glob(f".*{PARTIAL_SUFFIX}")) if folder.is_dir() else []
    for leftover in leftovers:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    return len(leftovers)


def require_writable(folder: Path) -> None:
    """Make sure that files can be created in `folder`, creating it first; not in a dry run.

    Raises:
        StorageError: It cannot be created or written.
    """
    if not _KEEPS.get():
        return
    probe = folder / f".{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
    with _reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"impasto")
        finally:
            probe.unlink(missing_ok=True)


def is_out_of_space(error: BaseException) -> bool:
    """Whether an error, from Python or from safetensors' Rust side, says that the disk is full."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _NO_SPACE
    return any(words in str(error) for words in _NO_SPACE_TEXT)


def _partial_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}")


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn a failed write into a StorageError; let everything else through."""
    try:
        yield
    except OSError as error:
        raise _storage_error(path, error) from error
    except SafetensorError as error:  # its Rust side reports a full disk as this
        if is_out_of_space(error):
            raise _storage_error(path, error) from error
        raise


def _storage_error(path: Path, error: BaseException) -> StorageError:
    if is_out_of_space(error):
        return StorageError(
            f"The disk is full: {path} could not be written ({error}). What was there before is "
            f"untouched. Free some space, or choose another place, and run the same command again."
        )
    return StorageError(
        f"{path} could not be written: {error}. Check that the folder exists, is not read-only "
        f"and belongs to you, or choose another place."
    )


def _file_mode() -> int:
    """What a new file's permissions are by the user's umask; safetensors gives its own 0600."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


_FILE_MODE = _file_mode()


def _flush(file: Path) -> None:
    file.chmod(_FILE_MODE)
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name == "posix":  # Windows cannot open a folder, and needs no flush of one
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
