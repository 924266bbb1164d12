r"""Regular expressions on captions, in a separate process that is ended when one takes too long.

Some patterns take longer than the universe has time for on some texts (`(a+)+b` on forty letters
a), and Python's `re` cannot be given a limit. So the pattern runs in a small process, one text
after the other, and `substitute` ends it where a single text takes longer than it may. Imports
nothing but the standard library, so that the process is there at once.
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
"""Seconds that one text may take."""

LONGEST = 1 << 20
"""Characters of a result at most: a scan refuses captions of more bytes."""


class SubstitutionError(Exception):
    """What went wrong, in words, and with which of the texts.

    Attributes:
        number: Which of the texts, from 0.
        reason: What went wrong.
    """

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number, self.reason = number, reason


def why_not_a_pattern(pattern: str, replacement: str) -> str:
    """Why a pattern or its replacement is refused; empty where both can be used."""
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
        pattern: As Python's `re` has it, without flags but those that it sets itself: `(?i)`.
        replacement: With `\1` or `\g<name>` for groups.
        limit_s: Seconds that one text may take.

    Raises:
        SubstitutionError: One takes longer, or becomes too long.
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
    with contextlib.suppress(OSError, ValueError):  # it was ended
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
        raise SubstitutionError(number, "the process that looks for it ended")
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
    """Answer each line of standard input, of this module's process."""
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
