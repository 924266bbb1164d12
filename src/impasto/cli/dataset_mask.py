"""`impasto dataset mask`: make masks with a segmentation model, for masked training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto.cli.dataset_options import (
    CACHE_DIR,
    LOCAL_SOURCE,
    local_dataset_config,
    require_own_files,
)
from impasto.cli.local_paths import READ, WRITTEN
from impasto.cli.numbers import Finite
from impasto.write_targets import why_not_written

if TYPE_CHECKING:
    from PIL.Image import Image

    from impasto.annotate.segmenting import MaskShape, Segmenter
    from impasto.cli.console import Console
    from impasto.data.records import ImageRecord

_NAMED = 5
_NO_MASKS = "where no masks are made. Copy or unpack the images into a folder of this machine"
_ASPECT_TOLERANCE = 0.02  # as for reading masks


@click.command()
@LOCAL_SOURCE
@click.option(
    "--model",
    default="clothes",
    show_default=True,
    help="A short name, a Hub id, or the folder of a model for image-segmentation.",
)
@click.option(
    "--label", "labels", multiple=True, help="A label that counts in the loss; repeatable."
)
@click.option("--labels", "lists_labels", is_flag=True, help="List the model's labels and exit.")
@click.option(
    "--out",
    type=WRITTEN,
    help="Folder for the masks.  [default: mask_dir, or SOURCE with -masks appended]",
)
@click.option(
    "--kind",
    type=click.Choice(["semantic", "instance", "panoptic"]),
    help="Kind of segmentation.  [default: the one that the model supports]",
)
@click.option(
    "--threshold",
    type=Finite(0, 1),
    default=0.5,
    show_default=True,
    help="Minimum confidence for an object.",
)
@click.option(
    "--grow",
    type=click.IntRange(-2000, 2000),
    default=0,
    show_default=True,
    help="Grow masks by this many pixels on all sides; negative shrinks.",
)
@click.option(
    "--blur", type=Finite(0, 2000), default=0.0, help="Blur radius for soft edges, in pixels."
)
@click.option(
    "--invert", is_flag=True, help="Invert the masks: everything but the found areas counts."
)
@click.option(
    "--rest", type=Finite(0, 1), default=0.0,
    help="Weight in the loss of everything outside the mask.  [default: 0]",
)  # fmt: skip
@click.option(
    "--only", multiple=True, metavar="NAME",
    help="Only this image, by its path below SOURCE; repeatable.",
)  # fmt: skip
@click.option(
    "--from",
    "drawn",
    type=READ,
    help="Use this image file as the mask of the image in --only, without a model.",
)
@click.option("--overwrite", is_flag=True, help="Replace existing masks.")
@CACHE_DIR
def mask(source: Path, model: str, *, lists_labels: bool, **options: Any) -> None:
    """Make masks for the images of SOURCE: white where the loss counts.

    \b
    impasto dataset mask images --labels
    impasto dataset mask images --label Background --invert --grow 12 --blur 8
    impasto dataset mask images --model coco --label cat --label dog
    """  # noqa: D301 - the backspace tells click to keep the lines
    from impasto.cli.console import Console

    console = Console()
    drawn = options["drawn"]
    if drawn is not None and len(options["only"]) != 1:
        raise click.UsageError("--from needs --only with the name of one image.")
    if not lists_labels:
        local_dataset_config(source, options, _NO_MASKS)  # before a model is downloaded
    if drawn is None:
        segmenter = _loaded(model, options, console)
        if lists_labels:
            console.note("\n".join(segmenter.labels))
            return
        labels = segmenter.chosen(options["labels"])
        _write_masks(source, lambda image: segmenter.find(image, labels), options, console)
    else:
        _write_masks(source, lambda image: _read_drawn(drawn, image), options, console)


def _loaded(model: str, options: dict[str, Any], console: Console) -> Segmenter:
    from impasto.annotate.segmenting import Segmenter
    from impasto.training.devices import default_device

    given = {name: options[name] for name in ("kind", "threshold")}
    with console.stage("Loading the model", None, "models"):
        return Segmenter.load(model, default_device(), **given)


def _read_drawn(file: Path, image: Image) -> Image:
    """Read a hand-drawn mask for an image.

    Raises:
        DatasetError: It is unreadable, or its aspect ratio differs from the image's by over 2 %.
    """
    from impasto.data.pixels.images import UnreadableImageError, read_mask
    from impasto.errors import DatasetError

    try:
        drawn = read_mask(file)
    except UnreadableImageError as error:
        raise DatasetError(f"The mask {file} cannot be used: {error}.") from error
    if abs(drawn.width / drawn.height / (image.width / image.height) - 1) > _ASPECT_TOLERANCE:
        raise DatasetError(
            f"The mask {file} is {drawn.width}x{drawn.height} where the image is "
            f"{image.width}x{image.height}; expected the same aspect ratio."
        )
    return drawn


@dataclass(frozen=True)
class _Order:
    """An image and the path of the mask to make for it."""

    record: ImageRecord
    target: Path


def _write_masks(
    source: Path, find: Callable[[Image], Image | None], options: dict[str, Any], console: Console
) -> None:
    """Make masks for the images that have none yet, and print a summary."""
    from impasto.annotate.segmenting import MaskShape
    from impasto.errors import DatasetError

    orders, kept, folder = _orders(source, options, console)
    shape = MaskShape(**{name: options[name] for name in ("grow", "blur", "invert", "rest")})
    written, nothing, refused = 0, [], []
    with console.stage("Making masks", len(orders), "images") as advance:
        for order in orders:
            outcome = _make(order, find, shape, folder)
            if outcome is None:
                written += 1
            elif outcome:
                refused.append(f"{order.record.name}: {outcome}")
            else:
                nothing.append(order.record.name)
            advance(1)
    rows = {"Masks written": written, "Left unchanged": kept, "Nothing found": len(nothing)}
    console.table({**rows, "Skipped": len(refused), "Folder": folder})
    for line in refused:
        console.note(f"Skipped: {line}")
    if nothing:
        more = f" and {len(nothing) - _NAMED} more" if len(nothing) > _NAMED else ""
        console.note(
            f"Nothing was found in these, so no mask was written and the whole image counts: "
            f"{', '.join(nothing[:_NAMED])}{more}"
        )
    if options["drawn"] is not None and not written:
        why = (
            refused[0]
            if refused
            else "one exists (--overwrite replaces it), or the image is in the folder of masks"
        )
        raise DatasetError(f"The mask was not written: {why}. Give another folder with --out.")
    if written:
        console.note(f'To train with them, set mask_dir = "{folder.as_posix()}".')


def _orders(
    source: Path, options: dict[str, Any], console: Console
) -> tuple[Sequence[_Order], int, Path]:
    """Return the masks to make, the number that already exist, and the folder of the first mask.

    Raises:
        ConfigError: No folder of masks is known, or an image of `--only` does not exist.
    """
    from impasto import files
    from impasto.data.folders.mask_folders import usual_mask_folders
    from impasto.data.folders.masks import mask_file
    from impasto.data.subsets import MaskRules
    from impasto.datasets.build import scan_all
    from impasto.errors import ConfigError

    records = scan_all(local_dataset_config(source, options, _NO_MASKS), console).records
    require_own_files(records, _NO_MASKS)
    only = set(options["only"])
    unknown = only - {record.file_name for record in records}
    if unknown:
        raise ConfigError(
            f"{source} has no usable image {min(unknown)!r} (--only). Give its path below SOURCE, "
            f"with slashes."
        )
    orders, kept, folder = [], 0, options["out"]
    for record in {record.path: record for record in records}.values():
        own = record.subset.masks.folder if record.subset.masks else None
        masks = (
            options["out"] or own or (usual_mask_folders(source)[0] if source.is_dir() else None)
        )
        if masks is None:
            raise ConfigError(f"{source} sets no mask_dir. Give the folder for masks with --out.")
        folder = folder or masks
        if files.is_inside(record.path, masks) or (only and record.file_name not in only):
            continue
        subset = replace(record.subset, masks=MaskRules(folder=masks))
        if mask_file(replace(record, subset=subset)) is not None and not options["overwrite"]:
            kept += 1
            continue
        below = Path(record.file_name)
        name = below.name if below.is_absolute() else below
        orders.append(_Order(record, (masks / name).with_suffix(".png")))
    assert folder is not None  # noqa: S101 - there is at least one image
    return orders, kept, folder


def _why_kept(target: Path) -> str:
    """Return why the file at a mask's path is not replaced; empty if it is a mask or missing.

    This protects the images if a folder of images is given as the folder of masks.
    """
    from PIL import Image

    if not target.exists():
        return ""
    if target.with_suffix(".txt").exists():
        return f"{target} has a caption beside it, so it is an image and not a mask"
    try:
        with Image.open(target) as found:
            is_mask = found.mode in ("1", "L", "LA", "I", "I;16", "F")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"{target} cannot be read and was not replaced: {error}"
    return "" if is_mask else f"{target} is in colour, so it is an image and not a mask"


def _make(
    order: _Order, find: Callable[[Image], Image | None], shape: MaskShape, folder: Path
) -> str | None:
    """Make and write the mask of an image.

    Returns:
        None if it was written, the reason if it was not, or "" if nothing was found in the image.

    Raises:
        StorageError: The disk is full.
    """
    from impasto import files, storage_errors
    from impasto.data.pixels import images
    from impasto.data.pixels.rendering import require_scanned_size

    record, target = order.record, order.target
    try:
        image = images.read_rgb(record.path)
        require_scanned_size(image, record)
    except (images.UnreadableImageError, OSError) as error:
        return images.failure_of(error).reason
    fault = why_not_written(target, [folder])
    if fault:
        return fault
    fault = _why_kept(target)
    if fault:
        return fault
    found = find(image)
    if found is None:
        return ""
    with storage_errors.reported(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    made = shape.applied(found, image.size)
    with files.replace_file(target) as partial, partial.open("wb") as output:
        made.save(output, "PNG", optimize=False)
    return None
