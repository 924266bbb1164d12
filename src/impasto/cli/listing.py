"""Lists of items in folders: a table for users, or one JSON object per line for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

T = TypeVar("T")


def print_list(
    found: Sequence[T],
    row: Callable[[T], tuple[str, str]],
    as_json: Callable[[T], Mapping[str, Any]] | None,
    nothing: str,
) -> None:
    """Print a list of items as a table or as JSON lines.

    Args:
        found: The items, in order.
        row: Returns the name and description of an item for the table.
        as_json: Returns the JSON object of an item; None prints the table.
        nothing: The sentence to print instead of an empty table.
    """
    from impasto.cli.console import Console

    if as_json is not None:
        for one in found:
            click.echo(json.dumps(as_json(one), ensure_ascii=True))
    elif found:
        Console().table(dict(map(row, found)))
    else:
        Console().note(nothing)


def existing_folders(folders: Sequence[Path], advice: str = "") -> tuple[Path, ...]:
    """Return the given folders, or the current folder if none is given.

    Raises:
        RunError: One does not exist; the message ends with `advice`.
    """
    from impasto.errors import RunError

    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"{folder} is not a folder.{advice}")
    return tuple(folders) or (Path(),)


def folder_names(folders: Sequence[Path]) -> str:
    """Return the folders joined by "or" for a sentence; "the current folder" if there are none."""
    return " or ".join(map(str, folders)) or "the current folder"
