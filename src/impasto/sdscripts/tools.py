"""What the scripts of sd-scripts' `finetune/` share: their flags, and the images of a folder."""

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
    """A parser whose errors are those of Impasto."""

    def error(self, message: str) -> Any:
        """Report a wrong command line as one paragraph."""
        raise ConfigError(f"{self.prog}: {message}. --help lists the flags.")


def run_tool(tool: Callable[[argparse.Namespace, Console], None], parser: ToolParser) -> None:
    """Read the command line, run a tool, and exit with a documented code."""

    def command() -> None:
        from impasto.cli.console import Console

        options = parser.parse_args(sys.argv[1:])
        tool(options, Console())

    run_and_report(command)


def image_parser(prog: str, description: str, ending: str, *, old: bool = True) -> ToolParser:
    """A parser with what nearly all of these scripts take.

    Args:
        prog: The script's name.
        description: What it does.
        ending: The default of `--caption_extension`.
        old: Whether the misspelt `--caption_extention` is taken too.
    """
    parser = ToolParser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("train_data_dir", type=Path, help="folder of images")
    names = ["--caption_extension", *(["--caption_extention"] if old else [])]
    parser.add_argument(
        *names, dest="caption_extension", default=ending, type=_ending, help="of the text files"
    )
    parser.add_argument("--recursive", action="store_true", help="also look in folders below")
    parser.add_argument("--debug", action="store_true", help="print the words of each image")
    return parser


def _ending(text: str) -> str:
    from impasto.annotate.dataset_folders import normalize_ending

    try:
        return normalize_ending(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def positive(text: str) -> int:
    """A number of things of which there is at least one, for a parser."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def images_of(folder: Path, console: Console, *, recursive: bool) -> Sequence[ImageRecord]:
    """The usable images of a folder; files that are skipped are noted.

    Raises:
        DatasetError: There are none.
    """
    from impasto.data.scanning.scan import scan_folder

    scan = scan_folder(folder, recursive=recursive, progress=console)
    for item in scan.skipped:
        console.note(f"Passed over: {item.path}: {item.reason}")
    for line in scan.describe_unused():
        console.note(line)
    return scan.records


def warn_ignored_flags(options: argparse.Namespace, console: Console, **reasons: str) -> None:
    """Name the flags that were given and change nothing, with the reason."""
    for name, reason in reasons.items():
        if getattr(options, name) not in (None, False, ""):
            console.note(f"--{name}: {reason}.")
