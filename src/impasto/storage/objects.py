"""Reads and writes objects of a store by their locations, through fsspec.

fsspec's filesystem objects are created per process, so that none is shared with a forked or spawned
process. Listings are never cached: another machine may have written since.

Library: https://filesystem-spec.readthedocs.io (fsspec), with s3fs for S3, gcsfs for Google's.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from impasto.errors import StorageError
from impasto.progress import Advance
from impasto.remote_paths import key_of, scheme_of, shown
from impasto.storage.faults import fault_of, names_of, told

_MADE: dict[tuple[int, str], Any] = {}
_MAKING = threading.Lock()
_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")
_OPTIONS: dict[str, dict[str, Any]] = {"s3": {"max_concurrency": 1}}
"""With a higher concurrency, s3fs requests the size of each object before it reads it."""

Range = tuple[Path, int, int]
"""An object, and the start and end of a part of it."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A listing's facts about an object.

    Attributes:
        size: Size in bytes.
        identity: 62-bit hash of its ETag or version, else of its modification time; used in place
            of a file's. Times differ in their fractions between a listing and a single request.
    """

    size: int
    identity: int


@dataclass(frozen=True, slots=True)
class FoundObjects:
    """The objects below a folder.

    Attributes:
        objects: Size and identity of each, by its key below the folder, with slashes.
        odd: Keys that no path can represent, since a part of them is empty, `.` or `..`.
    """

    objects: dict[str, Stored]
    odd: tuple[str, ...] = ()


def find(folder: Path) -> FoundObjects:
    """List all objects below a folder; empty if the folder does not exist.

    Raises:
        StorageError: The store cannot be used.
    """
    try:
        with told(folder):
            listed = filesystem_of(folder).find(key_of(folder), detail=True)
    except FileNotFoundError:
        listed = {}
    if not listed:
        _require_bucket(folder)
    prefix = key_of(folder).rstrip("/") + "/"
    objects, odd = {}, []
    for key, info in listed.items():
        plain = key.lstrip("/")
        if not plain.startswith(prefix) or plain.endswith(
            "/"
        ):  # the folder itself; a folder marker
            continue
        inner = plain[len(prefix) :]
        if is_plain_key(inner):
            objects[inner] = _stored(info)
        else:
            odd.append(inner)
    return FoundObjects(objects, tuple(odd))


def _require_bucket(folder: Path) -> None:
    """Check that the bucket exists, for stores whose listing does not show that.

    For an empty bucket that the credentials may not inspect, gcsfs also reports that it is missing,
    after a 403 (gcsfs/core.py, `_info`).

    Raises:
        StorageError: It does not exist.
    """
    if scheme_of(folder) != "gs":
        return
    bucket = key_of(folder).split("/")[0]
    try:
        filesystem_of(folder).info(bucket)
    except FileNotFoundError as error:
        if "Forbidden" not in names_of(error):
            raise StorageError(
                f"{shown(folder)}: there is no bucket {bucket}. Check its name."
            ) from error
    except Exception:  # some credentials may read objects but not inspect buckets
        return


def look_up(location: Path) -> Stored | None:
    """Return the store's facts about an object; None if it does not exist.

    Raises:
        StorageError: The store cannot be used.
    """
    try:
        with told(location):
            info = filesystem_of(location).info(key_of(location))
    except FileNotFoundError:
        return None
    return _stored(info) if info.get("type") == "file" else None


def read(location: Path, start: int = 0, end: int | None = None) -> bytes:
    """Read an object, or a part of it.

    Raises:
        OSError: It is missing, or was received incompletely.
        StorageError: The store cannot be used.
    """
    bounds = {} if start == 0 and end is None else {"start": start, "end": end}
    try:
        with told(location):
            return bytes(filesystem_of(location).cat_file(key_of(location), **bounds))
    except OSError as error:
        if _is_empty(error, start):
            return b""
        raise


def read_all(locations: Sequence[Path]) -> list[bytes | OSError]:
    """Read several objects at once, in the order of `locations`; the error for each that fails.

    Raises:
        StorageError: The store cannot be used.
    """
    return _at_once(locations, None)


def read_beginnings(locations: Sequence[Path], size: int) -> list[bytes | OSError]:
    """Read the first bytes of several objects, in order; the error for each that fails.

    Raises:
        StorageError: The store cannot be used.
    """
    return _at_once(locations, size)


def read_ranges(ranges: Sequence[Range]) -> list[bytes]:
    """Read parts of objects at once, in order; empty parts without a request.

    HTTP has no empty range, and S3 returns the whole object (RFC 9110, section 14.1.1).

    Raises:
        OSError: One is missing, or was received incompletely.
        StorageError: The store cannot be used.
    """
    wanted = [item for item in ranges if item[1] < item[2]]
    read = iter(_read_ranges(wanted) if wanted else ())
    return [next(read) if start < end else b"" for _, start, end in ranges]


def _read_ranges(ranges: Sequence[Range]) -> list[bytes]:
    first = ranges[0][0]
    with told(first):
        filesystem = filesystem_of(first)
        pieces = filesystem.cat_ranges(
            [key_of(location) for location, _, _ in ranges],
            [start for _, start, _ in ranges],
            [end for _, _, end in ranges],
            on_error="return",
        )
    for (location, start, end), piece in zip(ranges, pieces, strict=True):
        if isinstance(piece, BaseException):
            raise fault_of(piece, location) from piece
        if len(piece) != end - start:
            raise OSError(errno.EIO, f"gave {len(piece)} of {end - start} bytes", shown(location))
    return [bytes(piece) for piece in pieces]


def download(location: Path, file: Path, size: int) -> None:
    """Copy an object to a local file, flushed to the disk.

    Args:
        location: The object.
        file: Path to write to; an existing file is replaced.
        size: Size of the object in bytes.

    Raises:
        OSError: It is missing, or was received incompletely; or the disk is full.
        StorageError: The store cannot be used.
    """
    with file.open("wb") as out:
        for start in range(0, size, COPIED_AT_ONCE):
            end = min(size, start + COPIED_AT_ONCE)
            # one response is one version of an object; without bounds, a grown one is not cut
            got = read(location) if size <= COPIED_AT_ONCE else read(location, start, end)
            if len(got) != end - start:
                raise OSError(errno.EIO, f"gave {len(got)} of {end - start} bytes", shown(location))
            out.write(got)
        out.flush()
        os.fsync(out.fileno())


COPIED_AT_ONCE = 32 << 20
"""Bytes that are copied by one request. A larger object may be replaced between two requests."""


def upload(file: Path, location: Path, advance: Advance | None = None) -> Stored:
    """Put a local file into the store; it appears there whole or not at all.

    Args:
        file: The file.
        location: Target; an existing object is replaced.
        advance: Called with the number of bytes sent.

    Raises:
        OSError: The file cannot be read, or the store stored only a part.
        StorageError: The store cannot be used.
    """
    told_of = {} if advance is None else {"callback": _counting(advance)}
    with told(location):
        filesystem_of(location).put_file(str(file), key_of(location), **told_of)
    stored = look_up(location)
    size = file.stat().st_size
    if stored is None or stored.size != size:
        found = 0 if stored is None else stored.size
        raise OSError(errno.EIO, f"took {found} of {size} bytes", shown(location))
    return stored


def _counting(advance: Advance) -> Any:
    """Return a callback that passes fsspec's upload progress on as a number of bytes."""
    from fsspec.callbacks import Callback

    class Counting(Callback):  # type: ignore[misc,unused-ignore]
        def relative_update(self, inc: int = 1) -> None:
            advance(inc)

    return Counting()


