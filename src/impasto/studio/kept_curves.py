"""Curves as JSON, kept while the file that they were read from is as it was.

To read every line of a large file takes seconds, and whoever looks at a run looks at it again.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path

from impasto.runs.lines import size_of
from impasto.studio.curves import SKETCHED_FROM, read_curves

_MOST_ANSWERS = 8
_MOST_BYTES = 1 << 20  # of an answer that is kept; ten curves of 1500 points are about 250 KB

_Mark = tuple[int, int, int, int]


@dataclass(frozen=True)
class CurvesAnswer:
    """The curves of a file of metrics, as the page of a run gets them.

    Attributes:
        content: JSON: name -> steps and values, as `read_curves` gives them.
        is_exact: Whether every line was read.
    """

    content: bytes
    is_exact: bool


class KeptCurves:
    """Reads curves and keeps the exact ones of the files that were asked for last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[Path, tuple[_Mark, CurvesAnswer]] = {}

    def find(self, file: Path) -> CurvesAnswer | None:
        """The exact curves that were read from a file, where it has not changed since."""
        with self._lock:
            mark, answer = self._kept.get(file, (None, None))
        return answer if mark is not None and mark == _mark_of(file) else None

    def read(self, file: Path, *, exact: bool) -> CurvesAnswer:
        """The curves of a file: those that are kept, or else read now.

        Args:
            file: `metrics.jsonl`, which need not be there.
            exact: As for `read_curves`; a small file is read exactly in any case.
        """
        kept = self.find(file)
        if kept is not None:
            return kept
        mark = _mark_of(file)  # before it is read: what is written meanwhile makes another mark
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
    """What changes with the content of a file; None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
