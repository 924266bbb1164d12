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
import stat
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from impasto.errors import RunError
from impasto.progress import Advance
from impasto.remote_paths import require_local
from impasto.storage_errors import reported
from impasto.temporary_names import REPLACED_SUFFIX, partial_name

DERIVED_DIR = ".impasto"
"""The folder of what is derived from a dataset, in the dataset's own."""

_HASHED_AT_ONCE = 4 << 20
_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds between tries to rename on Windows


_KEEPS: ContextVar[bool] = ContextVar("keeps", default=True)


@contextlib.contextmanager
def dry_run() -> Iterator[None]:
    """Disable caches and preparations for writing within this context, for dry runs."""
    token = _KEEPS.set(False)
    try:
        yield
    finally:
        _KEEPS.reset(token)


@contextlib.contextmanager
def replace_file(path: Path, *, like: Path | None = None, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write; on success it becomes `path`, on any failure it is removed.

    A file that is replaced keeps its permissions, and nobody else can read the new content before.
    A link is replaced by a file; `rewrite_file` writes what it leads to. A new file gets the
    permissions of `like`, or else those that the user's umask gives. What is rewritten every few
    seconds need not be `durable`: then the system flushes it to the disk when it likes.

    Raises:
        StorageError: The disk is full or the folder cannot be written; `path` is as it was before.
    """
    require_local(path)
    partial = partial_name(path)
    with reported(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            mode = _mode_of(like or path)
            if mode is not None and _FILE_MODE & ~mode:
                partial.touch(mode)
            yield partial
            _flush(partial, mode, durable=durable)
            rename(partial, path)
            if durable:
                _flush_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_file(folder: Path, name_of: Callable[[Path], str]) -> Iterator[Path]:
    """Yield a temporary path to write; on success it is named by `name_of`, which may read it.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    require_local(folder)
    partial = partial_name(folder / "new")
    with reported(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield partial
            _flush(partial)
            rename(partial, folder / name_of(partial))
            _flush_folder(folder)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def rewrite_file(path: Path) -> Iterator[Path]:
    """Replace a file of the user as `replace_file` does; of a link, the file that it leads to.

    Callers that write where another user's link may lead must check `is_inside` first.

    Raises:
        StorageError: As for `replace_file`; or the link leads in a circle.
    """
    with reported(path):
        target = real_path(path) if path.is_symlink() else path
        if target.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    with replace_file(target) as partial:
        yield partial


def real_path(path: Path) -> Path:
    """Return a path with all links resolved; if links form a cycle, the path is not resolved."""
    return Path(os.path.realpath(path))


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is in a folder or below, after all links on the way."""
    return real_path(path).is_relative_to(real_path(folder))


@contextlib.contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder; on success it becomes `path`, on any failure it is removed.

    A folder already at `path` is replaced whole, and only after the new one is complete on disk.

    Raises:
        StorageError: As for `replace_file`.
    """
    require_local(path)
    partial = partial_name(path)
    with reported(path):
        try:
            partial.mkdir(parents=True)
            yield partial
            for file in sorted(p for p in partial.rglob("*") if p.is_file()):
                _flush(file)
            _flush_folder(partial)
            if path.is_dir():
                _exchange(partial, path)
            else:
                rename(partial, path)
            _flush_folder(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _exchange(new: Path, path: Path) -> None:
    """Put a folder in the place of another, which comes back if that fails.

    No system replaces a full folder at once. A process that dies in between leaves the old one
    under a name that `remove_leftovers` turns back.
    """
    outgoing = partial_name(path, REPLACED_SUFFIX)
    rename(path, outgoing)
    try:
        rename(new, path)
    except OSError:
        rename(outgoing, path)
        raise
    shutil.rmtree(outgoing, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder of Impasto's atomically: other processes see all of it or nothing."""
    partial = partial_name(path)
    with contextlib.suppress(OSError):  # what is held open stays, under its name
        path.replace(partial)
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write UTF-8 text, durably if not said otherwise, with Unix line ends on every system."""
    with replace_file(path, durable=durable) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def rewrite_text(path: Path, text: str) -> None:
    """Write UTF-8 text into a file of the user: permissions are kept, and links followed."""
    with rewrite_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file durably, with its permissions and times."""
    real = real_path(source)
    with replace_file(target, like=real) as partial:
        shutil.copyfile(real, partial)
    shutil.copystat(real, target)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write JSON, durably by default; keys keep their order, and non-ASCII is not escaped."""
    write_text(path, json_text(value, indent=1) + "\n", durable=durable)


def json_text(value: Any, indent: int | None = None) -> str:
    """Return JSON with unescaped non-ASCII characters, unless UTF-8 cannot encode them.

    File names that are not UTF-8 contain such characters.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def writes_caches() -> bool:
    """Whether what only makes the next time faster may be written: not within `dry_run`."""
    return _KEEPS.get()


def write_cached_json(path: Path, value: Any) -> None:
    """Write JSON that only makes the next time faster; nothing within `dry_run`."""
    if writes_caches():
        write_text(path, json_text(value))


def sha256_of(path: Path, advance: Advance | None = None) -> str:
    """Return the SHA-256 of a file in hexadecimal; `advance` is called with the bytes read."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size  # making 4 MiB takes longer than reading 4 KiB
        buffer = memoryview(bytearray(min(_HASHED_AT_ONCE, max(size, 4096))))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if advance is not None:
                advance(count)
    return digest.hexdigest()


def append_text(path: Path, text: str) -> None:
    """Add UTF-8 text to the end of a file and hand it to the operating system at once.

    Raises:
        StorageError: The disk is full or the file cannot be written; it ends where it ended before.
    """
    require_local(path)
    with reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            content = memoryview(text.encode("utf-8", errors="backslashreplace"))
            try:
                while content:
                    content = content[file.write(content) :]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(before)
                raise


def require_absent(target: Path) -> None:
    """Make sure that nothing is replaced.

    Raises:
        RunError: Something is already at `target`.
    """
    if target.exists():
        raise RunError(f"{target} already exists; nothing was changed. Choose another name.")


def require_writable(folder: Path) -> None:
    """Make sure that files can be created in `folder`, creating it first; not in a dry run.

    Raises:
        StorageError: It cannot be created or written.
    """
    require_local(folder)
    if not writes_caches():
        return
    probe = partial_name(folder / "probe")
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"impasto")
        finally:
            probe.unlink(missing_ok=True)


def rename(source: Path, target: Path) -> None:
    """Rename a file or folder; on Windows retry for a while, since open files cannot be renamed.

    Virus scanners and indexers open newly written files. A memory-mapped file stays open until its
    program closes it.
    """
    for pause in _PAUSES if os.name == "nt" else ():
        try:
            source.replace(target)
        except PermissionError:
            time.sleep(pause)
        else:
            return
    source.replace(target)


def _file_mode() -> int:
    """Return the permissions of new files by the user's umask; safetensors would use 0600."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


_FILE_MODE = _file_mode()


def _mode_of(path: Path) -> int | None:
    """Return the permissions of a file; None if it is missing or is a link."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return stat.S_IMODE(status.st_mode) & 0o777 if stat.S_ISREG(status.st_mode) else None


def _flush(file: Path, mode: int | None = None, *, durable: bool = True) -> None:
    """Write a file through to the disk; then give it its permissions, which may be read-only."""
    _chmod(file, _FILE_MODE if mode is None else mode | stat.S_IWUSR | stat.S_IRUSR)
    if durable:
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
    if mode is not None:
        _chmod(file, mode)


def _chmod(file: Path, mode: int) -> None:
    """Set permissions, where the disk has them: a share that another user has mounted has none."""
    try:
        file.chmod(mode)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP):
            raise


def _flush_folder(folder: Path) -> None:
    if os.name == "posix":  # Windows cannot open a folder, and needs no flush of one
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a disk that flushes no folders
                raise
        finally:
            os.close(descriptor)
