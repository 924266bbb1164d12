"""Makes the health report of a dataset, as one self-contained HTML file and as JSON."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from impasto import files
from impasto.data.inspecting.health import Health
from impasto.data.pixels import images
from impasto.data.pixels.cuts import cut_beside, cut_out
from impasto.data.records import Size
from impasto.errors import ConfigError
from impasto.parsing import parse_json, read_text
from impasto.progress import Progress
from impasto.report.health_view import health_view
from impasto.report.page import rendered
from impasto.report.shortening import shortened

THUMBNAIL = 96


@dataclass(frozen=True)
class ReportFiles:
    """The output files of a report on a dataset.

    Attributes:
        page: The HTML file; a JSON file with the same content is written beside it.
        source: The folder or file that the report is on.
    """

    page: Path
    source: Path

    def __post_init__(self) -> None:
        """Check that the page is an HTML file.

        Raises:
            ConfigError: The name of the page is not that of an HTML file.
        """
        if self.page.suffix.lower() not in (".html", ".htm"):
            raise ConfigError(
                f"--out is {self.page}; expected an HTML file, such as "
                f"{self.page.with_suffix('.html')}. A JSON file is written beside it."
            )

    @property
    def data(self) -> Path:
        """The path of the JSON file beside the page."""
        return self.page.with_suffix(".json")

    @property
    def mark(self) -> str:
        """A hash that identifies the source without revealing its path."""
        return hashlib.sha256(os.path.abspath(self.source).encode("utf-8", "replace")).hexdigest()  # noqa: PTH100

    def require_free(self) -> None:
        """Check that only an earlier report on the same dataset would be replaced.

        Raises:
            ConfigError: Another file exists at one of the paths.
        """
        there = [path for path in (self.page, self.data) if os.path.lexists(path)]
        if there and _mark_in(self.data) != self.mark:
            raise ConfigError(
                f"{there[0]} exists, and is not a report on {self.source}. Give another name "
                f"with --out, or --overwrite to replace it."
            )


def _mark_in(data: Path) -> str:
    """Return the mark of the dataset in a report's JSON file; empty if it is not a report."""
    try:
        content = parse_json(read_text(data))
    except (OSError, ValueError):
        return ""
    return str(content.get(_MARK, "")) if isinstance(content, dict) else ""


_MARK = "source"


def write_dataset_report(
    health: Health, target: ReportFiles, progress: Progress, publish: Collection[str] = ()
) -> None:
    """Write the page and its JSON file, with full paths only if `publish` contains `paths`.

    Raises:
        StorageError: A file could not be written.
    """
    whole = health.as_json()
    content = shortened(whole, health.place, publish)
    files.write_json(target.data, {**content, _MARK: target.mark})
    with progress.stage("Drawing thumbnails", None, "images") as advance:

        def drawn(path: str, bucket: str) -> dict[str, str]:
            advance(1)
            return {"image": _data_url(Path(path), bucket), "address": ""}

        view = shortened(health_view(whole, drawn), health.place, publish)
        page = {"title": "Dataset", "is_darkened": True, "rest_in": "the JSON file", **view}
        files.write_text(target.page, rendered("dataset.html.j2", page))


def _data_url(path: Path, bucket: str) -> str:
    """Return a thumbnail as a data URL, empty if the image is unreadable.

    With a bucket, the area that its crop removes is darkened.
    """
    try:
        cut = cut_beside(path)
        least = None if cut else Size(THUMBNAIL, THUMBNAIL)
        image = cut_out(images.read_rgb(path, at_least=least), cut)
    except (images.UnreadableImageError, OSError):
        return ""
    image.thumbnail((2 * THUMBNAIL, THUMBNAIL))
    if bucket:
        _darken_cropped(image, Size(*map(int, bucket.split("x"))))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _darken_cropped(image: Image.Image, bucket: Size) -> None:
    width, height = image.size
    keep_width = min(width, round(height * bucket.aspect))
    keep_height = min(height, round(width / bucket.aspect))
    left, top = (width - keep_width) // 2, (height - keep_height) // 2
    shade = Image.new("L", image.size, 160)
    ImageDraw.Draw(shade).rectangle(
        (left, top, left + keep_width - 1, top + keep_height - 1), fill=0
    )
    image.paste(Image.new("RGB", image.size, (15, 15, 20)), mask=shade)
