"""Options and processing shared by `impasto dataset tag` and `caption`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from impasto import presence
from impasto.cli.dataset_options import local_dataset_config, require_own_files
from impasto.cli.local_paths import WRITTEN
from impasto.invocation import command
from impasto.member_paths import folder_of
from impasto.progress import counted
from impasto.remote_paths import shown

if TYPE_CHECKING:
    from impasto.annotate.annotation import Annotated, Annotator, ImageReading, Target
    from impasto.annotate.dataset_folders import DatasetFolders
    from impasto.annotate.journal import Journal
    from impasto.annotate.remote import RemoteAnnotator
    from impasto.cli.console import Console
    from impasto.config.dataset import DatasetConfig
    from impasto.data.engines.engine import Engine
    from impasto.data.records import ImageRecord

F = TypeVar("F", bound=Callable[..., Any])


def annotation_options(ending: str) -> Callable[[F], F]:
    """Return a decorator that adds the options for where and how captions or tags are written.

    Args:
        ending: Default file extension of the files that are written.
    """
    options = (
        click.option(
            "--ending",
            default=ending,
            show_default=True,
            callback=caption_ending,
            help="File extension of the caption or tag files to write.",
        ),
        click.option(
            "--metadata", type=WRITTEN, help="Write into this metadata JSON file instead."
        ),
        click.option(
            "--existing",
            type=click.Choice(["missing", "overwrite", "append"]),
            default="missing",
            show_default=True,
            help="Which images to process: only those without captions or tags (missing); all, "
            "replacing existing ones (overwrite); or all, adding to existing ones (append).",
        ),
        click.option("--dry-run", is_flag=True, help="Print the results and write nothing."),
        click.option(
            "--batch",
            default=8,
            show_default=True,
            type=click.IntRange(1),
            help="Images per batch; a smaller batch needs less VRAM.",
        ),
        click.option(
            "--workers", type=click.IntRange(0), help="Number of threads that decode images."
        ),
        click.option(
            "--stop-on-error", is_flag=True, help="Stop at the first image that cannot be read."
        ),
    )

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def caption_ending(context: click.Context, parameter: click.Parameter, value: str) -> str:  # noqa: ARG001
    """Return a caption file extension with its leading dot.

    Raises:
        BadParameter: It is empty, malformed, or the extension of an image format.
    """
    from impasto.annotate.dataset_folders import normalize_ending

    try:
        return normalize_ending(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from error


def write_annotations(
    source: Path,
    command: object,
    annotator: Annotator[Any] | RemoteAnnotator,
    join: Callable[[str, str], str],
    column: Literal["caption", "tags"],
    options: dict[str, Any],
    console: Console,
) -> None:
    """Run a tagger or captioner on the images of SOURCE, write the results and print a summary.

    Args:
        source: A folder of images, or another SOURCE of `impasto dataset`.
        command: Plain values that identify the command, so that an interrupted one is continued.
        annotator: The tagger or captioner.
        join: Joins an existing line and a new result, for `append`.
        column: The metadata key that the results are stored under.
        options: The options of `annotation_options`, and the folder of derived data.
        console: Shows progress and the summary.
    """
    from impasto import files
    from impasto.annotate.annotation import annotate
    from impasto.annotate.journal import Journal
    from impasto.datasets.engines import open_engine

    config = _config(source, options)
    folders = dataset_folders_of(config, options["metadata"])
    target = _target(options, join, column, folders)
    dry = options["dry_run"]

    def show(record: ImageRecord, text: str) -> None:
        console.note(f"{record.name}: {text}")

    def go(journal: Journal | None, engine: Engine) -> Annotated[Any]:
        return annotate(
            records,
            annotator,
            target,
            journal,
            console,
            show=show if dry else None,
            reading=_reading(options),
            engine=engine,
        )

    with open_engine(config, console) as engine:
        with files.dry_run() if dry else contextlib.nullcontext():
            records = usable_images(config, console)
            if options["metadata"] is None:
                require_own_files(records)
            if dry:
                done = go(None, engine)
        if not dry:
            with Journal(folders, _command_key(command, options)) as journal:
                done = go(journal, engine)
    _tell(done, options, console)
    if done.written and not dry:
        undo = undo_command(source, folders, cache_dir=options["cache_dir"])
        console.note(f"Undo with: {undo}")


def _command_key(command: object, options: dict[str, Any]) -> str:
    """Return the key that identifies a command, by which an interrupted one is continued."""
    from impasto.canonical import canonical

    asked = {name: options[name] for name in ("existing", "ending")}
    metadata = options["metadata"]
    return canonical([command, asked, metadata is None or str(metadata.absolute())])


def _config(source: Path, options: dict[str, Any]) -> DatasetConfig:
    named = ("cache_dir", "executor", "ray_address")
    given = {name: options[name] for name in named}
    beside_images = options["metadata"] is None
    config = local_dataset_config(source, given, beside_images=beside_images)
    if beside_images:
        _require_read(config, source, options["ending"])
    return config


def _require_read(config: DatasetConfig, source: Path, ending: str) -> None:
    """Make sure that training reads the files that are to be written beside images.

    Raises:
        ConfigError: The captions are in metadata, or in files with another extension.
    """
    from impasto.errors import ConfigError

    subsets = [subset for entry in config.entries for subset in entry.subsets]
    for subset in subsets:
        file, read = subset.metadata_file, subset.caption_extension
        if file is not None:
            raise ConfigError(
                f"The captions of these images are in {shown(file)}: training would not read the "
                f"{ending} files. Add --metadata {shown(file)}."
            )
        own = None if read is None else f".{read.lstrip('.')}"
        if own is None or own.lower() == ending.lower():
            continue
        if len({each.caption_extension for each in subsets}) == 1:
            raise ConfigError(
                f"caption_extension is {read}: training would not read the {ending} files. Add "
                f"--ending {own}."
            )
        raise ConfigError(
            f"caption_extension of {shown(subset.image_dir or source)} is {read}: training would "
            f"not read the {ending} files there, and other folders of {shown(source)} have a "
            f"different one. Process each folder separately, with its own --ending."
        )


def _reading(options: dict[str, Any]) -> ImageReading:
    """Build the rules for reading images from the options."""
    from impasto.annotate.annotation import ImageReading

    return ImageReading(
        batch_size=options["batch"],
        workers=options["workers"],
        on_error="stop" if options["stop_on_error"] else "skip",
    )


def uses_ray(source: Path, options: dict[str, Any]) -> bool:
    """Return whether the images of SOURCE are prepared with Ray, with models in other processes.

    Raises:
        UsageError: `--workers 0` is given with Ray.
    """
    config = _config(source, options)
    if config.executor == "ray" and options["workers"] == 0:
        raise click.UsageError("--workers 0 decodes in this process, which Ray does not support.")
    return config.executor == "ray"


def whole_name(model: str) -> str:
    """Return the absolute path of a model that is a file or folder; return a name unchanged."""
    return str(Path(model).absolute()) if presence.exists(Path(model)) else model


def _tell(done: Annotated[Any], options: dict[str, Any], console: Console) -> None:
    dry = options["dry_run"]
    before = {"Written before the stop": done.done_before} if done.done_before else {}
    console.table(
        {
            "Would be written" if dry else "Written": done.written,
            "Would stay unchanged" if dry else "Left unchanged": done.captioned,
            **before,
            "No result": done.empty,
            "Skipped": len(done.skipped),
        }
    )
    if done.captioned:
        where = options["metadata"] or f"the {options['ending']} files"
        console.note(
            f"{counted(done.captioned, 'images have')} captions or tags already, in a .txt, a "
            f".caption or metadata. --existing append adds to {where}, --existing overwrite "
            f"replaces their text; training joins captions and tags."
        )
    if dry:
        console.note("Nothing was written (--dry-run).")


def usable_images(config: Any, console: Console) -> Sequence[ImageRecord]:
    """Return the usable images of a dataset; print each skipped file with its reason."""
    from impasto.datasets.build import scan_all

    scan = scan_all(config, console)
    for item in scan.skipped:
        console.note(f"Skipped: {shown(item.path)}: {item.reason}")
    for line in scan.describe_unused():
        console.note(line)
    return scan.records


def dataset_folders_of(config: Any, metadata: Path | None = None) -> DatasetFolders:
    """Return the folders and the metadata file that hold the captions of a dataset."""
    from impasto.annotate.dataset_folders import DatasetFolders

    subsets = [subset for entry in config.entries for subset in entry.subsets]
    named = [subset.image_dir or (subset.metadata_file or Path()).parent for subset in subsets]
    roots = [folder_of(path) for path in named]
    return DatasetFolders(tuple(dict.fromkeys(roots)), config.derived_dir / "annotations", metadata)


def undo_command(
    source: Path, folders: DatasetFolders, *options: str, cache_dir: Path | None = None
) -> str:
    """Return the shell command that undoes the last edit, ready to be pasted.

    Args:
        source: The dataset, as the user gave it.
        folders: The folders of the dataset.
        options: Further arguments of the command.
        cache_dir: The folder with the undo records, if one was given.
    """
    arguments: list[object] = ["dataset", "undo", source, *options]
    if cache_dir is not None:
        arguments += ["--cache-dir", cache_dir]
    if folders.named is not None and folders.needs_name(folders.named):
        arguments += ["--metadata", folders.named]
    return command(*arguments)


def _target(
    options: dict[str, Any],
    join: Callable[[str, str], str],
    column: Literal["caption", "tags"],
    folders: DatasetFolders,
) -> Target:
    """Build the target that the options select: caption files or a metadata file."""
    from impasto.annotate.caption_targets import MetadataTarget, Sidecars, to_each_line

    join = to_each_line(join)
    if options["metadata"] is None:
        return Sidecars(options["ending"], options["existing"], join, folders)
    return MetadataTarget(
        options["metadata"], column, options["existing"], join, lambda record: record.name, folders
    )
