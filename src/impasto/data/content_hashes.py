"""What is in a file, as a hash, remembered while size and time of change stay the same."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from impasto import files
from impasto.data.records import FileStamp
from impasto.data.remembered import recall, write_cached
from impasto.errors import StorageError
from impasto.progress import Progress, SilentProgress

LATENTS, HASHES_FILE = "latents", "content-hashes.json"
_VERSION = [2]


class ContentHashes:
    """SHA-256 of files' bytes, kept in a JSON file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, tuple[FileStamp, str]] = {
            path: (FileStamp(size, mtime), digest)
            for path, (size, mtime, digest) in (recall(file, _VERSION) or {}).items()
        }

    @classmethod
    def kept_in(cls, derived: Path) -> ContentHashes:
        """Those that are kept in a folder of derived data, beside the latents."""
        return cls(derived / LATENTS / HASHES_FILE)

    def of(
        self, stamps: Mapping[Path, FileStamp], progress: Progress | None = None
    ) -> dict[Path, str]:
        """Hash what is new, remember it, and return the hashes of all that can be read."""
        fresh = [p for p, stamp in stamps.items() if self._known.get(str(p), (None,))[0] != stamp]
        progress = progress or SilentProgress()
        with (
            progress.stage("Reading files", len(fresh), "files") as advance,
            ThreadPoolExecutor(4) as pool,
        ):
            for path, digest in zip(fresh, pool.map(_hash_or_none, fresh), strict=True):
                if digest is not None:
                    self._known[str(path)] = (stamps[path], digest)
                advance(1)
        if fresh:
            rows = {p: [s.size_bytes, s.mtime_ns, d] for p, (s, d) in self._known.items()}
            with contextlib.suppress(StorageError):  # forgetting costs reading the files again
                write_cached(self._file, _VERSION, rows)
        return {p: self._known[str(p)][1] for p in stamps if str(p) in self._known}

    def known(self, stamps: Mapping[Path, FileStamp]) -> dict[Path, str]:
        """The hashes that are remembered of files that have not changed; none is read."""
        found = ((path, self._known.get(str(path))) for path in stamps)
        return {path: own[1] for path, own in found if own is not None and own[0] == stamps[path]}


def stamp_of(path: Path) -> FileStamp | None:
    """Size and time of change of a regular file; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):  # reading a FIFO would wait for ever
        return None
    return FileStamp(status.st_size, status.st_mtime_ns)


def _hash_or_none(path: Path) -> str | None:
    try:
        return files.sha256_of(path)
    except OSError:
        return None  # whoever needs the content meets the same fault and reports it
