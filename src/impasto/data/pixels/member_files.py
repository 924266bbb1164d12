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
    """What is inside a file, as a file of its own.

    Args:
        member: It.
        whole: Whether all of it will be read: of an object store it comes in one piece then.
        beginning: Its first bytes, where they have been read from a store.

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
    return cast("IO[bytes]", ObjectFile(member.container, first, later))  # as far as it is used


def read_member(member: Member, most: int | None = None) -> bytes:
    """The bytes of what is inside a file, or the first of them; of words their text as UTF-8.

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
    """The words that a path names, as a file with them would hold them, or the first bytes.

    Raises:
        OSError: They cannot be read.
        UnreadableImageError: JSON that is malformed, or has no text where it is asked for.
        StorageError: They are in an object store that cannot be used.
    """
    member = member_of(path)
    if isinstance(member, TableCell):
        return _as_bytes(_value(member))
    if member is None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    return _caption_of(member, read_member(member, most), most)


def read_beginnings(members: Sequence[TarMember], size: int) -> dict[TarMember, bytes | OSError]:
    """The first bytes of files in tars of an object store, asked for at once; or why not.

    Raises:
        StorageError: The store cannot be used.
    """
    ranges = [(member, min(member.size, size)) for member in members]
    try:
        return dict(zip(members, _ranges(ranges), strict=True))
    except OSError:  # of one of them; the others are there
        return {member: _range_or_fault(member, size) for member, size in ranges}


def _range_or_fault(member: TarMember, size: int) -> bytes | OSError:
    try:
        return _ranges([(member, size)])[0]
    except OSError as error:
        return error


def read_many_captions(paths: Iterable[str], most: int) -> dict[str, bytes | Exception]:
    """The words that paths in an object store name, asked for at once; of those without, why.

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
    """The SHA-256 of what is inside a file, which is that of the same in a file of its own.

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
    """The bytes of a member of a tar, as a file; the tar is closed with it."""

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
        read_cell,  # Parquet, for those alone who read tables
    )

    return read_cell(cell)


def _image_of(cell: TableCell) -> bytes:
    """The bytes of a row's image.

    Raises:
        UnreadableImageError: It has none.
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
    """The words in a sample's JSON.

    Raises:
        UnreadableImageError: It is malformed, or has something else in the place of words.
    """
    if len(content) >= most:
        return content  # too large for words, and said to be so
    try:
        values = parse_json(content)
    except ValueError as error:
        raise UnreadableImageError(f"its caption {member.name} is not valid JSON") from error
    if not isinstance(values, dict):
        raise UnreadableImageError(f"its caption {member.name} is no JSON object")
    if member.field:
        if member.field not in values:
            known = ", ".join(list(values)[:12])
            raise UnreadableImageError(
                f"its caption {member.name} has no {member.field!r}; it has {known}"
            )
        return _as_bytes(values[member.field])
    return _as_bytes(next((values[key] for key in CAPTION_NAMES if values.get(key)), ""))


def _as_bytes(value: object) -> bytes:
    """Words as a file with them would hold them: texts as they are, lists of them as tags.

    Raises:
        UnreadableImageError: They are something else.
    """
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = ", ".join(value)
    if value is None:
        return b""
    if not isinstance(value, str):
        raise UnreadableImageError(f"its words are {type(value).__name__}; expected text")
    return value.encode("utf-8", "replace")
