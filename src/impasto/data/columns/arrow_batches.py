"""Finds the record batches of Arrow files and streams without reading them.

Both formats are a sequence of messages; a file has 8 bytes before them and a footer after them.
`datasets` writes streams, which have no footer, so the messages are visited one by one: the length
of each is in its FlatBuffer, of which a few numbers are read here.

Format: https://arrow.apache.org/docs/format/Columnar.html, "Encapsulated message format", and
`format/Message.fbs` of apache/arrow.
"""

from __future__ import annotations

import errno
import struct
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa

from impasto.remote_paths import is_remote
from impasto.storage.objects import read_ranges
from impasto.storage.ranged_file import RangedFile, open_ranges

_MAGIC = b"ARROW1"
_GOES_ON = b"\xff\xff\xff\xff"
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_LARGEST_HEAD = 16 << 20  # bytes; a schema of thousands of columns takes less
_AHEAD = 1 << 12
_OFFSET = 4  # bytes that a row takes at least, in the offsets of texts or bytes
_PACKED = 256  # rows per byte of compressed data, at most; images and captions take more space


class Part(NamedTuple):
    """A column of a record batch or row group, and the bytes of RAM it takes while it is held."""

    values: pa.ChunkedArray
    held_bytes: int


class _Message(NamedTuple):
    """A message: its kind, its number of rows if it is a batch, and its position in the file."""

    kind: int
    rows: int
    begin: int
    end: int
    is_compressed: bool


class ArrowBatches:
    """An Arrow file or stream.

    Args:
        path: The file, on this machine or in an object store.
        size: Its size in bytes.
        largest: Maximum bytes of a batch that is not memory-mapped.

    Raises:
        OSError: The file is cut short or damaged, or has dictionaries.
        StorageError: It is in an object store that cannot be used.
    """

    def __init__(self, path: Path, size: int, largest: int) -> None:
        self._path, self._largest = path, largest
        self._map = None if is_remote(path) else pa.memory_map(str(path))
        if self._map is None:
            messages = _messages(open_ranges(path, size, _AHEAD), size)
        else:
            with path.open("rb") as file:
                messages = _messages(file, size)
        if not messages or messages[0].kind != _SCHEMA:
            raise OSError(errno.EINVAL, "not an Arrow file, or damaged at its start")
        if any(message.kind == _DICTIONARY for message in messages):
            raise OSError(
                errno.EINVAL,
                "Arrow files with dictionaries are not supported; write it as Parquet",
            )
        self.schema = pa.ipc.read_schema(self._bytes(messages[0]))
        self._batches = [message for message in messages if message.kind == _BATCH]
        rows = [message.rows for message in self._batches]
        self.starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])

    def part(self, column: str, number: int) -> Part:
        """Return a column of one batch, after checking its values against its own metadata.

        Raises:
            OSError: The batch is too large to be held in memory.
        """
        message = self._batches[number]
        is_mapped = self._map is not None and not message.is_compressed
        held = 0 if is_mapped else message.end - message.begin
        if held > self._largest:
            raise OSError(
                errno.EFBIG,
                f"batch {number} of {self._path.name} has more than {self._largest >> 20:,} MiB; "
                f"write the table again in batches of 100 rows",
            )
        batch = pa.ipc.read_record_batch(self._bytes(message), self.schema)
        values = batch.column(column)
        values.validate(full=True)
        return Part(pa.chunked_array([values]), held)

    def holds_bytes(self, column: str, field: str) -> bool:
        """Return whether any struct in a column has bytes in that field."""
        return any(
            chunk.field(field).null_count < len(chunk)
            for number in range(len(self._batches))
            for chunk in self.part(column, number).values.chunks
        )

    def _bytes(self, message: _Message) -> pa.Buffer:
        if self._map is None:
            part = read_ranges([(self._path, message.begin, message.end)])[0]
            return pa.py_buffer(part)
        self._map.seek(message.begin)
        return self._map.read_buffer(message.end - message.begin)


def _messages(file: IO[bytes] | RangedFile, size: int) -> list[_Message]:
    """Return the messages of a file, up to the end marker.

    Raises:
        OSError: The file is cut short or damaged.
    """
    at = 8 if file.read(len(_MAGIC)) == _MAGIC else 0
    found: list[_Message] = []
    while at < size:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8 or head[:4] != _GOES_ON:
            raise _damaged(size, at, len(found))
        length = struct.unpack("<i", head[4:])[0]
        if length == 0:
            return found
        if not 0 < length <= _LARGEST_HEAD:
            raise _damaged(size, at, len(found))
        about = file.read(length)
        try:
            message = _message(about, at, 8 + length)
        except (struct.error, IndexError) as error:
            raise _damaged(size, at, len(found)) from error
        if len(about) < length or message.end > size or message.end <= at:
            raise _damaged(size, at, len(found))
        found.append(message)
        at = message.end
    raise _damaged(size, at, len(found))


def _damaged(size: int, at: int, messages: int) -> OSError:
    return OSError(
        errno.EINVAL,
        f"cut short or damaged: message {messages} at byte {at} is invalid, or does not end within "
        f"the {size} bytes of the file",
    )


def _message(about: bytes, begin: int, head: int) -> _Message:
    """Return a message, parsed from its metadata.

    Args:
        about: Its FlatBuffer, a table `Message` with version, header_type, header, bodyLength.
        begin: Its offset in the file.
        head: Number of bytes before its body.

    Raises:
        struct.error: The metadata is damaged.
    """
    root = struct.unpack_from("<I", about, 0)[0]
    kind_at, header_at, body_at = (_field(about, root, n) for n in (1, 2, 3))
    kind = struct.unpack_from("<B", about, kind_at)[0] if kind_at else 0
    body = struct.unpack_from("<q", about, body_at)[0] if body_at else 0
    if body < 0:
        raise struct.error("negative length")
    rows, is_compressed = 0, False
    if kind == _BATCH and header_at:
        batch = header_at + struct.unpack_from("<I", about, header_at)[0]
        rows_at = _field(about, batch, 0)
        rows = struct.unpack_from("<q", about, rows_at)[0] if rows_at else 0
        is_compressed = bool(_field(about, batch, 3))
        most = body * _PACKED if is_compressed else body // _OFFSET
        if not 0 <= rows <= most or rows != _rows_of_first_column(about, batch, rows):
            raise struct.error("number of rows")
    return _Message(kind, rows, begin, begin + head + body, is_compressed)


def _rows_of_first_column(about: bytes, batch: int, rows: int) -> int:
    """Return the length of the first of a batch's `nodes`; `rows` if there are none."""
    at = _field(about, batch, 1)
    nodes = at + struct.unpack_from("<I", about, at)[0] if at else 0
    if not nodes or not struct.unpack_from("<I", about, nodes)[0]:
        return rows
    length: int = struct.unpack_from("<q", about, nodes + 4)[0]
    return length


def _field(about: bytes, table: int, number: int) -> int:
    """Return the offset of a field of a FlatBuffer's table; 0 if it is omitted."""
    vtable = table - struct.unpack_from("<i", about, table)[0]
    if vtable < 0:
        raise struct.error("vtable")
    if 4 + 2 * number >= struct.unpack_from("<H", about, vtable)[0]:
        return 0
    offset: int = struct.unpack_from("<H", about, vtable + 4 + 2 * number)[0]
    return table + offset if offset else 0
