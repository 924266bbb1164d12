"""Thumbnails of images, stored in the dataset and made by worker processes that may fail.

Images may come from untrusted sources, and decoders are the likeliest part to crash, hang or use up
all memory. So the server decodes nothing: workers do (`thumbnail_worker.py`), one per thread of a
small pool. If a worker dies or takes too long, only the image that it was decoding has no
thumbnail.

A thumbnail is named after the SHA-256 of its image's bytes, so an image that is renamed, moved or
copied is decoded once. For each image, a small file named after its path, size and time of change
stores that hash, so that a page finds the thumbnail without reading the image.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from impasto import files
from impasto.errors import StorageError
from impasto.parsing import parse_json, printable
from impasto.runs.processes import SAFELY

FOLDER = "thumbnails"
CONTENT = "content"
"""The subfolder of `FOLDER` for the thumbnails; the other subfolders hold the hashes."""

PATIENCE_S = 20.0
"""Seconds after which a worker that does not answer is killed."""

_WORKERS = 2
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUTF8": "1"}
_HIDDEN = getattr(subprocess, "CREATE_NO_WINDOW", 0)
_DIED = "ended the process that decodes"
_WORKER = "impasto.studio.thumbnail_worker"
_HASH = re.compile("[0-9a-f]{64}")
_LONGEST_REASON = 2000  # bytes read of a reason, which may be from an untrusted source


class Thumbnails:
    """Makes thumbnails, and checks whether files are images.

    Args:
        patience_s: Seconds after which a worker that does not answer is killed.
        module: The module that a worker runs.
    """

    def __init__(self, patience_s: float = PATIENCE_S, module: str = _WORKER) -> None:
        self._patience_s, self._module = patience_s, module
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="thumbnails")
        self._own = threading.local()
        self._started: set[subprocess.Popen[str]] = set()
        self._end = weakref.finalize(self, _end_all, self._started)

    def request(self, source: Path, kept_hash: Path) -> Future[str]:
        """Make a thumbnail; the result is the reason for a failure, or an empty text.

        A reason that is a property of the file is stored beside the file of its hash.

        Args:
            source: The image.
            kept_hash: The file for its hash, as returned by `hash_file`.
        """
        return self._pool.submit(self._make, source, kept_hash)

    def check(self, source: Path, name: str) -> str:
        """Return the reason why a file is not a usable image, or an empty text if it is one.

        Args:
            source: The file.
            name: Its future name, whose extension selects the decoder.
        """
        asked = {"source": str(source), "name": name}
        return str(self._pool.submit(self._ask, asked).result()["reason"])

    def close(self) -> None:
        """Stop the workers; no requests can be made afterwards."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        _end_all(self._started)
        self._pool.shutdown(wait=True)
        self._end()

    def _make(self, source: Path, kept_hash: Path) -> str:
        if thumbnail_of(kept_hash) is not None:
            return ""
        known = reason_of(kept_hash)
        if known:
            return known
        answer = self._ask({"source": str(source), "place": str(kept_hash)})
        reason = str(answer["reason"])
        if reason and not answer.get("is_transient") and is_ours(kept_hash.parent, kept_hash):
            with contextlib.suppress(StorageError):  # then the reason is found again next time
                files.write_text(_reason_file(kept_hash), printable(reason), durable=False)
        return reason

    def _ask(self, request: dict[str, str]) -> dict[str, Any]:
        """Return a worker's answer; if that worker has just exited as idle, ask a new one."""
        while True:
            process = self._worker()
            slow = threading.Event()
            patience = threading.Timer(self._patience_s, _give_up, (process, slow))
            patience.daemon = True
            patience.start()
            try:
                return _answer_of(process, request)
            except (OSError, ValueError, TypeError):
                patience.cancel()
                was_idle = not slow.is_set() and _code_of(process) == 0
                self._forget(process)
                if was_idle:
                    continue
                why = f"took over {self._patience_s:g} s" if slow.is_set() else _DIED
                return {"reason": f"decoding it {why}", "is_transient": True}
            finally:
                patience.cancel()

    def _worker(self) -> subprocess.Popen[str]:
        """Return the worker of this thread; start one if none is running."""
        process: subprocess.Popen[str] | None = getattr(self._own, "process", None)
        if process is None or process.poll() is not None:
            if process is not None:
                self._forget(process)
            process = subprocess.Popen(
                [sys.executable, *SAFELY, "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="ascii",
                env={**os.environ, **_ONE_THREAD},
                creationflags=_HIDDEN,
            )
            self._own.process = process
            self._started.add(process)
        return process

    def _forget(self, process: subprocess.Popen[str]) -> None:
        _end(process)
        self._started.discard(process)
        self._own.process = None


def _answer_of(process: subprocess.Popen[str], request: dict[str, str]) -> dict[str, Any]:
    """Send a request to a worker and wait for its answer.

    Raises:
        OSError: The worker has ended.
        ValueError: The answer is invalid.
    """
    assert process.stdin is not None  # noqa: S101 - made with pipes
    assert process.stdout is not None  # noqa: S101
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    answer = parse_json(process.stdout.readline(), halves=True)
    if not isinstance(answer, dict) or "reason" not in answer:
        raise ValueError(answer)
    return answer


def _give_up(process: subprocess.Popen[str], slow: threading.Event) -> None:
    slow.set()
    process.kill()


def _code_of(process: subprocess.Popen[str]) -> int | None:
    """Return the exit code of a process that has closed its pipes; None if it is still running."""
    try:
        return process.wait(1)
    except subprocess.TimeoutExpired:
        return None


def hash_file(derived: Path, dataset: Path, image: Path) -> Path:
    """Return the file for the hash of an image, which need not exist; it changes with the image.

    Raises:
        OSError: The image does not exist.
    """
    status = image.stat()
    name = hashlib.sha256(os.fsencode(image.relative_to(dataset).as_posix())).hexdigest()[:32]
    return derived / FOLDER / name[:2] / f"{name}-{status.st_size}-{status.st_mtime_ns}.sha256"


def version_of(kept_hash: Path) -> str:
    """Return the size and modification time of an image, as in the name of its hash file."""
    return kept_hash.stem.partition("-")[2]


def content_file(kept_hash: Path, content: str) -> Path:
    """Return the path of the thumbnail for the content of an image, whether it exists or not.

    Args:
        kept_hash: The file for the hash of the image, as returned by `hash_file`.
        content: The hash.
    """
    return kept_hash.parent.parent / CONTENT / content[:2] / f"{content}.jpg"


def thumbnail_of(kept_hash: Path) -> Path | None:
    """Return the thumbnail of an image, found by its hash file; None if it has not been made.

    A folder from an untrusted source may contain links: a thumbnail outside of it gives None too.
    """
    try:
        with kept_hash.open(encoding="ascii") as file:
            content = file.read(65)
        if _HASH.fullmatch(content) is None:
            return None
        found = content_file(kept_hash, content)
        return found if found.is_file() and is_ours(found, kept_hash) else None
    except (OSError, ValueError):
        return None


def is_ours(path: Path, kept_hash: Path) -> bool:
    """Return whether a path, links followed, is in the folder of thumbnails.

    Args:
        path: The file or folder to be read or written.
        kept_hash: The file for the hash of an image in that folder.
    """
    return files.is_inside(path, kept_hash.parent.parent)


def reason_of(kept_hash: Path) -> str:
    """Return the stored reason why a thumbnail could not be made, or an empty text if none is.

    A reason file that is a link out of the folder of thumbnails is ignored.

    Args:
        kept_hash: The file for the hash of the image.
    """
    file = _reason_file(kept_hash)
    try:
        if not is_ours(file, kept_hash) or not file.is_file():
            return ""
        with file.open("rb") as opened:
            return opened.read(_LONGEST_REASON).decode("utf-8", errors="replace")
    except OSError:
        return ""


def _reason_file(kept_hash: Path) -> Path:
    return kept_hash.with_suffix(".txt")


def _end_all(processes: set[subprocess.Popen[str]]) -> None:
    while processes:
        _end(processes.pop())


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
