"""Shared by the scripts of sd-scripts' `finetune/`: common flags, and the images of a folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impasto.cli.main import run_and_report
from impasto.errors import ConfigError

if TYPE_CHECKING:
    from impasto.cli.console import Console
    from impasto.data.records import ImageRecord


class ToolParser(argparse.ArgumentParser):
    """A parser that raises Impasto's `ConfigError` for a wrong command line."""

    def error(self, message: str) -> Any:
        """Raise a `ConfigError` with the message."""
        raise ConfigError(f"{self.prog}: {message}. --help lists the flags.")


def run_tool(tool: Callable[[argparse.Namespace, Console], None], parser: ToolParser) -> None:
    """Read the command line, run a tool, and exit with a documented code."""

    def command() -> None:
        from impasto.cli.console import Console

        options = parser.parse_args(sys.argv[1:])
        tool(options, Console())

    run_and_report(command)


def image_parser(prog: str, description: str, ending: str, *, old: bool = True) -> ToolParser:
    """Build a parser with the arguments that nearly all of these scripts have.

    Args:
        prog: The script's name.
        description: The script's description.
        ending: The default of `--caption_extension`.
        old: Whether the misspelt `--caption_extention` is accepted too.
    """
    parser = ToolParser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("train_data_dir", type=Path, help="folder of images")
    names = ["--caption_extension", *(["--caption_extention"] if old else [])]
    parser.add_argument(
        *names,
        dest="caption_extension",
        default=ending,
        type=_ending,
        help="file extension of the caption files",
    )
    parser.add_argument("--recursive", action="store_true", help="include subfolders")
    parser.add_argument("--debug", action="store_true", help="print the caption of each image")
    return parser


def _ending(text: str) -> str:
    from impasto.annotate.dataset_folders import normalize_ending

    try:
        return normalize_ending(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def positive(text: str) -> int:
    """Parse a whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def images_of(folder: Path, console: Console, *, recursive: bool) -> Sequence[ImageRecord]:
    """Return the usable images of a folder; print each skipped file with its reason.

    Raises:
        DatasetError: There are no usable images.
    """
    from impasto.data.scanning.scan import scan_folder

    scan = scan_folder(folder, recursive=recursive, progress=console)
    for item in scan.skipped:
        console.note(f"Skipped: {item.path}: {item.reason}")
    for line in scan.describe_unused():
        console.note(line)
    return scan.records


def warn_ignored_flags(options: argparse.Namespace, console: Console, **reasons: str) -> None:
    """Print the given flags that have no effect, each with the reason."""
    for name, reason in reasons.items():
        if getattr(options, name) not in (None, False, ""):
            console.note(f"--{name}: {reason}.")
