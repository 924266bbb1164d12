"""Thumbnails of images, kept beside the dataset, made by processes that may fail.

Images may be anybody's, and decoders are the likeliest part to crash, hang or take all memory. So
the server decodes nothing: workers do (`thumbnail_worker.py`), one for each of a few threads. One
that dies or takes too long costs the image that it was at.

A thumbnail is named after the SHA-256 of its image's bytes, so an image that is renamed, moved or
there twice is decoded once. Beside them is a small file for each image, named after its path, size
and time of change, with that hash: a page reads no image to find its thumbnail.
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
"""The folder in it with the thumbnails; the others have the hashes."""

PATIENCE_S = 20.0
"""Seconds after which a worker is ended that does not answer."""

_WORKERS = 2
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUTF8": "1"}
_HIDDEN = getattr(subprocess, "CREATE_NO_WINDOW", 0)
_DIED = "ended the process that decodes"
_WORKER = "impasto.studio.thumbnail_worker"
_HASH = re.compile("[0-9a-f]{64}")
_LONGEST_REASON = 2000  # bytes that are read of one, which a stranger may have written


class Thumbnails:
    """Makes thumbnails, and looks whether files are images.

    Args:
        patience_s: Seconds after which a worker that does not answer is ended.
        module: What a worker runs.
    """

    def __init__(self, patience_s: float = PATIENCE_S, module: str = _WORKER) -> None:
        self._patience_s, self._module = patience_s, module
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="thumbnails")
        self._own = threading.local()
        self._started: set[subprocess.Popen[str]] = set()
        self._end = weakref.finalize(self, _end_all, self._started)

    def request(self, source: Path, kept_hash: Path) -> Future[str]:
        """Make a thumbnail; the result is the reason why not, empty where it is there.

        A reason that lies in the file is written beside the place of its hash.

        Args:
            source: The image.
            kept_hash: Where its hash is kept: `hash_file`.
        """
        return self._pool.submit(self._make, source, kept_hash)

    def check(self, source: Path, name: str) -> str:
        """Why a file is no image that can be used; empty where it is.

        Args:
            source: The file.
            name: The name that it will have; its ending says which decoder it needs.
        """
        asked = {"source": str(source), "name": name}
        return str(self._pool.submit(self._ask, asked).result()["reason"])

    def close(self) -> None:
        """End the workers; nothing can be asked afterwards."""
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
            with contextlib.suppress(StorageError):  # then it is found out again
                files.write_text(_reason_file(kept_hash), printable(reason), durable=False)
        return reason

    def _ask(self, request: dict[str, str]) -> dict[str, Any]:
        """What a worker answers; of one that had just ended because it was idle, what another."""
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
        """The process of this thread; another one where it has ended, as it does when idle."""
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
    """Ask a worker and wait for its answer.

    Raises:
        OSError: It has ended.
        ValueError: What it answers is none.
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
    """The exit code of a process that has closed its pipes; None if it goes on."""
    try:
        return process.wait(1)
    except subprocess.TimeoutExpired:
        return None


def hash_file(derived: Path, dataset: Path, image: Path) -> Path:
    """Where the hash of an image is kept, known or not; of a changed image it is another place.

    Raises:
        OSError: The image is not there.
    """
    status = image.stat()
    name = hashlib.sha256(os.fsencode(image.relative_to(dataset).as_posix())).hexdigest()[:32]
    return derived / FOLDER / name[:2] / f"{name}-{status.st_size}-{status.st_mtime_ns}.sha256"


def version_of(kept_hash: Path) -> str:
    """Size and time of change of an image, as the place of its hash has them: `hash_file`."""
    return kept_hash.stem.partition("-")[2]


def content_file(kept_hash: Path, content: str) -> Path:
    """Where the thumbnail of an image of some content is, made or not.

    Args:
        kept_hash: Where the hash of the image is kept: `hash_file`.
        content: The hash.
    """
    return kept_hash.parent.parent / CONTENT / content[:2] / f"{content}.jpg"


def thumbnail_of(kept_hash: Path) -> Path | None:
    """The thumbnail of an image by the place of its hash; None where it is not made.

    Whoever made the folder may have put links there: what leads out of it is none.
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
    """Whether a path is in the folder of thumbnails after all links, which a stranger may have put.

    Args:
        path: What is to be read or written.
        kept_hash: Where the hash of an image is kept in that folder.
    """
    return files.is_inside(path, kept_hash.parent.parent)


def reason_of(kept_hash: Path) -> str:
    """Why a thumbnail could not be made; empty where nobody has tried, or it is there.

    A reason that is a link out of the folder of thumbnails is none.

    Args:
        kept_hash: Where the hash of the image is kept.
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
