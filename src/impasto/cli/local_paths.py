"""The types of arguments and options that take a path of this machine and no URL.

A verb asks for one of these where it opens or writes files itself. Runs, models and images, which
may be in an object store, are `click.Path` or plain text.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from impasto.errors import ConfigError
from impasto.remote_paths import is_remote, location_fault, shown


class LocalPath(click.Path):
    """A path of this machine; a URL is refused before anything is read, computed or written.

    Without this, a verb would train or measure first and then be refused, or make a folder called
    `s3:`.

    Args:
        advice: What to do instead, as a sentence.
        exists: Whether something has to be there.
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
        """Give the path back as click reads it, unless it is a URL.

        Raises:
            ConfigError: It is a URL.
        """
        if is_remote(value) or location_fault(Path(value)):
            raise ConfigError(
                f"{_name(param)} is {shown(value)}, which is a URL; expected a path of this "
                f"machine. {self._advice}"
            )
        return super().convert(value, param, ctx)


def _name(param: click.Parameter | None) -> str:
    """An option by its flag, an argument by its name in the help text."""
    if param is None:
        return "The path"
    return param.opts[0] if isinstance(param, click.Option) else param.human_readable_name


COPY = "Copy it to this machine first."
READ = LocalPath(COPY)
"""What is read."""

READ_FILE = LocalPath(COPY, exists=True, dir_okay=False)
"""A file that is read and has to be there."""

WRITTEN = LocalPath("Write to this machine, and copy it there afterwards.")
"""What is written."""

LISTED_RUNS = LocalPath("impasto show and compare take the URL of a run.")
"""Folders in which runs are looked for."""

SHARED = "It has to be on this machine, whose processes share it."
KEPT = LocalPath(SHARED)
"""Folders of the queue and of tasks."""

KEPT_FOLDER = LocalPath(SHARED, file_okay=False)
"""A folder of the queue or of a task, where no file may be."""

MANAGED = LocalPath("What is in a store is listed and deleted with the store's own programs.")
"""Models that are listed, deleted and restored."""
