"""`impasto dataset clean`, `tags` and `undo`: words by rules, counted, and taken back."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto.cli.dataset_options import CACHE_DIR, SOURCE, dataset_config
from impasto.cli.dataset_words import usable_pictures

if TYPE_CHECKING:
    from impasto.annotate.cleaning import Cleaner


@click.command()
@SOURCE
@click.option(
    "--rules",
    default="plain",
    show_default=True,
    help="`plain`, `kohya` (sd-scripts' own), or a file of rules; --show prints one to begin with.",
)
@click.option("--show", is_flag=True, help="Print the shipped `plain` rules and stop.")
@click.option("--tags-ending", default=".txt", show_default=True)
@click.option("--captions-ending", default=".caption", show_default=True)
@click.option("--dry-run", is_flag=True, help="Show the changes and write nothing.")
@click.option("--yes", is_flag=True, help="Write without asking.")
@CACHE_DIR
def clean(source: Path, rules: str, show: bool, **options: Any) -> None:  # noqa: FBT001
    """Clean tags and captions beside the pictures of SOURCE; shows the changes before it writes."""
    from importlib import resources

    from impasto.annotate.cleaning import load_rules
    from impasto.cli.console import Console

    if show:
        file = resources.files("impasto.annotate") / "rules" / "plain.toml"
        click.echo(file.read_text("utf-8"), nl=False)
        return
    from impasto import files
    from impasto.annotate.words import Journal

    console, cleaner = Console(), load_rules(rules)
    config = dataset_config(source, options)
    with files.nothing_kept() if options["dry_run"] else contextlib.nullcontext():
        records = usable_pictures(config, console)
    changes, count = _changes(records, cleaner, options["tags_ending"], options["captions_ending"])
    for path, (old, new) in changes.items():
        console.note(f"{path}\n- {old}\n+ {new}")
    console.note(f"{len(changes)} of {count} files would change.")
    if options["dry_run"]:
        console.note("Nothing was written (--dry-run).")
    if options["dry_run"] or not changes:
        return
    if not options["yes"] and not click.confirm("Write them?"):
        return
    with Journal(config.derived_dir / "annotations", f"clean {rules}") as journal:
        for path, (_, new) in changes.items():
            journal.write(path, new, str(path))
    console.note("Written. Take it back with: impasto dataset undo " + str(source))


@click.command()
@SOURCE
@click.option("--ending", default=".txt", show_default=True, help="Of the files with tags.")
@click.option("--least", default=1, show_default=True, help="Only tags in so many pictures.")
@CACHE_DIR
def tags(source: Path, ending: str, least: int, **options: Any) -> None:
    """Count the tags of SOURCE."""
    from impasto.annotate.cleaning import count_tags
    from impasto.cli.console import Console

    console = Console()
    records = usable_pictures(dataset_config(source, options), console)
    counts = count_tags(_read(record.path.with_suffix(ending)) or "" for record in records)
    rows = {name: count for name, count in counts.most_common() if count >= least}
    if rows:
        console.table(rows)
    console.note(f"{len(rows)} tags in {len(records)} pictures.")


@click.command()
@SOURCE
@click.option("--force", is_flag=True, help="Also restore files that were changed since.")
@CACHE_DIR
def undo(source: Path, force: bool, **options: Any) -> None:  # noqa: FBT001
    """Take back what the last tag, caption or clean wrote for SOURCE, byte for byte."""
    from impasto.annotate import words
    from impasto.cli.console import Console

    console = Console()
    config = dataset_config(source, options)
    undone = words.undo(config.derived_dir / "annotations", force=force)
    console.note(f"{undone.restored} files are as they were.")
    for path in undone.changed_since:
        console.note(f"Left alone, since it was changed meanwhile: {path} (--force restores it)")


def _changes(
    records: Any, cleaner: Cleaner, tags_ending: str, captions_ending: str
) -> tuple[dict[Path, tuple[str, str]], int]:
    """File -> its words and what becomes of them, where that differs; and how many there are."""
    from impasto.annotate.cleaning import Rules, count_tags

    steps = {tags_ending: cleaner.tags, captions_ending: cleaner.caption}
    found: dict[Path, tuple[str, str]] = {}
    count = 0
    for ending, step in steps.items():
        texts = {r.path.with_suffix(ending): _read(r.path.with_suffix(ending)) for r in records}
        there = {path: text for path, text in texts.items() if text is not None}
        count += len(there)
        cleaned = {path: step(text) for path, text in there.items()}
        if ending == tags_ending and isinstance(cleaner, Rules):
            kept = cleaner.frequent(count_tags(cleaned.values()), len(there))
            cleaned = {path: kept(text) for path, text in cleaned.items()}
        found |= {p: (there[p], new) for p, new in cleaned.items() if new != there[p]}
    return found, count


def _read(path: Path) -> str | None:
    from impasto.errors import DatasetError

    try:
        return path.read_text(encoding="utf-8-sig").strip() if path.is_file() else None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
