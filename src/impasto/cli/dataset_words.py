"""What `impasto dataset tag` and `caption` share: where words go, and going through pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from impasto.cli.dataset_options import dataset_config

if TYPE_CHECKING:
    from impasto.annotate.annotation import Annotated, Annotator, Target
    from impasto.cli.console import Console
    from impasto.data.records import ImageRecord

F = TypeVar("F", bound=Callable[..., Any])


def words_options(ending: str) -> Callable[[F], F]:
    """Where words go, and what becomes of those that are there."""
    options = (
        click.option("--ending", default=ending, show_default=True, help="Of the files written."),
        click.option(
            "--metadata", type=click.Path(path_type=Path), help="Write into this JSON instead."
        ),
        click.option(
            "--existing",
            type=click.Choice(["missing", "overwrite", "append"]),
            default="missing",
            show_default=True,
            help="Only pictures without words; all; or all, after what is there.",
        ),
        click.option("--dry-run", is_flag=True, help="Print the words and write nothing."),
        click.option("--batch", default=8, show_default=True, type=click.IntRange(1)),
        click.option("--workers", type=click.IntRange(0), help="Decoding threads."),
        click.option("--stop-on-error", is_flag=True, help="End at a picture that is unreadable."),
    )

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def write_words(
    source: Path,
    what: str,
    annotator: Annotator[Any],
    target: Target,
    options: dict[str, Any],
    console: Console,
) -> None:
    """Go through the pictures of SOURCE with a tagger or a captioner, and say what was done."""
    from impasto import files
    from impasto.annotate.annotation import annotate
    from impasto.annotate.words import Journal

    config = dataset_config(source, {"cache_dir": options["cache_dir"]})
    dry = options["dry_run"]
    with files.nothing_kept() if dry else contextlib.nullcontext():
        records = usable_pictures(config, console)

    def show(record: ImageRecord, text: str) -> None:
        console.note(f"{record.name}: {text}")

    def go(journal: Journal | None) -> Annotated[Any]:
        return annotate(
            records,
            annotator,
            target,
            journal,
            console,
            batch_size=options["batch"],
            workers=options["workers"],
            on_error="stop" if options["stop_on_error"] else "skip",
            show=show if dry else None,
        )

    if dry:
        done = go(None)
    else:
        with Journal(
            config.derived_dir / "annotations", f"{what} {options['existing']}"
        ) as journal:
            done = go(journal)
    console.table(
        {
            "Would get words" if dry else "With words now": done.written,
            "Would stay as they are" if dry else "Left as they were": done.skipped,
            "Nothing to say": done.empty,
            "Passed over": len(done.set_aside),
        }
    )
    if dry:
        console.note("Nothing was written (--dry-run).")
    elif done.written:
        console.note(f"Take it back with: impasto dataset undo {source}")


def usable_pictures(config: Any, console: Console) -> Sequence[ImageRecord]:
    """The pictures; what is set aside is said."""
    from impasto.training.pictures import scan_all

    scan = scan_all(config, console)
    for item in scan.set_aside:
        console.note(f"Passed over: {item.path}: {item.reason}")
    return scan.records


def words_target(options: dict[str, Any], join: Callable[[str, str], str], column: Any) -> Target:
    """Sidecars or metadata, as the options say; `join` puts words together for `append`."""
    from impasto.annotate.words import MetadataWords, Sidecars

    if options["metadata"] is None:
        return Sidecars(options["ending"], options["existing"], join)
    return MetadataWords(
        options["metadata"], column, options["existing"], join, lambda record: record.name
    )
