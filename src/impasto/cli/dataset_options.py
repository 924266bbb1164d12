"""Arguments and options shared by the commands of `impasto dataset`: the source and its buckets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto import presence
from impasto.member_paths import folder_of, is_container, is_member, plain
from impasto.remote_paths import is_remote, shown

if TYPE_CHECKING:
    from impasto.cli.console import Console
    from impasto.config.dataset import DatasetConfig, SubsetConfig
    from impasto.data.records import ImageRecord
    from impasto.data.scanning.scan import Scan

SOURCE = click.argument("source", type=click.Path(path_type=Path))


_WRITES = (
    "where nothing is written beside images. Copy the folder to a disk, edit the captions there, "
    "and copy them back"
)


_WRITES_IN_PLACE = (
    "where nothing is written beside images. Keep their captions in a metadata file: impasto "
    "dataset merge creates one, and tag, caption and undo change it with --metadata"
)


def _of_this_machine(context: click.Context, parameter: click.Parameter, value: Path) -> Path:  # noqa: ARG001
    """Reject a URL before a model is loaded: nothing is written beside images in an object store.

    Raises:
        ConfigError: `value` is a URL.
    """
    _require_local(value)
    return value


LOCAL_SOURCE = click.argument("source", type=click.Path(path_type=Path), callback=_of_this_machine)
"""SOURCE of the commands that write captions, crops or masks beside images."""

_KEYS = {
    "resolution": "resolution",
    "min_side": "min_bucket_reso",
    "max_side": "max_bucket_reso",
    "step": "bucket_reso_steps",
    "no_upscale": "bucket_no_upscale",
    "selection": "bucket_selection",
    "table": "bucket_table",
    "flip": "flip_aug",
    "cache_dir": "cache_dir",
    "image_dir": "image_dir",
}


def bucket_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for buckets; they apply where SOURCE itself does not set the same."""
    options = [
        click.option(
            "--resolution",
            type=int,
            help="Training resolution: the side of a square image in pixels.  [default: 512]",
        ),
        click.option("--min-side", type=int, help="Shortest bucket side.  [default: 256]"),
        click.option("--max-side", type=int, help="Longest bucket side.  [default: 1024]"),
        click.option("--step", type=int, help="Bucket sides are multiples of this.  [default: 64]"),
        click.option(
            "--no-upscale",
            is_flag=True,
            default=None,
            help="Never enlarge images; use smaller buckets for small ones instead.",
        ),
        click.option(
            "--selection",
            type=click.Choice(["native", "kohya"]),
            help="Choose buckets that keep the most of each image (native), or as sd-scripts does "
            "(kohya).",
        ),
        click.option(
            "--table",
            type=click.Choice(["resolution", "novelai", "metadata"]),
            help="Use buckets computed from the options above (resolution), NovelAI's 19 buckets, "
            "or those in the metadata.",
        ),
        click.option(
            "--flip", is_flag=True, default=None, help="Also use horizontally flipped images."
        ),
        IMAGE_DIR,
        CACHE_DIR,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def executor_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose how images are prepared; they override the settings of SOURCE."""
    options = [
        click.option(
            "--executor",
            type=click.Choice(["local", "ray"]),
            help="Prepare the images on this machine, or with Ray Data.  [default: "
            "dataset.executor]",
        ),
        click.option(
            "--ray-address",
            metavar="HOST:PORT",
            help="Use this Ray cluster; auto finds the one on this machine. --executor ray "
            "without an address starts Ray here.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


CACHE_DIR = click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    help="Folder for cached and other derived data.  [default: .impasto in the folder of images]",
)

IMAGE_DIR = click.option(
    "--image-dir",
    type=click.Path(path_type=Path),
    help="If SOURCE is a metadata file: the folder that its image names are relative to.  "
    "[default: the folder of the metadata file]",
)

DECODE = click.option(
    "--decode/--headers-only",
    default=True,
    show_default=True,
    help="Decode every image, to find damaged ones before training, or read headers only.",
)


def scan_images(config: Any, progress: Any, *, decode: bool) -> Scan:
    """Scan a dataset; with `decode`, the counts are the same as in caching and training."""
    from impasto.datasets.build import decode_scanned, scan_all
    from impasto.datasets.engines import open_engine

    with open_engine(config, progress):
        scan = scan_all(config, progress)
        return decode_scanned(config, scan, progress) if decode else scan


def print_skipped(console: Console, scan: Scan, source: Path) -> None:
    """Print each skipped file with its reason, and count other unused files by kind."""
    for item in scan.skipped:
        console.note(f"Skipped: {display_path(item.path, source)}: {item.reason}")
    for line in scan.describe_unused():
        console.note(line)


def display_path(path: Path, source: Path) -> str:
    """Return a path relative to the folder of SOURCE if it is inside it, otherwise in full."""
    known, folder = Path(plain(path)), folder_of(source)
    return str(known.relative_to(folder)) if known.is_relative_to(folder) else shown(path)


def local_dataset_config(
    source: Path, options: dict[str, Any], why: str = "", *, beside_images: bool = True
) -> DatasetConfig:
    """Return `dataset_config(source, options)`, for commands that cannot use an object store.

    Args:
        source: As for `dataset_config`.
        options: As for `dataset_config`.
        why: The reason for the error message; by default, that nothing is written beside such
            images.
        beside_images: Whether images in tars or tables are rejected too.

    Raises:
        ConfigError: As for `dataset_config`; or images are in an object store, or, with
            `beside_images`, in tars or tables.
    """
    config = dataset_config(source, options)
    for entry in config.entries:
        for subset in entry.subsets:
            for path in (subset.image_dir, subset.metadata_file):
                if path is not None:
                    _require_local(path, why)
            if beside_images:
                _require_files(subset, why)
    return config


def _require_local(path: Path, why: str = "") -> None:
    from impasto.errors import ConfigError

    if is_remote(path):
        raise ConfigError(f"{shown(path)} is in an object store, {why or _WRITES}.")


def _require_files(subset: SubsetConfig, why: str) -> None:
    from impasto.data.containers.containers import holds_containers
    from impasto.errors import ConfigError

    path = subset.image_dir or (subset.metadata_file or Path()).parent
    deep = subset.metadata_file is not None or subset.recursive
    if holds_containers(path, recursive=deep, masks=subset.mask_dir):
        raise ConfigError(f"The images of {path} are in tars or tables, {why or _WRITES_IN_PLACE}.")


def require_own_files(records: Iterable[ImageRecord], why: str = "") -> None:
    """Make sure that every image is a separate file, so that files can be written beside it.

    A metadata file may list images inside tars or tables too, which only a scan finds.

    Args:
        records: The images.
        why: The reason for the error message; by default, that nothing is written beside such
            images.

    Raises:
        ConfigError: An image is inside a tar or a table.
    """
    from impasto.errors import ConfigError

    inside = next((record.path for record in records if is_member(record.path)), None)
    if inside is not None:
        raise ConfigError(f"{shown(inside)} is in a tar or a table, {why or _WRITES_IN_PLACE}.")


def require_own_file(image: Path) -> None:
    """Make sure that an image is a file on this machine, and not inside a tar or a table.

    Raises:
        DatasetError: It is in an object store, or inside a tar or a table.
    """
    from impasto.errors import DatasetError

    if is_remote(image):
        raise DatasetError(
            f"{shown(image)} is in an object store; expected the path of an image on this machine."
        )
    table = Path(str(image).rpartition("#")[0])  # the table of a row; empty without a #
    for path in (table, *image.parents):
        if is_container(path.name) and presence.is_file(path):
            raise DatasetError(
                f"{image} is inside {path.name}; expected an image that is a separate file. "
                f"impasto dataset list and report show the images inside {path.name}."
            )


def dataset_config(source: Path, options: dict[str, Any]) -> DatasetConfig:
    """Build the dataset settings from SOURCE and the command's options.

    Raises:
        ConfigError: A file is malformed, a value is invalid, or SOURCE already sets what an
            option gives.
        UsageError: --image-dir is given and SOURCE is not a metadata file.
    """
    from impasto.config.load import is_metadata_file, load_dataset_config

    if options.get("image_dir") is not None and not is_metadata_file(source):
        raise click.UsageError(
            f"--image-dir works only with a metadata file (.json or .jsonl); {source} is not one."
        )
    given = {key: options.get(name) for name, key in _KEYS.items()}
    given = {key: value for key, value in given.items() if value is not None}
    _require_effect(source, given)
    found = load_dataset_config(source, given)
    return with_executor(found, options.get("executor"), options.get("ray_address"))


def _require_effect(source: Path, given: Iterable[str]) -> None:
    from impasto.config.load import load_run_of_source, without_effect
    from impasto.errors import ConfigError

    unused = without_effect(source, given)
    if not unused:
        return
    option = next(name for name, key in _KEYS.items() if key == unused[0]).replace("_", "-")
    why = (
        f"is the settings of a run, which set dataset.{unused[0]}. Remove the option, or change "
        f"the settings"
        if load_run_of_source(source) is not None
        else f"sets {unused[0]} itself. Remove one of the two"
    )
    raise ConfigError(f"--{option} has no effect: {shown(source)} {why}.")


def with_executor(
    config: DatasetConfig, executor: str | None, address: str | None
) -> DatasetConfig:
    """Return the dataset settings with the executor and Ray address of `executor_options`.

    Raises:
        ConfigError: The two options contradict each other, or the settings.
    """
    from impasto.errors import ConfigError

    if executor is None and address is None:
        return config
    chosen = executor or "ray"
    kept = address or (config.ray_address if chosen == "ray" else None)
    changed = config.model_copy(update={"executor": chosen, "ray_address": kept})
    try:
        changed.require_executor()
    except ValueError as error:
        raise ConfigError(f"--executor and --ray-address: {error}.") from error
    return changed
