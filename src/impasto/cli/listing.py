"""How commands list what is in folders: a table for people, a JSON object a line for programs."""

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
    """Print what was found.

    Args:
        found: It, in its order.
        row: Name and words of one in the table.
        as_json: What programs are given of one; None prints the table.
        nothing: The sentence that stands for an empty table.
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
    """The folders that were given, or the current one.

    Raises:
        RunError: One is not there; with `advice`.
    """
    from impasto.errors import RunError

    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"{folder} is not a folder.{advice}")
    return tuple(folders) or (Path(),)


def folder_names(folders: Sequence[Path]) -> str:
    """Folders in a sentence, where none stands for the current one."""
    return " or ".join(map(str, folders)) or "the current folder"
