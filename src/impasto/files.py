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
import re
import secrets
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from impasto.errors import RunError, StorageError
from impasto.owners import TOKEN_PATTERN, current_process, parse_process_token
from impasto.progress import Advance

PARTIAL_SUFFIX = ".partial"
REPLACED_SUFFIX = ".replaced"
"""Of a folder's temporary name while another takes its place."""
DERIVED_DIR = ".impasto"
"""The folder of what is derived from a dataset, in the dataset's own."""

_OWNED = re.compile(
    rf"\.(?P<name>.+)\.(?P<owner>{TOKEN_PATTERN})\.[0-9a-f]{{8}}"
    rf"(?P<end>{re.escape(PARTIAL_SUFFIX)}|{re.escape(REPLACED_SUFFIX)})"
)
_LEFT_AFTER_S = 24 * 3600.0  # untouched for so long, a file of another machine is left over
_DATED = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}", re.ASCII)
LONGEST_NAME = 255  # bytes of a file name on Linux and macOS; Windows counts letters
_HASHED_AT_ONCE = 4 << 20
_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds between tries to rename on Windows
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ONE_FILE = {errno.ENAMETOOLONG, errno.EACCES, errno.EISDIR, errno.EINVAL, errno.EPERM}
_NO_SPACE_TEXT = ("No space left", "Disk quota", "File too large", "not enough space")


_KEEPS: ContextVar[bool] = ContextVar("keeps", default=True)


