"""The last word on faults of the operating system that no part of a verb has put into words.

A name that is too long, a folder that may not be entered, a share that went away: whatever a verb
looks at, it ends in one sentence with the path and the system's reason.
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
"""Verb -> what it reads, whose exit code it ends with; the others read settings."""

_LONGEST = 300


def told(error: OSError, verb: str | None = None) -> ImpastoError | None:
    """The error as a sentence; None where it is no refusal of the system that names a file.

    Args:
        error: What was raised; libraries raise such errors for their own ends too, without number.
        verb: The verb that ran.
    """
    if error.errno is None or error.filename is None:
        return None
    kind = StorageError if error.errno in _OF_WRITING else _KINDS.get(verb, ConfigError)
    names = [_shown(name) for name in (error.filename, error.filename2) if name is not None]
    return kind(
        f"The system refuses {' and '.join(names)}: {error.strerror or error}. Check the name, and "
        f"whether you may read that file and enter its folder."
    )


def _shown(name: object) -> str:
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"
