"""Turns every exception that the content of an untrusted file causes into an Impasto error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from impasto.errors import ImpastoError, ModelError

LONGEST_REASON = 160


@contextmanager
def untrusted(path: Path | str) -> Iterator[None]:
    """Turn exceptions while a file's content is parsed into a ModelError.

    The bytes of a damaged or malicious file decide how libraries fail on them: too deep, too large,
    of the wrong type, missing, not finite. Their exceptions, MemoryError and RecursionError
    included, tell the user nothing but that the file is invalid.

    Args:
        path: The file, for the message.

    Raises:
        ModelError: An exception other than an Impasto error was raised in the block.
    """
    try:
        yield
    except ImpastoError:
        raise
    except Exception as error:  # libraries raise any class on a malicious file
        raise ModelError(
            f"{path} is damaged or not what it claims to be ({reason_of(error)}). Download or copy "
            f"it again."
        ) from error


def reason_of(error: BaseException) -> str:
    """Return the first line of an error, shortened, after its type; only the type if empty."""
    try:
        text = str(error).strip().partition("\n")[0]
    except (
        RecursionError,
        MemoryError,
        ValueError,
    ):  # it quotes a value that was too deep or too large
        text = ""
    if len(text) > LONGEST_REASON:
        text = f"{text[:LONGEST_REASON]} ..."
    name = type(error).__name__
    return f"{name}: {text}" if text else name
