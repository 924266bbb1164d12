"""The files of a table (`tables.py`): Arrow IPC files that appear whole and never change.

The segments of a folder in an object store are written on this machine and uploaded whole, and
read from copies on this machine.

A file's name holds its time, the process that wrote it, and the CRC-32 and length of all its bytes,
which are checked before its content is used.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc

from impasto import files
from impasto.member_paths import SEGMENT
from impasto.owners import current_process
from impasto.parsing import parse_json
from impasto.remote_paths import is_remote, machine_folder
from impasto.storage import objects
from impasto.storage.copies import fetch_to
from impasto.storage_errors import reported

_REPLACES = b"replaces"
_READ_AT_ONCE = 1 << 22
_KEPT_NS = 3600 * 10**9  # a listing of a store may be slightly out of date


def segments_in(folder: Path | None) -> list[Path]:
    """Return the segments of a folder from the oldest to the newest; none if it cannot be listed.

    Raises:
        StorageError: The folder is in an object store that cannot be used.
    """
    if folder is None:
        return []
    if is_remote(folder):
        names = [name for name in objects.find(folder).objects if SEGMENT.fullmatch(name)]
        _remove_copies(machine_folder(folder), names)
        return sorted(folder / name for name in names)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        named = [entry for entry in entries if SEGMENT.fullmatch(entry.name)]
        # segments are regular files: opening a FIFO would wait for ever
        return sorted(Path(one.path) for one in named if one.is_file(follow_symlinks=False))
    return []


def write_segment(folder: Path, rows: pa.Table) -> str:
    """Write a segment, and return its name, which sorts after all existing segments.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    named: list[str] = []

    def name_of(file: Path) -> str:
        total, size = _sum_of(file)
        there = segments_in(folder)
        stamp = max([time.time_ns(), *(_time_of(segment.name) + 1 for segment in there[-1:])])
        named.append(f"seg-{stamp:020d}-{current_process().token}-{total:08x}-{size}.arrow")
        return named[0]

    own = machine_folder(folder)
    with (
        files.new_file(own, name_of) as partial,
        pa.OSFile(str(partial), "wb") as sink,
        pa.ipc.new_file(sink, rows.schema) as writer,
    ):
        writer.write_table(rows.combine_chunks())
    if is_remote(folder):
        with reported(folder):
            objects.upload(own / named[0], folder / named[0])
    return named[0]


def remove_segment(file: Path) -> None:
    """Remove a segment, and its copy on this machine if it is in an object store.

    Raises:
        OSError: It cannot be removed; on Windows, for example, while it is memory-mapped.
        StorageError: It is in an object store that cannot be used.
    """
    if is_remote(file):
        objects.remove(file)
    _here(file).unlink(missing_ok=True)


def _remove_copies(folder: Path, names: Collection[str]) -> None:
    """Remove copies older than an hour of segments that are no longer in the store."""
    before = time.time_ns() - _KEPT_NS
    for copy in folder.glob("seg-*.arrow"):
        if copy.name not in names and _time_of(copy.name) < before:
            with contextlib.suppress(OSError):  # Windows cannot remove a mapped file
                copy.unlink()


def _here(file: Path) -> Path:
    """Return the path on this machine of a segment, or of its copy."""
    return machine_folder(file.parent) / file.name


def _fetched(file: Path, size: int) -> Path:
    """Return the path on this machine of a segment, or of its copy, which is made if needed."""
    copy = _here(file)
    if is_remote(file) and not (copy.is_file() and copy.stat().st_size == size):
        fetch_to(file, copy, size)
    return copy


def open_segment(file: Path) -> pa.Table | None:
    """Return a segment, memory-mapped; None if it is damaged.

    Raises:
        OSError: It could not be read, though it may be intact; `FileNotFoundError`: it was removed.
    """
    told = SEGMENT.fullmatch(file.name)
    if told is None:
        return None
    wanted = (int(told[2], 16), int(told[3]))
    own = _fetched(file, wanted[1])
    if _sum_of(own) != wanted and is_remote(file):  # the copy may be damaged, not the segment
        own.unlink(missing_ok=True)
        own = _fetched(file, wanted[1])
    if _sum_of(own) != wanted:
        return None
    try:
        return pa.ipc.open_file(pa.memory_map(str(own), "r")).read_all()
    except pa.ArrowException:
        return None


def replaced_by(table: pa.Table, name: str) -> dict[str, int]:
    """Return the segments that this one replaces -> when, in nanoseconds since 1970."""
    told = parse_json((table.schema.metadata or {}).get(_REPLACES, b"{}"))
    return told if isinstance(told, dict) else dict.fromkeys(told, _time_of(name))


def saying_replaced(replaced: dict[str, int]) -> dict[bytes, bytes]:
    """Return the metadata of a segment that replaces others."""
    return {_REPLACES: json.dumps(replaced).encode("ascii")}


def _time_of(name: str) -> int:
    told = SEGMENT.fullmatch(name)
    return int(told[1]) if told else 0


def _sum_of(file: Path) -> tuple[int, int]:
    """Return the CRC-32 and the length of a file's bytes."""
    total = size = 0
    with file.open("rb") as handle:
        while part := handle.read(_READ_AT_ONCE):
            total, size = zlib.crc32(part, total), size + len(part)
    return total, size
