"""Hashes of files' contents, cached while size and modification time stay the same."""

from __future__ import annotations

import contextlib
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from impasto import files
from impasto.data.columns.keyed import KeyedTable
from impasto.data.columns.portions import Portions
from impasto.data.columns.tables import FormerFile, rows_of
from impasto.data.engines.engine import LOCAL, Engine
from impasto.data.engines.stages import Failure, chunks
from impasto.data.pixels.member_files import sha256_of_member
from impasto.data.records import FileStamp
from impasto.errors import StorageError
from impasto.member_paths import member_of
from impasto.progress import Progress, SilentProgress
from impasto.remote_paths import is_remote
from impasto.storage import objects

LATENTS, HASHES_FILE = "latents", "content-hashes.json"
_STORED_AT_ONCE = 32  # objects that are read at a time, since each response is slow
_VERSION, _FORMER = [3], [2]
_READERS, _FILES_AT_ONCE = 4, 4
FIRST_BYTES, FIRST_FILES = 1 << 28, 1 << 11
"""How many bytes, or how many files, are hashed before others' hashes are first checked for."""

_SCHEMA = pa.schema(
    [
        ("path", pa.large_string()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("sha256", pa.binary(32)),
    ]
)


class ContentHashes:
    """SHA-256 of files' bytes, by path, size and modification time.

    Args:
        file: The JSON file of earlier versions; the table that replaces it has the extension
            `.table`.
    """

    def __init__(self, file: Path) -> None:
        self._known = KeyedTable(file, _SCHEMA, _VERSION, FormerFile(file, _FORMER, _of_former))

    @classmethod
    def kept_in(cls, derived: Path) -> ContentHashes:
        """Open the hashes that are stored in a folder of derived data, beside the latents."""
        return cls(derived / LATENTS / HASHES_FILE)

    def of(
        self,
        stamps: Mapping[Path, FileStamp],
        progress: Progress | None = None,
        *,
        tidy: bool = True,
        engine: Engine = LOCAL,
    ) -> dict[Path, str]:
        """Hash files that are new, cache the hashes, and return those of all readable files.

        New hashes are on disk within seconds, so an interruption loses no more than that. Files
        that another program hashes meanwhile are taken from it, portion by portion.

        Args:
            stamps: The files.
            progress: Shows progress.
            tidy: Whether to merge the table's files at the end; callers that hash many files in
                portions pass False and call `tidy` after the last.
            engine: Runs the work on files.
        """
        found = self.known(stamps)
        fresh = {path: stamp for path, stamp in stamps.items() if path not in found}
        found |= self._hashed(fresh, progress, engine)
        if fresh and tidy:
            self.tidy()
        return {path: found[path] for path in stamps if path in found}

    def _hashed(
        self, stamps: Mapping[Path, FileStamp], progress: Progress | None, engine: Engine
    ) -> dict[Path, str]:
        """Hash files that are not cached, except those that other programs hash meanwhile."""
        fresh, found = list(stamps), dict[Path, str]()
        index_of = {path: index for index, path in enumerate(fresh)}
        portions = Portions([_cost(stamp) for stamp in stamps.values()])
        at_once = _STORED_AT_ONCE if any(map(is_remote, fresh)) else _READERS
        executor = engine.executor(HashFiles(), usual=at_once)
        stage = (progress or SilentProgress()).stage("Reading files", len(fresh), "files")
        keeps = True
        with stage as advance:
            while indices := portions.take():
                began = time.monotonic()
                paths = [fresh[index] for index in indices]
                for outcomes in executor.run(chunks(paths, _FILES_AT_ONCE)):
                    for path, digest in outcomes:
                        if not isinstance(digest, Failure):
                            found[path] = digest
                            keeps = keeps and self._add(path, stamps[path], digest)
                    advance(len(outcomes))
                portions.took(time.monotonic() - began)
                with contextlib.suppress(StorageError):  # lost hashes are computed again
                    self._known.flush()
                if not portions.is_done:
                    theirs = self._new_of_others(stamps)
                    advance(portions.leave_out([index_of[path] for path in theirs]))
                    found |= theirs
        return found

    def _new_of_others(self, stamps: Mapping[Path, FileStamp]) -> dict[Path, str]:
        """Return hashes that other programs have added since the last check, of unchanged files."""
        with contextlib.suppress(StorageError):  # a failed check only means hashing the files here
            return _unchanged(stamps, self._known.look_up_new([str(path) for path in stamps]))
        return {}

    def refresh(self) -> None:
        """Read the hashes that other processes have added meanwhile."""
        self._known.refresh()

    def tidy(self) -> None:
        """Merge the table's files into one if that saves enough time; failures are ignored."""
        with contextlib.suppress(StorageError):  # all hashes are stored, only in more files
            self._known.finish()

    def known(self, stamps: Mapping[Path, FileStamp]) -> dict[Path, str]:
        """Return the cached hashes of unchanged files; reads no files."""
        return _unchanged(stamps, self._known.look_up([str(path) for path in stamps]))

    def _add(self, path: Path, stamp: FileStamp, digest: str) -> bool:
        """Cache a hash; False if that fails: the file will be read again next time."""
        try:
            self._known.add(str(path), stamp.size_bytes, stamp.mtime_ns, bytes.fromhex(digest))
        except StorageError:
            return False
        return True


def _unchanged(
    stamps: Mapping[Path, FileStamp], known: Mapping[str, tuple[Any, ...]]
) -> dict[Path, str]:
    """Return the hashes of files whose cached size and modification time match their stamps."""
    found = {}
    for path, stamp in stamps.items():
        *was, digest = known.get(str(path), (-1, -1, b""))
        if tuple(was) == (stamp.size_bytes, stamp.mtime_ns):
            found[path] = digest.hex()
    return found


def _cost(stamp: FileStamp) -> float:
    """Return the cost of reading a file, as a fraction of the first portion."""
    return stamp.size_bytes / FIRST_BYTES + 1 / FIRST_FILES


def _of_former(content: Any) -> pa.Table:
    """Return the rows of a former JSON file: path -> [size, modification time, SHA-256 in hex]."""
    rows = [(p, size, mtime, bytes.fromhex(d)) for p, (size, mtime, d) in content.items()]
    return rows_of(_SCHEMA, rows)


def stamp_of(path: Path) -> FileStamp | None:
    """Return the size and modification time of a regular file; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):  # reading a FIFO would block for ever
        return None
    return FileStamp(status.st_size, status.st_mtime_ns)


class HashFiles:
    """Stage that turns paths into SHA-256 hashes of their bytes, in hexadecimal."""

    def __call__(self, batch: Sequence[Path]) -> list[str | Failure]:
        """Hash files; a file that cannot be read is a failure.

        Later readers of such a file report the same fault.
        """
        return [self._one(path) for path in batch]

    def _one(self, path: Path) -> str | Failure:
        member = member_of(path)
        try:
            if member is not None:
                return sha256_of_member(member)
            return objects.sha256_of_object(path) if is_remote(path) else files.sha256_of(path)
        except OSError as error:
            return Failure(str(error), is_transient=True)
