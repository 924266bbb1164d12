r"""Regular expressions on captions, in a separate process that is killed if one takes too long.

Some patterns would take longer than the age of the universe on some texts (`(a+)+b` on forty
letters a), and Python's `re` has no time limit. So the pattern runs in a small process, one text
after the other, and `substitute` kills it if a single text takes too long. Imports nothing but the
standard library, so that the process starts at once.
"""

from __future__ import annotations

import contextlib
import json
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

LIMIT_S = 10.0
"""Maximum seconds per text."""

LONGEST = 1 << 20
"""Maximum characters of a result: a scan refuses captions of more bytes."""


class SubstitutionError(Exception):
    """A text on which the substitution failed.

    Attributes:
        number: The index of the text, from 0.
        reason: The reason.
    """

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number, self.reason = number, reason


def why_not_a_pattern(pattern: str, replacement: str) -> str:
    """Return why a pattern or its replacement is refused; empty if both can be used."""
    try:
        re.compile(pattern).sub(replacement, "")
    except (re.error, IndexError) as error:
        return f"{error}"
    except (RecursionError, OverflowError, MemoryError):
        return "it is too large"
    return ""


def substitute(
    texts: Sequence[str], pattern: str, replacement: str, limit_s: float = LIMIT_S
) -> list[str]:
    r"""Replace every match of a pattern in each of some texts.

    Args:
        texts: The texts.
        pattern: A pattern of Python's `re`, without flags except those it sets itself: `(?i)`.
        replacement: The replacement, with `\1` or `\g<name>` for groups.
        limit_s: Maximum seconds per text.

    Raises:
        SubstitutionError: A text takes longer, or becomes too long.
    """
    if not texts:
        return []
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="ascii",
    )
    answers: queue.Queue[str] = queue.Queue()
    asking = threading.Thread(target=_ask, args=(process, texts, pattern, replacement), daemon=True)
    hearing = threading.Thread(target=_hear, args=(process, answers), daemon=True)
    try:
        asking.start()
        hearing.start()
        return [_answer(answers, number, limit_s) for number in range(len(texts))]
    finally:
        process.kill()
        process.wait()
        asking.join()
        hearing.join()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]


def _ask(
    process: subprocess.Popen[str], texts: Sequence[str], pattern: str, replacement: str
) -> None:
    assert process.stdin is not None  # noqa: S101 - a pipe
    with contextlib.suppress(OSError, ValueError):  # the process was killed
        process.stdin.write(json.dumps([pattern, replacement]) + "\n")
        for text in texts:
            process.stdin.write(json.dumps(text) + "\n")
        process.stdin.flush()


def _hear(process: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
    assert process.stdout is not None  # noqa: S101 - a pipe
    with contextlib.suppress(OSError, ValueError):
        for line in process.stdout:
            answers.put(line)
    answers.put("")


def _answer(answers: queue.Queue[str], number: int, limit_s: float) -> str:
    try:
        line = answers.get(timeout=limit_s)
    except queue.Empty:
        raise SubstitutionError(number, f"it takes longer than {limit_s:g} s") from None
    if not line:
        raise SubstitutionError(number, "the process that searches for it ended")
    answer = json.loads(line)
    if isinstance(answer, str):
        return answer
    raise SubstitutionError(number, str(answer["fault"]))


def _replaced(found: re.Pattern[str], replacement: str, text: str) -> Any:
    result = found.sub(replacement, text)
    if len(result) > LONGEST:
        return {"fault": f"its result would have over {LONGEST:,} characters"}
    return result


def _serve() -> None:
    """Answer each line of standard input, in this module's process."""
    pattern, replacement = json.loads(sys.stdin.readline())
    found = re.compile(pattern)
    for line in sys.stdin:
        try:
            answer = _replaced(found, replacement, json.loads(line))
        except (MemoryError, RecursionError) as error:
            answer = {"fault": f"it fails ({type(error).__name__})"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
