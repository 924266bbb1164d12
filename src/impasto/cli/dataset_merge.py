"""`impasto dataset merge`: words from files beside pictures into one metadata file, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from impasto.cli.dataset_options import CACHE_DIR, SOURCE, dataset_config
from impasto.progress import counted


@click.command()
@SOURCE
@click.argument("target", type=click.Path(path_type=Path), required=False)
@click.option(
    "--keys",
    "style",
    type=click.Choice(["relative", "absolute", "stem"]),
    default="relative",
    show_default=True,
    help="How pictures are named: below the folder, by whole paths, or without ending.",
)
@click.option("--image-dir", type=click.Path(path_type=Path), help="Folder of the pictures.")
@click.option("--to-sidecars", is_flag=True, help="The other way: write SOURCE's words to files.")
@click.option("--overwrite", is_flag=True, help="Replace files that say something else.")
@CACHE_DIR
def merge(
    source: Path,
    target: Path | None,
    style: str,
    image_dir: Path | None,
    to_sidecars: bool,  # noqa: FBT001
    overwrite: bool,  # noqa: FBT001
    **options: Any,
) -> None:
    """Put the words beside the pictures of SOURCE into the metadata file TARGET, or back.

    TARGET is .json or .jsonl. If it exists, words are added to it, what else it holds stays, and
    the old file is kept as .bak.

    Example: impasto dataset merge pictures pictures/meta.json

    Back: impasto dataset merge pictures/meta.json --to-sidecars
    """
    if to_sidecars:
        _to_sidecars(source, image_dir, options, overwrite=overwrite)
    elif target is None:
        raise click.UsageError("Give the metadata file to write, such as meta.json.")
    else:
        _to_metadata(source, target, style, options)


def _to_metadata(source: Path, target: Path, style: Any, options: dict[str, Any]) -> None:
    from impasto.cli.console import Console
    from impasto.data.metadata import merge_words, read_metadata, write_metadata
    from impasto.training.pictures import scan_all

    if target.suffix.lower() not in {".json", ".jsonl"}:
        raise click.UsageError(f"{target} does not end in .json or .jsonl.")
    console = Console()
    scan = scan_all(dataset_config(source, options), console)
    known = read_metadata(target).entries if target.exists() else ()
    entries = merge_words(known, scan.records, style)
    backup = write_metadata(target, entries)
    console.table(
        {
            "Pictures": len(scan.records),
            "Entries": f"{len(entries)}, {len(entries) - len(known)} of them new",
            "Written": target,
            **({"Before": backup} if backup else {}),
        }
    )


def _to_sidecars(
    source: Path, image_dir: Path | None, options: dict[str, Any], *, overwrite: bool
) -> None:
    from impasto.cli.console import Console
    from impasto.data.sidecars import write_sidecars
    from impasto.training.pictures import scan_all

    console = Console()
    config = dataset_config(source, options)
    if image_dir is not None:
        config = config.model_copy(update={"image_dir": image_dir})
    scan = scan_all(config, console)
    written = write_sidecars(scan.records, overwrite=overwrite)
    console.table(
        {
            "Pictures": len(scan.records),
            "Written": counted(written.files, "files"),
            "Left as they are": f"{len(written.differing)} that say something else",
            **(
                {"Before": f"{counted(written.backups, 'files')} kept as .bak"}
                if written.backups
                else {}
            ),
        }
    )
    for path in written.differing[:10]:
        console.note(f"  {path} (use --overwrite to replace it)")
    for item in scan.set_aside:
        console.note(f"  {item.path}: {item.reason}")
