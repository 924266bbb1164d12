"""`impasto dataset edit`: edit many captions, with a preview and undo."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto.cli.dataset_annotation import caption_ending, dataset_folders_of, undo_command
from impasto.cli.dataset_options import CACHE_DIR, LOCAL_SOURCE, local_dataset_config
from impasto.cli.local_paths import READ, WRITTEN
from impasto.cli.ordered import OrderedCommand, in_order
from impasto.errors import ConfigError
from impasto.parsing import parse_json, read_text, split_lines
from impasto.progress import counted
from impasto.remote_paths import shown

if TYPE_CHECKING:
    from impasto.annotate.caption_files import CaptionChange, CaptionChoice, CaptionFile
    from impasto.annotate.dataset_folders import DatasetFolders
    from impasto.annotate.editing import Operation
    from impasto.cli.console import Console
    from impasto.data.records import SkippedFile

_OPERATIONS = ("add", "remove", "replace", "regex", "move", "set")


@click.command(cls=OrderedCommand)
@LOCAL_SOURCE
@click.option(
    "--add", multiple=True, metavar="TAG[@PLACE]",
    help="Add a tag where it is missing; PLACE is first, last (default) or a number from 1.",
)  # fmt: skip
@click.option("--remove", multiple=True, metavar="TAG", help="Remove a tag.")
@click.option("--replace", multiple=True, metavar="OLD=NEW", help="Replace a tag by another.")
@click.option(
    "--regex", multiple=True, nargs=2, metavar="PATTERN REPLACEMENT",
    help=r"Replace all matches of a regular expression in the whole caption; \1 inserts a group.",
)  # fmt: skip
@click.option(
    "--move",
    multiple=True,
    nargs=2,
    metavar="TAG PLACE",
    help="Move a tag to PLACE: first, last, or a number such as 3.",
)
@click.option("--set", multiple=True, metavar="TEXT", help="Write TEXT as the whole caption.")
@click.option(
    "--operations", type=READ, metavar="FILE",
    help="Read the operations from a JSON list instead: [{\"do\": \"add\", \"tag\": \"x\", "
    "\"at\": \"last\"}].",
)  # fmt: skip
@click.option("--where-tag", multiple=True, metavar="TAG", help="Only captions with this tag.")
@click.option(
    "--where-not-tag",
    multiple=True,
    metavar="TAG",
    help="Only captions without this tag.",
)
@click.option(
    "--where-text", multiple=True, metavar="TEXT",
    help="Only captions that contain TEXT, ignoring case.",
)  # fmt: skip
@click.option(
    "--images", metavar="FILE", help="Only the images listed in FILE, by their paths below the "
    "folder; - reads standard input. One path per line, or separated by zero bytes.",
)  # fmt: skip
@click.option(
    "--previewed", type=WRITTEN, metavar="FILE",
    help="Without --yes, record in FILE the captions that would change; with --yes, change only "
    "those, and skip any that were edited since.",
)  # fmt: skip
@click.option("--separator", default=",", show_default=True, help="Separator between tags.")
@click.option(
    "--ending", default=".txt", show_default=True, callback=caption_ending,
    help="File extension of the files to edit.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show the changes and write nothing.")
@click.option("--yes", is_flag=True, help="Write without asking.")
@click.option("--shown", type=click.IntRange(0), metavar="N", help="Show the first N changes only.")
@click.option(
    "--json", "as_json", is_flag=True,
    help="Print the changes as one JSON object; they are written with --yes only.",
)  # fmt: skip
@CACHE_DIR
def edit(source: Path, as_json: bool, **options: Any) -> None:  # noqa: FBT001
    """Edit the captions of many images of SOURCE; show the changes before writing.

    Operations may be repeated and are applied in the order given. Each line of a caption is edited
    separately, except by --regex and --set, which apply to the whole caption. Files are written as
    UTF-8.

    \b
    impasto dataset edit images --remove solo --add "my style@first"
    impasto dataset edit images --where-tag cat --replace "cat=black cat" --dry-run
    impasto dataset edit images --regex "\\bgirl\\b" woman --ending .caption
    """  # noqa: D301 - the backspace tells click to keep the lines
    from impasto.annotate.caption_files import CaptionChoice
    from impasto.annotate.editing import separator_fault
    from impasto.cli.console import Console

    console, writes = Console(), options["yes"] and not options["dry_run"]
    operations = _operations(options)
    if reason := separator_fault(operations, options["separator"]):
        raise ConfigError(f"--separator {options['separator']!r}: {reason}.")
    choice = CaptionChoice(
        options["where_tag"], options["where_not_tag"], options["where_text"],
        _image_names(options["images"]),
    )  # fmt: skip
    editing = _Editing(source, operations, choice, options, console, is_silent=as_json)
    shown = None
    if not writes:
        shown = editing.preview()
        if not as_json:
            editing.show(shown)
        asks = shown and not (options["dry_run"] or as_json)
        writes = bool(asks and click.confirm("Write them?"))
    written = editing.write(shown) if writes else None
    if as_json:
        editing.print_json(written if written is not None else shown or [])
    elif options["dry_run"]:
        console.note("Nothing was written (--dry-run).")


@dataclass
class _Editing:
    """An edit of the captions of a dataset, to be previewed or written.

    Attributes:
        source: The dataset.
        operations: The operations, in order.
        choice: Selects the captions to edit.
        options: The options of the command.
        console: Prints the changes and the summary.
        is_silent: Whether only JSON is printed.
    """

    source: Path
    operations: Sequence[Operation]
    choice: CaptionChoice
    options: dict[str, Any]
    console: Console
    is_silent: bool

    def __post_init__(self) -> None:
        self.config = local_dataset_config(self.source, self.options)
        self.folders: DatasetFolders = dataset_folders_of(self.config)
        self.skipped: list[SkippedFile] = []
        self.captions: Sequence[CaptionFile] = ()
        self.total = 0
        self.edit: str | None = None

    def changes(self, done: frozenset[str] = frozenset()) -> list[CaptionChange]:
        """Scan the dataset and return the changes to its captions; skip the files in `done`."""
        from impasto import files
        from impasto.annotate.caption_files import changes_of, find_captions
        from impasto.datasets.build import scan_all
        from impasto.progress import SilentProgress

        is_dry = self.options["dry_run"]
        with files.dry_run() if is_dry else contextlib.nullcontext():
            scan = scan_all(self.config, SilentProgress() if self.is_silent else self.console)
        self.captions, odd = find_captions(scan.records, self.folders, self.options["ending"])
        self.skipped = [*scan.skipped, *odd]
        chosen = self.choice.of(self.captions, self.options["separator"])
        self.total = len(chosen)
        return changes_of(chosen, self.operations, self.options["separator"], done)

    def preview(self) -> list[CaptionChange]:
        """Return the changes that `write` still has to make; `--previewed` records them."""
        from impasto.annotate.journal import done_before
        from impasto.annotate.previewed import note_preview

        changes = self.changes(done_before(self.folders, self._command()))
        if self.options["previewed"] is not None and not self.options["dry_run"]:
            note_preview(self.options["previewed"], changes)
        return changes

    def show(self, changes: Sequence[CaptionChange]) -> None:
        """Print the changes, limited by `--shown`."""
        for item in self.skipped:
            self.console.note(f"Skipped: {shown(item.path)}: {item.reason}")
        for change in changes[: self.options["shown"]]:
            lines = [str(change.caption.file)]
            lines += [f"- {line}" for line in change.caption.text.split("\n")]
            lines += [f"+ {line}" for line in change.after.split("\n")]
            self.console.note("\n".join(lines))
        self.console.note(f"{len(changes):,} of {counted(self.total, 'captions')} would change.")

    def write(self, agreed: Sequence[CaptionChange] | None = None) -> list[CaptionChange]:
        """Write the edit; captions are read again under the lock that keeps other commands out.

        Args:
            agreed: Write only these confirmed changes; None writes all, or those of `--previewed`.
        """
        from impasto.annotate.journal import Journal
        from impasto.annotate.previewed import as_previewed, marks_of, read_preview
        from impasto.progress import SilentProgress

        progress = SilentProgress() if self.is_silent else self.console
        with Journal(self.folders, self._command()) as journal:
            changes = self.changes(frozenset(journal.done))
            file = self.options["previewed"]
            if agreed is not None or file is not None:
                marks = read_preview(file) if agreed is None else marks_of(agreed)
                changes, odd = as_previewed(marks, changes, self.captions, journal.done)
                self.skipped += odd
            with progress.stage("Writing captions", len(changes), "files") as advance:
                for change in changes:
                    journal.write(change.caption.file, change.after, change.caption.name)
                    advance(1)
            self.edit = journal.name if changes else None
        if not self.is_silent:
            self._tell(len(changes))
        return changes

    def _tell(self, number: int) -> None:
        for item in self.skipped:
            self.console.note(f"Skipped: {shown(item.path)}: {item.reason}")
        of = counted(self.total, "captions")
        self.console.note(f"{number:,} of {of} changed.")
        if self.edit is not None:
            undo = undo_command(
                self.source, self.folders, self.edit, cache_dir=self.options["cache_dir"]
            )
            self.console.note(f"Written as edit {self.edit}. Undo with: {undo}")

    def _command(self) -> str:
        """Return the key of the edit: its operations in words, and a hash of its options."""
        from impasto.annotate.editing import describe_all
        from impasto.canonical import canonical

        names = ("separator", "ending", "where_tag", "where_not_tag", "where_text")
        whole = canonical(
            [list(self.operations), self.choice.images, *(self.options[name] for name in names)]
        )
        texts = describe_all(self.operations)
        return canonical(["edit", texts, hashlib.sha256(whole.encode("ascii")).hexdigest()])

    def print_json(self, changes: Sequence[CaptionChange]) -> None:
        """Print the changes that were made, or would be, as one JSON object."""
        from impasto.cli.harmless import json_text

        found = {
            "written": self.edit is not None,
            "edit": self.edit,
            "captions": self.total,
            "changed": len(changes),
            "changes": [
                {
                    "image": change.caption.shown,
                    "file": str(change.caption.file),
                    "before": change.caption.text,
                    "after": change.after,
                }
                for change in changes[: self.options["shown"]]
            ],
            "skipped": [{"path": str(s.path), "reason": s.reason} for s in self.skipped],
        }
        click.echo(json_text(found))


def _operations(options: dict[str, Any]) -> list[Operation]:
    """Parse the operations in their order, from the options or from a file."""
    from impasto.annotate.editing import operation_of

    given = in_order(options, *_OPERATIONS)
    if bool(given) == (options["operations"] is not None):
        raise click.UsageError(
            "Give operations: --add, --remove, --replace, --regex, --move, --set; or --operations "
            "with a file of them, but not both."
        )
    try:
        values = [_value(name, value) for name, value in given]
        if options["operations"] is not None:
            values = _listed(options["operations"])
        return [operation_of(value) for value in values]
    except ValueError as error:
        raise ConfigError(f"An operation is invalid: {error}.") from error


def _value(name: str, value: Any) -> dict[str, str]:
    from impasto.annotate.editing import split_position, split_replacement

    if name == "add":
        tag, at = split_position(value)
        return {"do": name, "tag": tag, "at": at}
    if name == "replace":
        old, new = split_replacement(value)
        return {"do": name, "tag": old, "by": new}
    if name == "regex":
        return {"do": name, "pattern": value[0], "by": value[1]}
    if name == "move":
        return {"do": name, "tag": value[0], "at": value[1]}
    return {"do": name, "text" if name == "set" else "tag": value}


def _listed(file: Path) -> list[Any]:
    try:
        values = parse_json(read_text(file))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror or error}).") from error
    if not isinstance(values, list) or not values:
        raise ValueError(f"{file} is not a list of operations")
    return values


def _image_names(file: str | None) -> frozenset[str] | None:
    """Read the image paths listed in a file, or in standard input for "-"; None without a file."""
    if file is None:
        return None
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"--images {file} cannot be read ({error.strerror or error}).") from error
    try:
        names = frozenset(name for name in _lines_of(content) if name.strip())
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"--images {file} is damaged: it starts as UTF-16 and is not valid UTF-16."
        ) from error
    if not names:
        raise ConfigError(f"--images {file} lists no images.")
    return names


def _lines_of(content: bytes) -> list[str]:
    """Split a list of file names into names.

    They are in the encoding of file names, one per line or separated by zero bytes as from `find
    -print0`; or UTF-16 or UTF-8 with a byte order mark, as Notepad and PowerShell write it.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return split_lines(content.decode("utf-16"))
    content = content.removeprefix(codecs.BOM_UTF8)
    lines = content.split(b"\0") if b"\0" in content else content.splitlines()
    return [os.fsdecode(line) for line in lines]
