"""`impasto dataset merge`: caption files beside images into one metadata file, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto import presence
from impasto.cli.dataset_options import (
    CACHE_DIR,
    SOURCE,
    dataset_config,
    local_dataset_config,
    print_skipped,
    require_own_files,
    scan_images,
)
from impasto.cli.local_paths import WRITTEN
from impasto.progress import counted
from impasto.remote_paths import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from impasto.cli.console import Console
    from impasto.data.folders.metadata import MetadataEntry
    from impasto.data.scanning.scan import Scan


@click.command()
@SOURCE
@click.argument("target", type=WRITTEN, required=False)
@click.option(
    "--keys",
    "style",
    type=click.Choice(["relative", "absolute", "stem"]),
    default="relative",
    show_default=True,
    help="How images are named: by relative path, absolute path, or file name without extension "
    "(stem).",
)
@click.option(
    "--image-dir",
    type=click.Path(path_type=Path),
    help="With --to-sidecars: the folder that the image names in SOURCE are relative to.",
)
@click.option(
    "--to-sidecars",
    is_flag=True,
    help="The reverse: write the captions in SOURCE to files beside the images.",
)
@click.option(
    "--overwrite", is_flag=True, help="Replace caption files whose text differs; keep a .bak."
)
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
    """Collect the captions and tags beside the images of SOURCE into the metadata file TARGET.

    TARGET is .json or .jsonl. If it exists, captions and tags are added, everything else in it is
    retained, and the old file is kept as .bak.

    Example: impasto dataset merge images images/meta.json

    Reverse: impasto dataset merge images/meta.json --to-sidecars
    """
    if to_sidecars:
        _refuse_unused({"TARGET": target, "--keys": style != "relative"}, "without --to-sidecars")
        _to_sidecars(source, image_dir, options, overwrite=overwrite)
        return
    _refuse_unused({"--image-dir": image_dir, "--overwrite": overwrite}, "with --to-sidecars")
    if target is None:
        raise click.UsageError("Give the metadata file to write, such as meta.json.")
    _to_metadata(source, target, style, options)


def _refuse_unused(given: dict[str, object], where: str) -> None:
    """Refuse options that only the other direction uses."""
    for name, value in given.items():
        if value:
            raise click.UsageError(f"{name} works only {where}.")


def _to_metadata(source: Path, target: Path, style: Any, options: dict[str, Any]) -> None:
    from impasto.cli.console import Console
    from impasto.data.folders.metadata import (
        keys_of_files,
        merge_captions,
        read_metadata,
        write_metadata,
    )

    if target.suffix.lower() not in {".json", ".jsonl"}:
        raise click.UsageError(f"{target} does not end in .json or .jsonl.")
    console = Console()
    scan = scan_images(dataset_config(source, options), console, decode=True)
    known = read_metadata(target).entries if presence.exists(target) else ()
    roots = dict.fromkeys(record.subset.root for record in scan.records)
    named = keys_of_files(known, [*roots, target.parent]) if known else None
    entries = merge_captions(known, scan.records, style, named=named)
    backup = write_metadata(target, entries)
    console.table(
        {
            **scan.tally.rows(),
            "Entries": f"{len(entries)}, {len(entries) - len(known)} of them new",
            "Written": target,
            **({"Old file": backup} if backup else {}),
        }
    )
    print_skipped(console, scan, source)
    _say_how_to_read(target, entries, scan, console)
    if scan.tally.regularisation or scan.tally.by_class:
        console.note(
            f"{target} does not contain class_tokens and is_reg: they stay in the settings, beside "
            f"metadata_file."
        )


def _say_how_to_read(
    target: Path, entries: Sequence[MetadataEntry], scan: Scan, console: Console
) -> None:
    """Print how to set `image_dir`, if names in the file are not relative to the file's folder."""
    from impasto.data.folders.metadata import keys_of_files

    wanted = {record.path.absolute() for record in scan.records}
    if wanted <= keys_of_files(entries, [target.parent]).keys():
        return
    roots = list(dict.fromkeys(record.subset.root for record in scan.records))
    if len(roots) == 1:
        console.note(
            f"The names in it are relative to {shown(roots[0])}: set image_dir = "
            f"'{shown(roots[0])}', or give --image-dir here."
        )
    else:
        console.note(
            f"It names images of {len(roots)} folders, which one image_dir cannot cover: write "
            f"one file per folder."
        )


def _to_sidecars(
    source: Path, image_dir: Path | None, options: dict[str, Any], *, overwrite: bool
) -> None:
    from impasto.cli.console import Console
    from impasto.data.folders.sidecars import write_sidecars

    console = Console()
    config = local_dataset_config(source, options)
    if image_dir is not None:
        config = config.model_copy(update={"image_dir": image_dir})
    scan = scan_images(config, console, decode=True)
    require_own_files(scan.records, "beside which no files are written. Unpack it first")
    written = write_sidecars(scan.records, overwrite=overwrite)
    console.table(
        {
            **scan.tally.rows(),
            "Written": counted(written.files, "files"),
            "Left unchanged": f"{len(written.differing)} with different text",
            **(
                {"Old files": f"{counted(written.backups, 'files')} kept as .bak"}
                if written.backups
                else {}
            ),
        }
    )
    for path in written.differing[:10]:
        console.note(f"  {path} (use --overwrite to replace it)")
    for item in written.refused:
        console.note(f"  {shown(item.path)}: {item.reason}")
    print_skipped(console, scan, source)
