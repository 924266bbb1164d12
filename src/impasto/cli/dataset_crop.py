"""`impasto dataset crop`: set, show or remove the crop of an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from impasto.cli.dataset_options import require_own_file

if TYPE_CHECKING:
    from impasto.data.records import Box, Size


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("rectangle", nargs=-1, type=int, metavar="[X Y WIDTH HEIGHT]")
@click.option("--remove", is_flag=True, help="Use the whole image again.")
@click.option(
    "--resolution", default=512, show_default=True, type=click.IntRange(64, 8192),
    help="Training resolution for which to show the bucket.",
)  # fmt: skip
def crop(image: Path, rectangle: tuple[int, ...], resolution: int, *, remove: bool) -> None:
    """Use only a rectangle of IMAGE: buckets, resizing and cropping start from it.

    X and Y are its top left corner. All four numbers are in pixels, after EXIF rotation. The
    rectangle is stored beside the image, in IMAGE.crop.json. Without a rectangle, the current one
    is shown.

    \b
    impasto dataset crop images/cat.jpg 900 0 2100 3000
    impasto dataset crop images/cat.jpg --remove
    """  # noqa: D301 - the backspace tells click to keep the lines
    from impasto.cli.console import Console
    from impasto.data.pixels import images
    from impasto.data.pixels.cuts import crop_file, read_cut, remove_cut, write_cut
    from impasto.data.records import Box, Size
    from impasto.errors import DatasetError

    if len(rectangle) not in (0, 4) or (rectangle and remove):
        raise click.UsageError("Give X, Y, WIDTH and HEIGHT; or --remove; or none of them.")
    require_own_file(image)
    console = Console()
    if remove:
        is_gone = remove_cut(image)
        console.note("The whole image is used." if is_gone else f"{image} has no crop to remove.")
        return
    if image.suffix.lower() not in images.EXTENSIONS:
        raise DatasetError(
            f"{image} does not have the file extension of an image. Give the path of an image."
        )
    try:
        whole, _ = images.read_header(image)
        if rectangle:
            x, y, width, height = rectangle
            write_cut(image, whole, Box(x, y, Size(width, height)))
        cut = read_cut(crop_file(image), whole) if crop_file(image).exists() else None
    except images.UnreadableImageError as error:
        raise DatasetError(f"{image}: {error}.") from error
    box = cut.box if cut else Box(0, 0, whole)
    console.table(_described(image, whole, box, resolution))
    if cut is None:
        console.note("It has no crop: the whole image is used.")


def _described(image: Path, whole: Size, box: Box, resolution: int) -> dict[str, str]:
    from impasto.data.pixels.cuts import bucket_of

    planned = bucket_of(image, whole, box, resolution)
    return {
        "Image": str(whole),
        "Used": f"{box.size} from {box.left},{box.top}",
        f"Bucket at {resolution}": str(planned.bucket),
        "Cropped away": f"{100 * planned.cropped_fraction:.1f} % of what is used",
    }
