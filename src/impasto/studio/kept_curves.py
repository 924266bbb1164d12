"""Cache of curves as JSON, valid while the metrics file is unchanged.

Reading every line of a large file takes seconds, and the page of a run is usually opened again.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path

from impasto.runs.lines import size_of
from impasto.studio.curves import SKETCHED_FROM, read_curves

_MOST_ANSWERS = 8
_MOST_BYTES = 1 << 20  # size limit of a cached answer; ten curves of 1500 points are about 250 KB

_Mark = tuple[int, int, int, int]


@dataclass(frozen=True)
class CurvesAnswer:
    """The curves of a metrics file, as sent to the page of a run.

    Attributes:
        content: JSON of the result of `read_curves`: name -> steps and values.
        is_exact: Whether every line was read.
    """

    content: bytes
    is_exact: bool


class KeptCurves:
    """Reads curves, and caches the exact ones of the most recently read files."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[Path, tuple[_Mark, CurvesAnswer]] = {}

    def find(self, file: Path) -> CurvesAnswer | None:
        """Return the cached exact curves of a file, or None if it has none or has changed."""
        with self._lock:
            mark, answer = self._kept.get(file, (None, None))
        return answer if mark is not None and mark == _mark_of(file) else None

    def read(self, file: Path, *, exact: bool) -> CurvesAnswer:
        """Return the curves of a file, from the cache or by reading it.

        Args:
            file: `metrics.jsonl`, which need not exist.
            exact: As for `read_curves`; a small file is read exactly in any case.
        """
        kept = self.find(file)
        if kept is not None:
            return kept
        mark = _mark_of(file)  # taken before reading, so that later writes change the mark
        is_exact = exact or size_of(file) < SKETCHED_FROM
        found = read_curves(file, exact=is_exact)
        answer = CurvesAnswer(json.dumps(found, separators=(",", ":")).encode(), is_exact)
        if is_exact and mark is not None and len(answer.content) <= _MOST_BYTES:
            self._keep(file, mark, answer)
        return answer

    def _keep(self, file: Path, mark: _Mark, answer: CurvesAnswer) -> None:
        with self._lock:
            self._kept.pop(file, None)
            self._kept[file] = mark, answer
            while len(self._kept) > _MOST_ANSWERS:
                del self._kept[next(iter(self._kept))]


def _mark_of(file: Path) -> _Mark | None:
    """Return a value that changes with the content of a file, or None if the file is missing."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
