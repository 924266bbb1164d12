"""What there is to know of one image file, and a copy of it that any program can show."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from impasto import files
from impasto.data.pixels import images
from impasto.data.records import Size

LONGEST = 2048
"""Pixels of the longer side of a copy to look at."""

_BROWSERS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
_SHOWN_WHOLE = 16_000_000  # pixels; a browser holds four bytes for each


@dataclass(frozen=True)
class ImageFacts:
    """What the file of an image says of itself.

    Attributes:
        width: Of the upright image, in pixels.
        height: The same.
        size_bytes: Of the file.
        format: Pillow's name for its format.
        mode: Pillow's name for its kind of pixels: `RGB`, `L`, `CMYK`.
        frames: How many images it holds; the first is used.
        rotated: Whether EXIF turns or mirrors the stored pixels.
        media_type: What browsers call it, if they can show the file itself as it is seen here;
            empty where they need a copy.
    """

    width: int
    height: int
    size_bytes: int
    format: str
    mode: str
    frames: int
    rotated: bool
    media_type: str

    def as_json(self) -> dict[str, int | str | bool]:
        """The facts as plain values, for JSON."""
        return asdict(self)


def inspect_image(path: Path) -> ImageFacts:
    """Read what the header of an image says; no pixels are decoded.

    Raises:
        UnreadableImageError: It is no image, damaged, or too large.
    """
    size, rotated = images.read_header(path)
    name, mode, frames = images.read_format(path)
    is_plain = frames == 1 and not (rotated and name != "JPEG") and mode in ("RGB", "L", "RGBA")
    shown = is_plain and size.area <= _SHOWN_WHOLE
    media_type = _BROWSERS.get(name, "") if shown else ""
    return ImageFacts(
        *size.wh, path.stat().st_size, name, mode, frames, rotated, media_type=media_type
    )


def write_view(path: Path, target: Path) -> None:
    """Write an upright copy to look at, at most `LONGEST` pixels wide and high.

    Args:
        path: The image.
        target: A `.jpg`, `.png` or `.webp`.

    Raises:
        UnreadableImageError: The image cannot be decoded.
        StorageError: The copy cannot be written.
    """
    image = images.read_rgb(path, at_least=Size(LONGEST, LONGEST))
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    kind = {".png": "PNG", ".webp": "WEBP"}.get(target.suffix.lower(), "JPEG")
    with files.replace_file(target) as partial, partial.open("wb") as output:
        image.save(output, kind, quality=90)
