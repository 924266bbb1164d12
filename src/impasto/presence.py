"""Looks whether a file or folder is there, for names that people give.

`Path.exists`, `is_file` and `is_dir` of Python 3.11 raise where the system refuses to look: a name
of over 255 bytes, or a folder that may not be entered. What cannot be looked at is not there for
whoever asks, who then says so in words; a check of input goes through these.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path


def exists(path: Path) -> bool:
    """Whether there is anything of that name, as far as this process may look."""
    return os.path.exists(path)  # noqa: PTH110 - False where the system refuses to look


def is_file(path: Path) -> bool:
    """Whether there is a regular file of that name, as far as this process may look."""
    return os.path.isfile(path)  # noqa: PTH113 - False where the system refuses to look


def is_dir(path: Path) -> bool:
    """Whether there is a folder of that name, as far as this process may look."""
    return os.path.isdir(path)  # noqa: PTH112 - False where the system refuses to look


def free_place(wanted: Path) -> Path:
    """The first of `wanted`, `wanted-2`, `wanted-3` ... that is not there; `a-2` goes on to `a-3`.

    Whoever writes there has to make sure of it again: somebody else may be as quick.
    """
    stem, _, number = wanted.name.rpartition("-")
    base = stem if stem and number.isdecimal() and number.isascii() else wanted.name
    others = (wanted.with_name(f"{base}-{n}") for n in itertools.count(2))
    return next(path for path in itertools.chain([wanted], others) if not exists(path))
