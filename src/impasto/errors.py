"""All errors that Impasto reports to the user, and the exit code of each.

    ImpastoError                  1   anything below, or a fault with no better name
    ├── ConfigError               2   a setting, flag or argument is wrong
    ├── DatasetError              3   images or captions are missing or unusable
    ├── ModelError                4   a model file is missing, incomplete or of another kind
    │   └── OtherFamilyError  4   its family is not that of model.family
    ├── RunError                  5   a run directory already exists, is missing or does not match
    ├── StorageError              6   a disk or an object store cannot be used: full, no permission
    │   └── NotSentError      6   a run has ended, but could not be uploaded completely
    ├── MissingDependencyError    7   a required package or device is missing
    ├── NonFiniteLossError        8   the loss or the gradient became NaN or infinite
    ├── OutOfMemoryError          9   VRAM or RAM ran out
    └── Interrupted         130, 143  stopped by Ctrl-C or SIGTERM, with the state saved

A message is one paragraph: what is wrong, where, what was found, what was expected, what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class ImpastoError(Exception):
    """The base of all errors that are reported as one paragraph, without a traceback."""

    exit_code = 1


class ConfigError(ImpastoError):
    """A setting is unknown, of the wrong type, or contradicts another.

    Args:
        message: The paragraph to show.
        faults: Key path -> what is wrong there, as far as it is known. Faults of a section are
            under its name, faults of the whole under an empty key.
    """

    exit_code = 2

    def __init__(self, message: str, faults: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.faults: Mapping[str, str] = dict(faults or {})


class DatasetError(ImpastoError):
    """The images, captions or cached latents are missing, damaged or otherwise unusable."""

    exit_code = 3


class ModelError(ImpastoError):
    """A base model is missing, incomplete, or not one that Impasto trains."""

    exit_code = 4


class OtherFamilyError(ModelError):
    """A base model belongs to another family than `model.family` states.

    Args:
        message: The paragraph to show.
        source: The path or id of the model.
        families: The families that it may belong to, as values of `model.family`.
    """

    def __init__(self, message: str, source: str, families: tuple[str, ...]) -> None:
        super().__init__(message)
        self.source, self.families = source, families


class RunError(ImpastoError):
    """A run directory already exists, is missing, or belongs to something else."""

    exit_code = 5


class StorageError(ImpastoError):
    """A file or an object store could not be written or read; no file is half written."""

    exit_code = 6


class NotSentError(StorageError):
    """A run has ended, but could not be uploaded completely to its object store.

    Args:
        message: The paragraph to show.
        folder: The local folder that contains the whole run.
    """

    def __init__(self, message: str, folder: Path) -> None:
        super().__init__(message)
        self.folder = folder


class MissingDependencyError(ImpastoError):
    """A package or a device that this command needs is missing.

    Args:
        message: The paragraph to show.
        extra: The extra of pyproject.toml that contains the package, if any; `start.py` installs
            it.
    """

    exit_code = 7

    def __init__(self, message: str, extra: str | None = None) -> None:
        super().__init__(message)
        self.extra = extra


class NonFiniteLossError(ImpastoError):
    """The loss or the gradient became NaN or infinite; the last good state was saved first."""

    exit_code = 8


class OutOfMemoryError(ImpastoError):
    """VRAM or RAM ran out; everything that could be saved was saved first."""

    exit_code = 9


class Interrupted(ImpastoError):  # noqa: N818 - not an error of the program, but the user's wish
    """Training was stopped by a signal, with its state saved.

    Args:
        message: The paragraph to show.
        signal_number: The signal; the exit code is 128 plus its number.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
