"""Turns whatever the content of a stranger's file provokes into one of Impasto's errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from impasto.errors import ImpastoError, ModelError

LONGEST_REASON = 160


@contextmanager
def untrusted(path: Path | str) -> Iterator[None]:
    """While the content of a file is taken apart: a file that makes no sense is a ModelError.

    The bytes of a damaged or hostile file decide how libraries fail on them: too deep, too large,
    of the wrong type, missing, not finite. What they raise, MemoryError and RecursionError
    included, says nothing to the user but that the file is not what it should be.

    Args:
        path: The file, for the message.

    Raises:
        ModelError: Something else than an error of Impasto's own was raised inside.
    """
    try:
        yield
    except ImpastoError:
        raise
    except Exception as error:  # whatever libraries raise on what a stranger has written
        raise ModelError(
            f"{path} is damaged or not what it claims to be ({reason_of(error)}). Download or copy "
            f"it again."
        ) from error


def reason_of(error: BaseException) -> str:
    """The first line of an error, shortened; its type where it says nothing."""
    try:
        text = str(error).strip().partition("\n")[0]
    except (RecursionError, MemoryError, ValueError):  # it quotes what was too deep or too large
        text = ""
    if len(text) > LONGEST_REASON:
        text = f"{text[:LONGEST_REASON]} ..."
    name = type(error).__name__
    return f"{name}: {text}" if text else name
