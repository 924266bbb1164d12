"""Turns operating system errors that no command has handled into messages.

A name that is too long, a folder without permission, a network share that is gone: the message
names the path and the system's reason.
"""

from __future__ import annotations

import errno

from impasto.errors import (
    ConfigError,
    DatasetError,
    ImpastoError,
    ModelError,
    RunError,
    StorageError,
)

_OF_WRITING = {errno.ENOSPC, errno.EROFS, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_KINDS: dict[str | None, type[ImpastoError]] = {
    "dataset": DatasetError,
    "init": ModelError,
    "inspect": ModelError,
    "convert": ModelError,
    "sample": ModelError,
    "resume": RunError,
    "report": RunError,
}
"""Command -> the error class for its input, which sets the exit code; others read settings."""

_LONGEST = 300


def told(error: OSError, verb: str | None = None) -> ImpastoError | None:
    """Convert an OSError about a file to an error with a message; None for any other OSError.

    Args:
        error: The error; libraries also raise OSError for other reasons, without errno.
        verb: The command that ran.
    """
    if error.errno is None or error.filename is None:
        return None
    kind = StorageError if error.errno in _OF_WRITING else _KINDS.get(verb, ConfigError)
    names = [_shown(name) for name in (error.filename, error.filename2) if name is not None]
    return kind(
        f"The system refuses access to {' and '.join(names)}: {error.strerror or error}. Check the "
        f"name, and that you have permission for the file and its folder."
    )


def _shown(name: object) -> str:
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"
