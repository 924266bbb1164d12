"""`impasto dataset undo`: list edits of captions, and undo them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto import presence
from impasto.cli.dataset_annotation import dataset_folders_of, undo_command
from impasto.cli.dataset_options import CACHE_DIR, LOCAL_SOURCE, local_dataset_config
from impasto.cli.local_paths import WRITTEN
from impasto.errors import DatasetError
from impasto.progress import counted

if TYPE_CHECKING:
    from impasto.annotate.dataset_folders import DatasetFolders
    from impasto.annotate.history import EditSummary
    from impasto.config.dataset import DatasetConfig


@click.command()
@LOCAL_SOURCE
@click.argument("edit", required=False)
@click.option("--list", "lists", is_flag=True, help="List the edits that can be undone.")
@click.option("--json", "as_json", is_flag=True, help="With --list: print one JSON list.")
@click.option("--force", is_flag=True, help="Also restore files that were changed since the edit.")
@click.option(
    "--keep",
    is_flag=True,
    help="Leave files that were changed since the edit unchanged, and forget the edit.",
)
@click.option(
    "--metadata",
    type=WRITTEN,
    help="The metadata file that was edited, if it is not in the folder of images.",
)
@CACHE_DIR
def undo(
    source: Path,
    edit: str | None,
    lists: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
    force: bool,  # noqa: FBT001
    keep: bool,  # noqa: FBT001
    metadata: Path | None,
    **options: Any,
) -> None:
    """Undo what tag, caption, clean or edit wrote for SOURCE, byte for byte.

    Without EDIT, the last edit is undone; run the command again for the one before. EDIT is the
    number of an earlier edit, as shown by --list. Files that were changed after the edit are
    skipped and listed; the undo data is kept until they are restored (--force) or accepted
    (--keep).
    """
    from impasto.annotate import undoing
    from impasto.cli.console import Console

    if force and keep:
        raise click.UsageError("--force and --keep contradict each other.")
    if (lists and (edit or force or keep)) or (as_json and not lists):
        raise click.UsageError("--list can be combined only with --json, and --json needs --list.")
    if not presence.exists(source):
        raise DatasetError(f"{source} does not exist. Check its path.")
    folders = dataset_folders_of(_config(source, options, metadata), metadata)
    if lists:
        _list(folders, as_json=as_json)
        return
    console = Console()
    undone = undoing.undo(folders, edit, force=force, keep=keep)
    console.note(f"{counted(undone.restored, 'files')} restored.")
    for path, reason in undone.unchanged:
        console.note(f"Left unchanged: {_below(path, folders)}: {reason}")
    if len(undone.unchanged) > undone.blocked and not keep:
        asked = ("--force",) if edit is None else (edit, "--force")
        forced = undo_command(source, folders, *asked, cache_dir=options["cache_dir"])
        console.note(f"To restore these too: {forced} (--keep instead accepts them unchanged)")


def _below(path: Path, folders: DatasetFolders) -> str:
    """Return a path relative to the folder of the dataset that contains it, or in full."""
    from impasto.files import real_path

    roots = (real_path(root) for root in folders.roots)
    below = (str(path.relative_to(root)) for root in roots if path.is_relative_to(root))
    return next(below, str(path))


def _config(source: Path, options: dict[str, Any], metadata: Path | None) -> DatasetConfig:
    return local_dataset_config(source, options, beside_images=metadata is None)


def _list(folders: DatasetFolders, *, as_json: bool) -> None:
    from impasto.annotate.history import list_edits
    from impasto.cli.console import Console
    from impasto.cli.harmless import json_text

    found = list_edits(folders)
    if as_json:
        click.echo(json_text([edit.as_json() for edit in found]))
        return
    console = Console()
    if found:
        console.table({edit.name: _line(edit) for edit in found})
    console.note(f"{counted(len(found), 'edits')} can be undone.")


def _line(edit: EditSummary) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(edit.at)) if edit.at else "some time ago"
    files = edit.first[0] if edit.files == 1 else counted(edit.files, "files")
    texts = [when, files, edit.what]
    texts += [] if edit.ended else ["interrupted, or partly undone"]
    texts += [f"in {edit.outside}, to be given with --metadata"] if edit.outside else []
    texts += ["its undo data is damaged"] if edit.damaged else []
    return " · ".join(texts)
