"""Writes files durably: a reader finds the old content or the new, never half of either.

Each file is written beside its destination under a temporary name, flushed to the disk (fsync), and
renamed. Used by every layer that writes files.
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
"""Name of the folder in a dataset's folder for data derived from the dataset."""

_HASHED_AT_ONCE = 4 << 20
_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds between tries to rename on Windows


_KEEPS: ContextVar[bool] = ContextVar("keeps", default=True)


@contextlib.contextmanager
def dry_run() -> Iterator[None]:
    """Disable the writing of caches and the preparations for writing, within this context."""
    token = _KEEPS.set(False)
    try:
        yield
    finally:
        _KEEPS.reset(token)


@contextlib.contextmanager
def replace_file(path: Path, *, like: Path | None = None, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write; on success it becomes `path`, on any failure it is removed.

    A replaced file keeps its permissions, which the temporary file has from the start. A symbolic
    link is replaced by a file; `rewrite_file` writes to its target. A new file gets the permissions
    of `like`, or else those of the user's umask. A file that is rewritten every few seconds need
    not be `durable`: then it is not flushed explicitly.

    Raises:
        StorageError: The disk is full or the folder cannot be written; `path` is unchanged.
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
    """Yield a temporary path to write; on success it is renamed to `name_of(temporary path)`.

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
    """Replace a file of the user as `replace_file` does; of a symbolic link, replace its target.

    Callers that may meet another user's link must check `is_inside` first.

    Raises:
        StorageError: As for `replace_file`; or the links form a cycle.
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
    """Return whether a path is a folder or is below it, after all links are resolved."""
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
    """Replace a folder by another one; if that fails, restore the old one.

    No system can replace a folder with content atomically. If the process dies in between, the old
    folder has a temporary name, from which `remove_leftovers` restores it.
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
    """Remove a folder that Impasto made, atomically: other processes see all of it or nothing."""
    partial = partial_name(path)
    with contextlib.suppress(OSError):  # open files stay, under the old or a temporary name
        path.replace(partial)
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write UTF-8 text, durably by default, with Unix line ends on every system."""
    with replace_file(path, durable=durable) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def rewrite_text(path: Path, text: str) -> None:
    """Write UTF-8 text into a file of the user; permissions are kept and links are followed."""
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
    """Return whether caches, which only save time, may be written: not in a dry run."""
    return _KEEPS.get()


def write_cached_json(path: Path, value: Any) -> None:
    """Write JSON that only saves time in later runs; do nothing in a dry run."""
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
    """Append UTF-8 text to a file and pass it to the operating system at once.

    Raises:
        StorageError: The disk is full or the file cannot be written; its old content is kept.
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
    """Check that no file or folder exists at a path that is to be written.

    Raises:
        RunError: `target` exists.
    """
    if target.exists():
        raise RunError(f"{target} already exists; nothing was changed. Choose another name.")


def require_writable(folder: Path) -> None:
    """Check that files can be created in `folder`, creating it if needed; not in a dry run.

    Raises:
        StorageError: The folder cannot be created or written.
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
    """Flush a file to the disk, then set its permissions, which may be read-only."""
    _chmod(file, _FILE_MODE if mode is None else mode | stat.S_IWUSR | stat.S_IRUSR)
    if durable:
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
    if mode is not None:
        _chmod(file, mode)


def _chmod(file: Path, mode: int) -> None:
    """Set permissions; do nothing on a disk without any, such as a share of another user."""
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
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a disk that cannot flush folders
                raise
        finally:
            os.close(descriptor)
