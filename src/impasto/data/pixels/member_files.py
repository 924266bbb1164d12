"""Reads files inside tars, and values of tables, by their paths (`member_paths.py`)."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from functools import partial
from typing import IO, cast

from impasto.data.containers.containers import CAPTION_NAMES
from impasto.data.pixels.images import UnreadableImageError
from impasto.member_paths import Member, TableCell, TarMember, member_of
from impasto.parsing import parse_json
from impasto.remote_paths import is_remote
from impasto.storage import objects
from impasto.storage.object_file import ObjectFile
from impasto.storage.ranged_file import RangedFile

_AT_ONCE = 4 << 20


def open_member(
    member: Member, *, whole: bool = False, beginning: bytes | None = None
) -> IO[bytes]:
    """Open a file inside a tar, or a row's image, as a file.

    Args:
        member: The file or row.
        whole: Whether all of it will be read: it is then read from an object store in one piece.
        beginning: Its first bytes, if already read from an object store.

    Raises:
        OSError: It cannot be read.
        UnreadableImageError: It is a row without an image.
        StorageError: It is in an object store that cannot be used.
    """
    if isinstance(member, TableCell):
        return io.BytesIO(_image_of(member))
    if not is_remote(member.container):
        return io.BufferedReader(_as_file(member.container.open("rb", buffering=0), member))
    if whole:
        return io.BytesIO(read_member(member))
    first = read_member(member, objects.HEADER_BYTES) if beginning is None else beginning
    later = partial(read_member, member)
    return cast("IO[bytes]", ObjectFile(member.container, first, later))  # has the methods used


def read_member(member: Member, most: int | None = None) -> bytes:
    """Read a file inside a tar, or a row's image: all bytes, or the first `most`.

    Raises:
        OSError: As for `open_member`.
        UnreadableImageError: As for `open_member`.
        StorageError: As for `open_member`.
    """
    if isinstance(member, TableCell):
        content = _image_of(member)
        return content if most is None else content[:most]
    size = member.size if most is None else min(member.size, most)
    if is_remote(member.container):
        return _ranges([(member, size)])[0]
    with member.container.open("rb", buffering=0) as file:
        opened = _as_file(file, member)
        return opened.readall() if most is None else opened.read(size)


def read_caption(path: str, most: int) -> bytes:
    """Read the caption that a path names, as UTF-8 bytes; of a tar member, at most `most` bytes.

    Raises:
        OSError: The caption cannot be read.
        UnreadableImageError: JSON is malformed, or has no text in the requested field.
        StorageError: The caption is in an object store that cannot be used.
    """
    member = member_of(path)
    if isinstance(member, TableCell):
        return _as_bytes(_value(member))
    if member is None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    return _caption_of(member, read_member(member, most), most)


def read_beginnings(members: Sequence[TarMember], size: int) -> dict[TarMember, bytes | OSError]:
    """Read the first bytes of files in tars of an object store, in concurrent requests.

    Returns:
        Each file -> its first bytes, or the error that prevented reading it.

    Raises:
        StorageError: The store cannot be used.
    """
    ranges = [(member, min(member.size, size)) for member in members]
    try:
        return dict(zip(members, _ranges(ranges), strict=True))
    except OSError:  # of one of them; the others can be read
        return {member: _range_or_fault(member, size) for member, size in ranges}


def _range_or_fault(member: TarMember, size: int) -> bytes | OSError:
    try:
        return _ranges([(member, size)])[0]
    except OSError as error:
        return error


def read_many_captions(paths: Iterable[str], most: int) -> dict[str, bytes | Exception]:
    """Read the captions that paths in an object store name, in concurrent requests.

    Returns:
        Each path -> its caption, or the error that prevented reading it.

    Raises:
        StorageError: The store cannot be used.
    """
    named = {path: member_of(path) for path in paths}
    in_tars = [member for member in named.values() if isinstance(member, TarMember)]
    read = read_beginnings(in_tars, most)
    found: dict[str, bytes | Exception] = {}
    for path, member in named.items():
        try:
            if isinstance(member, TarMember):
                content = read[member]
                if isinstance(content, OSError):
                    raise content
                found[path] = _caption_of(member, content, most)
            else:
                found[path] = read_caption(path, most)
        except (OSError, UnreadableImageError) as error:
            found[path] = error
    return found


def sha256_of_member(member: Member) -> str:
    """Return the SHA-256 of a file in a tar, or of a row's image; equal to that of a plain file.

    Raises:
        OSError: It cannot be read.
        StorageError: It is in an object store that cannot be used.
    """
    digest = hashlib.sha256()
    try:
        with open_member(member, whole=True) as file:
            while chunk := file.read(_AT_ONCE):
                digest.update(chunk)
    except UnreadableImageError as error:
        raise OSError(errno.EINVAL, str(error)) from error
    return digest.hexdigest()


def _as_file(tar: IO[bytes] | io.RawIOBase, member: TarMember) -> RangedFile:
    """Return the bytes of a tar member as a file; closing it closes the tar."""

    def read_range(begin: int, end: int) -> bytes:
        tar.seek(member.offset + begin)
        chunk = tar.read(end - begin)
        if not chunk:
            raise OSError(errno.EIO, f"the tar ends before byte {member.offset + member.size}")
        return chunk

    return RangedFile(read_range, member.size, on_close=tar.close)


def _ranges(ranges: list[tuple[TarMember, int]]) -> list[bytes]:
    return objects.read_ranges(
        [(member.container, member.offset, member.offset + size) for member, size in ranges]
    )


def _value(cell: TableCell) -> object:
    from impasto.data.columns.table_rows import (
        read_cell,  # imports Parquet, which only tables need
    )

    return read_cell(cell)


def _image_of(cell: TableCell) -> bytes:
    """Return the bytes of a row's image.

    Raises:
        UnreadableImageError: The row has no image.
    """
    value = _value(cell)
    if isinstance(value, dict):
        content = value.get("bytes")
        if content is None and value.get("path"):
            raise UnreadableImageError(
                f"its row has a path and no bytes ({value['path']}), unlike other rows of its table"
            )
        value = content
    if isinstance(value, bytes):
        return value
    raise UnreadableImageError("its row has no image")


def _caption_of(member: TarMember, content: bytes, most: int) -> bytes:
    return content if member.field is None else _of_json(member, content, most)


def _of_json(member: TarMember, content: bytes, most: int) -> bytes:
    """Return the caption in a sample's JSON.

    Raises:
        UnreadableImageError: The JSON is malformed, or has another value in place of a caption.
    """
    if len(content) >= most:
        return content  # too large for a caption, which the caller reports
    try:
        values = parse_json(content)
    except ValueError as error:
        raise UnreadableImageError(f"its caption {member.name} is not valid JSON") from error
    if not isinstance(values, dict):
        raise UnreadableImageError(f"its caption {member.name} is not a JSON object")
    if member.field:
        if member.field not in values:
            known = ", ".join(list(values)[:12])
            raise UnreadableImageError(
                f"its caption {member.name} has no {member.field!r}; it has {known}"
            )
        return _as_bytes(values[member.field])
    return _as_bytes(next((values[key] for key in CAPTION_NAMES if values.get(key)), ""))


def _as_bytes(value: object) -> bytes:
    """Return a caption as UTF-8 bytes: text unchanged, a list joined as tags, None as empty.

    Raises:
        UnreadableImageError: The value is of another type.
    """
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = ", ".join(value)
    if value is None:
        return b""
    if not isinstance(value, str):
        raise UnreadableImageError(f"its caption is of type {type(value).__name__}; expected text")
    return value.encode("utf-8", "replace")
