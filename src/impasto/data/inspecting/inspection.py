"""Reads the facts about one image file, and makes a copy of it that any program can show."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from impasto import files
from impasto.data.pixels import images
from impasto.data.records import Size

LONGEST = 2048
"""Longest side of a copy for viewing, in pixels."""

_BROWSERS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
_SHOWN_WHOLE = 16_000_000  # pixels; a browser needs four bytes for each


@dataclass(frozen=True)
class ImageFacts:
    """Facts from the header of an image file.

    Attributes:
        width: Width of the upright image, in pixels.
        height: Height of the upright image, in pixels.
        size_bytes: Size of the file in bytes.
        format: Pillow's name for its format.
        mode: Pillow's name for its pixel mode: `RGB`, `L`, `CMYK`.
        frames: How many frames it has; the first one is used.
        rotated: Whether EXIF rotates or mirrors the stored pixels.
        media_type: Media type for browsers, if they show the file itself correctly; empty if they
            need a copy.
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
        """Return the facts as plain values, for JSON."""
        return asdict(self)


def inspect_image(path: Path) -> ImageFacts:
    """Read facts from the header of an image; no pixels are decoded.

    Raises:
        UnreadableImageError: The file is not an image, damaged, or too large.
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
    """Write an upright copy for viewing, at most `LONGEST` pixels wide and high.

    Args:
        path: The image.
        target: A `.jpg`, `.png` or `.webp` file.

    Raises:
        UnreadableImageError: The image cannot be decoded.
        StorageError: The copy cannot be written.
    """
    image = images.read_rgb(path, at_least=Size(LONGEST, LONGEST))
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    kind = {".png": "PNG", ".webp": "WEBP"}.get(target.suffix.lower(), "JPEG")
    with files.replace_file(target) as partial, partial.open("wb") as output:
        image.save(output, kind, quality=90)