def remove(location: Path) -> None:
    """Remove an object; it is no error if it does not exist.

    Raises:
        StorageError: The store cannot be used.
    """
    with contextlib.suppress(FileNotFoundError), told(location):
        filesystem_of(location).rm_file(key_of(location))


def require_writable(folder: Path) -> None:
    """Check that objects can be put below a folder, and removed again.

    Raises:
        StorageError: They cannot.
    """
    probe = folder / f".writable-{os.getpid()}-{os.urandom(4).hex()}"
    with told(folder):
        filesystem_of(folder).pipe_file(key_of(probe), b"impasto")
    remove(probe)


HEADER_BYTES = 1 << 16
"""Bytes read of an image to find its size: nearly all headers fit, with EXIF and profiles."""


def sha256_of_object(location: Path) -> str:
    """Return the SHA-256 of an object's bytes, in hexadecimal.

    Raises:
        OSError: It is missing, or was received incompletely.
        StorageError: The store cannot be used.
    """
    return hashlib.sha256(read(location)).hexdigest()


def is_plain_key(key: str) -> bool:
    """Return whether a path can represent a key: no part is empty, `.` or `..`."""
    return not any(name in {"", ".", ".."} for name in key.split("/"))


def _at_once(locations: Sequence[Path], size: int | None) -> list[bytes | OSError]:
    """Read the first `size` bytes of objects, or all if None; the error for each that fails.

    Uses `cat_ranges`, since `cat` treats keys as patterns.
    """
    if not locations:
        return []
    with told(locations[0]):
        pieces = filesystem_of(locations[0]).cat_ranges(
            [key_of(location) for location in locations],
            [None if size is None else 0] * len(locations),
            [size] * len(locations),
            on_error="return",
        )
    found: list[bytes | OSError] = []
    for location, piece in zip(locations, pieces, strict=True):
        if isinstance(piece, BaseException):
            fault = fault_of(piece, location)
            if not isinstance(fault, OSError):
                raise fault from piece
            found.append(b"" if _is_empty(fault, 0) else fault)
        else:
            found.append(bytes(piece))
    return found


def _is_empty(error: OSError, start: int) -> bool:
    """Return whether an error means that an object is empty, which S3 reports as a fault."""
    return error.errno == errno.ERANGE and start == 0


def _stored(info: Mapping[str, Any]) -> Stored:
    values = [info[name] for name in (*_VERSIONS, *_TIMES) if info.get(name) is not None]
    first = values[0] if values else ""
    stamp = first.timestamp() if isinstance(first, datetime) else first
    said = f"{stamp:.3f}" if isinstance(stamp, float) else str(stamp).strip('"')
    digest = hashlib.sha256(said.encode("utf-8")).digest()
    return Stored(int(info.get("size") or 0), int.from_bytes(digest[:8], "big") >> 2)


def filesystem_of(location: Path) -> Any:
    """Return this process's fsspec filesystem for a location."""
    name = (os.getpid(), scheme_of(location))
    with _MAKING:
        if name not in _MADE:
            import fsspec

            options = {"use_listings_cache": False, **_OPTIONS.get(name[1], {})}
            _MADE[name] = fsspec.filesystem(name[1], skip_instance_cache=True, **options)
        return _MADE[name]
