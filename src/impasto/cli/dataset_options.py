"""What the verbs of `impasto dataset` share: what is looked at, and how it is put into buckets."""

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
    "where nothing is written beside images. Copy the folder to a disk, change the words there, "
    "and copy them back"
)


_WRITES_IN_PLACE = (
    "where nothing is written beside images. Keep their words in a metadata file: impasto dataset "
    "merge writes one of them, and tag, caption and undo change it with --metadata"
)


def _of_this_machine(context: click.Context, parameter: click.Parameter, value: Path) -> Path:  # noqa: ARG001
    """Refuse a URL before a model is loaded: nothing is written beside images of a store."""
    _require_local(value)
    return value


LOCAL_SOURCE = click.argument("source", type=click.Path(path_type=Path), callback=_of_this_machine)
"""SOURCE of the commands that write words, crops or masks beside images."""

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
    """Add the options for buckets; they hold where SOURCE does not say otherwise itself."""
    options = [
        click.option("--resolution", type=int, help="Side in pixels.  [default: 512]"),
        click.option("--min-side", type=int, help="Shortest bucket side.  [default: 256]"),
        click.option("--max-side", type=int, help="Longest bucket side.  [default: 1024]"),
        click.option("--step", type=int, help="Bucket sides are multiples of this.  [default: 64]"),
        click.option(
            "--no-upscale",
            is_flag=True,
            default=None,
            help="Never enlarge; smaller buckets instead.",
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
            help="Take buckets from the options above, NovelAI's 19 buckets, or those in the "
            "metadata.",
        ),
        click.option("--flip", is_flag=True, default=None, help="Mirror images too."),
        IMAGE_DIR,
        CACHE_DIR,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def executor_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what prepares images; they hold whatever SOURCE says."""
    options = [
        click.option(
            "--executor",
            type=click.Choice(["local", "ray"]),
            help="Prepare on this machine, or with Ray Data.  [default: dataset.executor]",
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
    help="Where derived data is kept.  [default: .impasto in the folder of images]",
)

IMAGE_DIR = click.option(
    "--image-dir",
    type=click.Path(path_type=Path),
    help="Folder that the names in a metadata file SOURCE are relative to.  [default: its own]",
)

DECODE = click.option(
    "--decode/--headers-only",
    default=True,
    show_default=True,
    help="Decode images once, to find damaged ones before training, or read their headers only.",
)


def scan_images(config: Any, progress: Any, *, decode: bool) -> Scan:
    """The scan of a dataset; decoded, it has the same numbers as caching and training have."""
    from impasto.datasets.build import decode_scanned, scan_all
    from impasto.datasets.engines import open_engine

    with open_engine(config, progress):
        scan = scan_all(config, progress)
        return decode_scanned(config, scan, progress) if decode else scan


def print_skipped(console: Console, scan: Scan, source: Path) -> None:
    """Name what is skipped, and say by kind what else is not used."""
    for item in scan.skipped:
        console.note(f"Skipped: {display_path(item.path, source)}: {item.reason}")
    for line in scan.describe_unused():
        console.note(line)


def display_path(path: Path, source: Path) -> str:
    """A path as short as it can be read: below SOURCE where it is there."""
    known, folder = Path(plain(path)), folder_of(source)
    return str(known.relative_to(folder)) if known.is_relative_to(folder) else shown(path)


def local_dataset_config(
    source: Path, options: dict[str, Any], why: str = "", *, beside_images: bool = True
) -> DatasetConfig:
    """As `dataset_config`, for commands that do nothing with images in an object store.

    Args:
        source: As for `dataset_config`.
        options: As for `dataset_config`.
        why: The reason that the error gives; by default, that nothing is written beside them.
        beside_images: Whether images in tars or tables will not do either.

    Raises:
        ConfigError: As for `dataset_config`; or images are in an object store, or in tars.
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
    """Make sure that nothing is to be written beside an image in a tar or a table.

    A metadata file may name such images among others, which only its scan tells.

    Args:
        records: The images.
        why: The reason that the error gives for such an image; by default, that nothing is
            written beside it.

    Raises:
        ConfigError: One is inside of a file.
    """
    from impasto.errors import ConfigError

    inside = next((record.path for record in records if is_member(record.path)), None)
    if inside is not None:
        raise ConfigError(f"{shown(inside)} is in a tar or a table, {why or _WRITES_IN_PLACE}.")


def require_own_file(image: Path) -> None:
    """Make sure that an image is a file of this machine, and not inside a tar or a table.

    Raises:
        DatasetError: It is in an object store, or inside of one.
    """
    from impasto.errors import DatasetError

    if is_remote(image):
        raise DatasetError(
            f"{shown(image)} is in an object store; expected the path of an image of this machine."
        )
    table = Path(str(image).rpartition("#")[0])  # of a row; no file where there is no #
    for path in (table, *image.parents):
        if is_container(path.name) and presence.is_file(path):
            raise DatasetError(
                f"{image} is inside {path.name}; expected an image that is a file of its own. "
                f"impasto dataset list and report show what is in there."
            )


def dataset_config(source: Path, options: dict[str, Any]) -> DatasetConfig:
    """The settings of the dataset that SOURCE and the options stand for.

    Raises:
        ConfigError: A file is malformed, a value does not fit, or SOURCE decides itself what an
            option gives.
        UsageError: --image-dir is given and SOURCE is no metadata file.
    """
    from impasto.config.load import is_metadata_file, load_dataset_config

    if options.get("image_dir") is not None and not is_metadata_file(source):
        raise click.UsageError(
            f"--image-dir goes with a metadata file (.json or .jsonl); {source} is none."
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
        f"is the settings of a run, which say dataset.{unused[0]}. Take the option out, or change "
        f"the settings"
        if load_run_of_source(source) is not None
        else f"gives {unused[0]} itself. Take one of the two out"
    )
    raise ConfigError(f"--{option} has no effect: {shown(source)} {why}.")


def with_executor(
    config: DatasetConfig, executor: str | None, address: str | None
) -> DatasetConfig:
    """Settings of a dataset with the executor that `executor_options` give.

    Raises:
        ConfigError: They contradict each other, or the settings.
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
