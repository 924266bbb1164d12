"""`impasto dataset clean` and `tags`: clean captions and tags by rules, and count tags."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from impasto.cli.dataset_annotation import (
    caption_ending,
    dataset_folders_of,
    undo_command,
    usable_images,
)
from impasto.cli.dataset_options import (
    CACHE_DIR,
    LOCAL_SOURCE,
    local_dataset_config,
    require_own_files,
)
from impasto.parsing import read_caption_file
from impasto.progress import counted

if TYPE_CHECKING:
    from impasto.annotate.cleaning import Cleaner
    from impasto.annotate.dataset_folders import DatasetFolders
    from impasto.cli.console import Console
    from impasto.data.records import ImageRecord


@click.command()
@LOCAL_SOURCE
@click.option(
    "--rules",
    default="plain",
    show_default=True,
    help="`plain`, `kohya` (those of sd-scripts), or a file of rules; --show prints one to start "
    "from.",
)
@click.option("--show", is_flag=True, help="Print the shipped `plain` rules and exit.")
@click.option(
    "--tags-ending",
    default=".txt",
    show_default=True,
    callback=caption_ending,
    help="File extension of the tag files.",
)
@click.option(
    "--captions-ending",
    default=".caption",
    show_default=True,
    callback=caption_ending,
    help="File extension of the caption files.",
)
@click.option("--dry-run", is_flag=True, help="Show the changes and write nothing.")
@click.option("--yes", is_flag=True, help="Write without asking.")
@CACHE_DIR
def clean(source: Path, rules: str, show: bool, **options: Any) -> None:  # noqa: FBT001
    """Clean tags and captions beside the images of SOURCE; show the changes before writing."""
    from importlib import resources

    from impasto.annotate.cleaning import load_rules
    from impasto.cli.console import Console

    if show:
        file = resources.files("impasto.annotate") / "rules" / "plain.toml"
        click.echo(file.read_text("utf-8"), nl=False)
        return
    from impasto import files
    from impasto.annotate.journal import Journal
    from impasto.canonical import canonical

    console, cleaner = Console(), load_rules(rules)
    config = local_dataset_config(source, options)
    folders = dataset_folders_of(config)
    with files.dry_run() if options["dry_run"] else contextlib.nullcontext():
        records = usable_images(config, console)
    require_own_files(records)
    found = _find(records, folders, options, console)
    changes = _changes(found, cleaner)
    for path, (old, new) in changes.items():
        console.note("\n".join([str(path), *_marked("-", old), *_marked("+", new)]))
    change = "change" if options["yes"] and not options["dry_run"] else "would change"
    console.note(f"{len(changes)} of {counted(sum(map(len, found)), 'files')} {change}.")
    if options["dry_run"]:
        console.note("Nothing was written (--dry-run).")
    if options["dry_run"] or not changes:
        return
    if not options["yes"] and not click.confirm("Write them?"):
        return
    with Journal(folders, canonical(["clean", rules])) as journal:
        # the files may have changed while this waited for the answer or the lock
        changes = _changes(_find(records, folders, options), cleaner)
        for path, (_, new) in changes.items():
            journal.write(path, new, folders.name_of(path))
    if not changes:
        console.note("Nothing was left to change.")
        return
    undo = undo_command(source, folders, cache_dir=options["cache_dir"])
    console.note(f"Written. Undo with: {undo}")


@click.command()
@LOCAL_SOURCE
@click.option(
    "--ending",
    default=".txt",
    show_default=True,
    callback=caption_ending,
    help="File extension of the tag files; has no effect on tags in metadata.",
)
@click.option(
    "--least", default=1, show_default=True, help="List only tags of at least this many images."
)
@CACHE_DIR
def tags(source: Path, ending: str, least: int, **options: Any) -> None:
    """Count the tags of SOURCE, in tag files or in its metadata."""
    from impasto.annotate.cleaning import count_tags
    from impasto.cli.console import Console
    from impasto.data.folders.beside import SidecarLookup

    console = Console()
    config = local_dataset_config(source, options)
    records = usable_images(config, console)
    require_own_files(records)
    in_metadata = {
        (number, place)
        for number, entry in enumerate(config.entries)
        for place, subset in enumerate(entry.subsets)
        if subset.metadata_file is not None
    }
    has_tags_there = [(r.subset.dataset, r.subset.number) in in_metadata for r in records]
    asked = click.get_current_context().get_parameter_source("ending")
    if in_metadata and all(has_tags_there) and asked is not ParameterSource.DEFAULT:
        raise click.UsageError(
            "--ending has no effect on images whose tags are in metadata. Remove it."
        )
    beside = SidecarLookup(ending)
    texts: dict[Path, str | None] = {}
    for record, is_there in zip(records, has_tags_there, strict=True):
        if is_there:
            texts[record.path] = record.tags
        elif (path := beside.file(record.path, ending)).is_file():
            texts[path] = _read(path)
    counts = count_tags(text for text in texts.values() if text is not None)
    rows = {name: count for name, count in counts.most_common() if count >= least}
    if rows:
        console.table(rows)
    console.note(f"{counted(len(rows), 'tags')} in {counted(len(records), 'images')}.")


def _find(
    records: Sequence[ImageRecord],
    folders: DatasetFolders,
    options: dict[str, Any],
    console: Console | None = None,
) -> tuple[dict[Path, str], dict[Path, str]]:
    """Find the tag files and the caption files beside images, and read them.

    Args:
        records: The images.
        folders: The folders in which files may be written.
        options: `tags_ending` and `captions_ending`, the file extensions.
        console: Prints the files that are skipped; None prints nothing.

    Returns:
        Path -> text of the tag files, and the same of the caption files.
    """
    from impasto.annotate.caption_files import NOT_OWN, has_words_elsewhere
    from impasto.data.folders.beside import SidecarLookup

    endings = (options["tags_ending"], options["captions_ending"])
    beside = SidecarLookup(*endings)
    found: tuple[dict[Path, str], dict[Path, str]] = ({}, {})
    elsewhere: list[Path] = []
    for kind, ending in zip(found, endings, strict=True):
        for path, record in {beside.file(r.path, ending): r for r in records}.items():
            if not os.path.lexists(path):
                if has_words_elsewhere(record, ending, beside):
                    elsewhere.append(path)
                continue
            reason, text = folders.why_not_written(path), None
            if not reason:
                text = _read(path)
                reason = "it is not UTF-8 text; save it as UTF-8" if text is None else ""
            if text is None and console is not None:
                console.note(f"Skipped: {path}: {reason}")
            if text:
                kind[path] = text
    if console is not None and elsewhere:
        more = f" (and {len(elsewhere) - 1:,} more like it)" if len(elsewhere) > 1 else ""
        console.note(f"Skipped: {elsewhere[0]}{more}: {NOT_OWN}")
    return found


def _changes(
    found: tuple[dict[Path, str], dict[Path, str]], cleaner: Cleaner
) -> dict[Path, tuple[str, str]]:
    """Return file -> (text, cleaned text) for each file that cleaning changes."""
    from impasto.annotate.cleaning import CleaningRules, by_line

    tags, captions = found
    cleaned = {path: by_line(cleaner.tags)(text) for path, text in tags.items()}
    if isinstance(cleaner, CleaningRules):
        kept = by_line(cleaner.frequent(cleaned.values()))
        cleaned = {path: kept(text) for path, text in cleaned.items()}
    cleaned |= {path: by_line(cleaner.caption)(text) for path, text in captions.items()}
    there = tags | captions
    return {p: (there[p], new) for p, new in cleaned.items() if new != there[p]}


def _read(path: Path) -> str | None:
    """Return the non-blank lines of a file, or None if it cannot be read as text."""
    from impasto.annotate.cleaning import lines_of

    try:
        return "\n".join(lines_of(read_caption_file(path)))
    except (OSError, UnicodeDecodeError):
        return None


def _marked(mark: str, text: str) -> list[str]:
    return [f"{mark} {line}" for line in text.split("\n")]