@contextlib.contextmanager
def dry_run() -> Iterator[None]:
    """Within this, nothing is remembered or made ready for writing: for dry runs, which look."""
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
    partial = partial_name(path)
    with reported(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            mode = _mode_of(like or path)
            if mode is not None and _FILE_MODE & ~mode:
                partial.touch(mode)
            yield partial
            _flush(partial, mode, durable=durable)
            _rename(partial, path)
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
    partial = partial_name(folder / "new")
    with reported(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield partial
            _flush(partial)
            _rename(partial, folder / name_of(partial))
            _flush_folder(folder)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def rewrite_file(path: Path) -> Iterator[Path]:
    """As `replace_file`, for a file of the user: a link stays, and what it leads to is replaced.

    Whoever writes where a link of somebody else may lead has to look first (`is_inside`).

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
    """A path after all links on the way; of links in a circle the path as it is."""
    return Path(os.path.realpath(path))


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is in a folder or below, after all links on the way."""
    return real_path(path).is_relative_to(real_path(folder))


def why_not_written(path: Path, folders: Sequence[Path]) -> str:
    """Why a file is not written that a stranger may have laid out; empty where it may be.

    Args:
        path: The file, there or not.
        folders: Where it may be: a link that leads out of all of them is not followed.
    """
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        return f"the name {path.name} has over {LONGEST_NAME} bytes, which no file system takes"
    if not any(is_inside(path, folder) for folder in folders):
        what = "a link that leads" if path.is_symlink() else "lies"
        return f"{path.name}: {what} out of the dataset; nothing is written there"
    if os.path.lexists(path) and not path.is_file() and path.exists():
        return f"{path.name} is there and not a file"
    if path.exists() and not os.access(path, os.R_OK):
        return f"{path.name} cannot be read: it belongs to somebody else"
    real = real_path(path)
    if real.parent.is_dir() and not os.access(real.parent, os.W_OK):
        return f"{path.name} cannot be written: its folder is read-only, or somebody else's"
    return ""


@contextlib.contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder; on success it becomes `path`, on any failure it is removed.

    A folder already at `path` is replaced whole, and only after the new one is complete on disk.

    Raises:
        StorageError: As for `replace_file`.
    """
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
                _rename(partial, path)
            _flush_folder(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _exchange(new: Path, path: Path) -> None:
    """Put a folder in the place of another, which comes back if that fails.

    No system replaces a full folder at once. A process that dies in between leaves the old one
    under a name that `remove_leftovers` turns back.
    """
    outgoing = partial_name(path, REPLACED_SUFFIX)
    _rename(path, outgoing)
    try:
        _rename(new, path)
    except OSError:
        _rename(outgoing, path)
        raise
    shutil.rmtree(outgoing, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder of ours: all of it or, for whoever looks meanwhile, nothing of it."""
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
    """Write JSON, durably if not said otherwise; keys in the order given, non-ASCII as it is."""
    write_text(path, json_text(value, indent=1) + "\n", durable=durable)


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON with non-ASCII characters as they are, escaped where UTF-8 cannot hold them.

    Names of files that are not UTF-8 come with such characters.
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
    """The SHA-256 of a file's bytes, in hexadecimal; `advance` is told the number of bytes read."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size  # making 4 MiB takes longer than reading 4 KiB
        buffer = memoryview(bytearray(min(_HASHED_AT_ONCE, max(size, 4096))))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if advance is not None:
                advance(count)
    return digest.hexdigest()


def remove_leftovers(folder: Path) -> int:
    """Remove what a killed process left under a temporary name in `folder`; return how many.

    A temporary file has its process in its name; others, of other programs, are left alone. So is
    one of a process that runs, and one of another machine (on a network disk) that was touched
    within a day. A folder that was about to be replaced, and was not, gets its name back.
    """
    leftovers = [path for path in partial_files_in(folder) if is_stale_partial(path)]
    for leftover in leftovers:
        match = _OWNED.fullmatch(leftover.name)
        path = folder / match["name"] if match else leftover
        if leftover.name.endswith(REPLACED_SUFFIX) and not os.path.lexists(path):
            leftover.replace(path)
        elif leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    return len(leftovers)


def partial_files_in(folder: Path) -> list[Path]:
    """What lies in a folder under a temporary name of ours, of processes that run or not."""
    try:
        return sorted(path for path in folder.glob(".*") if _OWNED.fullmatch(path.name))
    except OSError:
        return []


def is_stale_partial(partial: Path) -> bool:
    """Whether the process that was writing a temporary file or folder is gone."""
    match = _OWNED.fullmatch(partial.name)
    owner = parse_process_token(match["owner"]) if match else None
    if owner is None:
        return False
    running = owner.is_running()
    if running is None:
        return time.time() - _modified_at(partial) > _LEFT_AFTER_S
    return not running


def append_text(path: Path, text: str) -> None:
    """Add UTF-8 text to the end of a file and hand it to the operating system at once.

    Raises:
        StorageError: The disk is full or the file cannot be written; it ends where it ended before.
    """
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
        raise RunError(f"{target} is already there; nothing was changed. Choose another name.")


def require_writable(folder: Path) -> None:
    """Make sure that files can be created in `folder`, creating it first; not in a dry run.

    Raises:
        StorageError: It cannot be created or written.
    """
    if not writes_caches():
        return
    probe = partial_name(folder / "probe")
    with reported(folder):
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


def is_file_specific(error: BaseException) -> bool:
    """Whether a failed write has to do with one file, so that others may still be written."""
    cause = error.__cause__ if isinstance(error, StorageError) else error
    return isinstance(cause, OSError) and cause.errno in _ONE_FILE


def cause_of(error: BaseException) -> str:
    """What the system said of a failed write, in a few words."""
    cause = error.__cause__ if isinstance(error, StorageError) else error
    return cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)


def shortened(name: str, most: int) -> str:
    """The beginning of a name, of at most so many bytes, without a character cut in two."""
    while len(os.fsencode(name)) > most:
        name = name[:-1]
    return name


def partial_name(path: Path, suffix: str = PARTIAL_SUFFIX) -> Path:
    """A new temporary name beside `path`, with this process in it, which `remove_leftovers` knows.

    Long names are cut, so that the temporary one is no longer than file systems allow.
    """
    end = f".{current_process().token}.{uuid.uuid4().hex[:8]}{suffix}"
    return path.with_name(f".{shortened(path.name, LONGEST_NAME - 1 - len(end))}{end}")


def dated_name() -> str:
    """A new name for a directory, in the order of time: the moment, and what makes it unique."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def is_dated_name(name: str) -> bool:
    """Whether a name is one of `dated_name`."""
    return _DATED.fullmatch(name) is not None


def _modified_at(path: Path) -> float:
    """When a file, or anything in a folder, was changed last; now where that cannot be seen."""
    try:
        inside = list(path.rglob("*")) if path.is_dir() else []
        return max(item.lstat().st_mtime for item in (path, *inside))
    except OSError:
        return time.time()


@contextlib.contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn a failed write of `path` into a StorageError; let everything else through."""
    try:
        yield
    except OSError as error:
        raise _storage_error(path, error) from error
    except SafetensorError as error:  # its Rust side reports a full disk as this
        if is_out_of_space(error):
            raise _storage_error(path, error) from error
        raise


def _rename(source: Path, target: Path) -> None:
    """Rename; on Windows again for a while, since nobody may have the file open there.

    Virus scanners and indexers open what was just written. A file that is mapped into memory stays
    open until its program closes it.
    """
    for pause in _PAUSES if os.name == "nt" else ():
        try:
            source.replace(target)
        except PermissionError:
            time.sleep(pause)
        else:
            return
    source.replace(target)


def _storage_error(path: Path, error: BaseException) -> StorageError:
    cause = cause_of(error)
    if is_out_of_space(error):
        return StorageError(
            f"The disk is full: {path} could not be written ({cause}). What was there before is "
            f"untouched. Free some space, or choose another place, and run the same command again."
        )
    if os.name == "nt" and isinstance(error, PermissionError):
        return StorageError(
            f"{path} could not be written: {cause}. On Windows, what another program has open "
            f"cannot be replaced. Close what uses it (another run, a web UI that has the model "
            f"loaded, a preview), or check that it is not read-only, and run the same command "
            f"again. What was there before is untouched."
        )
    return StorageError(
        f"{path} could not be written: {cause}. Check that the folder exists, is not read-only "
        f"and belongs to you, or choose another place."
    )


def _file_mode() -> int:
    """What a new file's permissions are by the user's umask; safetensors gives its own 0600."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


_FILE_MODE = _file_mode()


def _mode_of(path: Path) -> int | None:
    """The permissions of a file that is there; None where there is none, or a link."""
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
