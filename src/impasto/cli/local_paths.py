"""Types of arguments and options that take a path on this machine, not a URL.

A command uses one of these where it opens or writes files itself. Runs, models and images, which
may be in an object store, are `click.Path` or plain text.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from impasto.errors import ConfigError
from impasto.remote_paths import is_remote, location_fault, shown


class LocalPath(click.Path):
    """A path on this machine; a URL is rejected before anything is read, computed or written.

    Without this, a command would train or measure first and then fail, or create a folder called
    `s3:`.

    Args:
        advice: What to do instead, as a sentence.
        exists: Whether the path must exist.
        dir_okay: Whether it may be a folder.
        file_okay: Whether it may be a file.
    """

    def __init__(
        self, advice: str, *, exists: bool = False, dir_okay: bool = True, file_okay: bool = True
    ) -> None:
        super().__init__(exists=exists, dir_okay=dir_okay, file_okay=file_okay, path_type=Path)
        self._advice = advice

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """Return the path as click parses it, unless it is a URL.

        Raises:
            ConfigError: It is a URL.
        """
        if is_remote(value) or location_fault(Path(value)):
            raise ConfigError(
                f"{_name(param)} is {shown(value)}, which is a URL; expected a path on this "
                f"machine. {self._advice}"
            )
        return super().convert(value, param, ctx)


def _name(param: click.Parameter | None) -> str:
    """Return the flag of an option, or the name of an argument in the help text."""
    if param is None:
        return "The path"
    return param.opts[0] if isinstance(param, click.Option) else param.human_readable_name


COPY = "Copy it to this machine first."
READ = LocalPath(COPY)
"""A file or folder to read."""

READ_FILE = LocalPath(COPY, exists=True, dir_okay=False)
"""An existing file to read."""

WRITTEN = LocalPath("Write to this machine, and copy it there afterwards.")
"""A file or folder to write."""

LISTED_RUNS = LocalPath("impasto show and compare take the URL of a run.")
"""A folder to search for runs."""

SHARED = "It must be on this machine, whose processes share it."
KEPT = LocalPath(SHARED)
"""The folder of the queue or of tasks."""

KEPT_FOLDER = LocalPath(SHARED, file_okay=False)
"""The folder of the queue or of a task, which must not be a file."""

MANAGED = LocalPath("Use the tools of the object store to list and delete models there.")
"""A model to list, delete or restore, or a folder of models."""
