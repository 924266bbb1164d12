"""Makes the page of a dataset from its health: one file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image, ImageDraw

from impasto import files
from impasto.data import images
from impasto.data.cuts import cut_beside, cut_out
from impasto.data.health import SIDES, TOKEN_LIMITS, Health
from impasto.data.likeness import NEAR_DUPLICATE_BITS
from impasto.data.records import Size
from impasto.errors import ConfigError
from impasto.parsing import parse_json, read_text
from impasto.progress import Progress, counted
from impasto.report.charts import bucket_chart, histogram_chart
from impasto.report.page import rendered
from impasto.report.shortening import shortened

THUMBNAIL = 96
SHOWN = 12
SHOWN_GROUPS = 20
SHOWN_ROWS = 40
LARGE_CROP = 0.15


@dataclass(frozen=True)
class ReportFiles:
    """Where a report on a dataset is written.

    Attributes:
        page: The HTML file; the same as JSON is beside it.
        source: What is reported on: a folder or file.
    """

    page: Path
    source: Path

    def __post_init__(self) -> None:
        """Make sure that page and data are two files.

        Raises:
            ConfigError: The page would be written over the data.
        """
        if self.page.suffix.lower() == ".json":
            raise ConfigError(
                f"--out is {self.page}, which is the name of the data beside the page. Name the "
                f"page, such as {self.page.with_suffix('.html')}; the JSON file is written with it."
            )

    @property
    def data(self) -> Path:
        """The path of the JSON file beside the page."""
        return self.page.with_suffix(".json")

    @property
    def mark(self) -> str:
        """Names the source without telling its path."""
        return hashlib.sha256(os.path.abspath(self.source).encode("utf-8", "replace")).hexdigest()  # noqa: PTH100

    def require_free(self) -> None:
        """Make sure that nothing is replaced but an earlier report on the same dataset.

        Raises:
            ConfigError: Another file is there.
        """
        there = [path for path in (self.page, self.data) if os.path.lexists(path)]
        if there and _mark_in(self.data) != self.mark:
            raise ConfigError(
                f"{there[0]} is there, and is not a report on {self.source}. Give another name "
                f"with --out, or --overwrite to replace it."
            )


def _mark_in(data: Path) -> str:
    """The mark of the dataset that a report is on; empty if that is no report."""
    try:
        content = parse_json(read_text(data))
    except (OSError, ValueError):
        return ""
    return str(content.get(_MARK, "")) if isinstance(content, dict) else ""


_MARK = "source"


def write_dataset_report(
    health: Health, target: ReportFiles, progress: Progress, publish: Collection[str] = ()
) -> None:
    """Write the page and the same as JSON, with whole paths only if `publish` names `paths`.

    Raises:
        StorageError: A file could not be written.
    """
    content = shortened(health.as_json(), health.place, publish)
    files.write_json(target.data, {**content, _MARK: target.mark})
    with progress.stage("Drawing thumbnails", None, "images") as advance:
        content = shortened(_Content(health, advance).all(), health.place, publish)
        files.write_text(target.page, rendered("dataset.html.j2", content))


class _Content:
    """The values that the template of the page shows."""

    def __init__(self, health: Health, advance: Any) -> None:
        self._health, self._advance = health, advance

    def all(self) -> dict[str, Any]:
        health, captions = self._health, self._health.captions
        return {
            "title": "Dataset",
            "place": health.place,
            "facts": self._facts(),
            "advice": _advice(health),
            **self._geometry(),
            "token_svg": self._token_chart(),
            "token_line": _token_line(health),
            "missing": self._thumbs(captions.missing[:SHOWN]),
            "all_missing": len(captions.missing),
            "several_lines": captions.several_lines,
            "same": captions.same[:SHOWN_ROWS],
            "all_same": len(captions.same),
            "sides": captions.naming_sides if health.flips else [],
            "tags": [(tag, n) for tag, n in health.tags.items() if n > 1][:SHOWN_ROWS],
            "tag_line": f"{health.number_of_tags} different tags; {health.rare_tags} of them occur "
            f"once.",
            "pairs": health.tag_pairs,
            "equal": [self._thumbs(group[:SHOWN]) for group in health.equal[:SHOWN_GROUPS]],
            "all_equal": len(health.equal),
            "near": [self._thumbs(group[:SHOWN]) for group in health.near[:SHOWN_GROUPS]],
            "all_near": len(health.near),
            "near_bits": NEAR_DUPLICATE_BITS,
            "same_stem": [self._thumbs(group) for group in health.same_stem[:SHOWN_GROUPS]],
            "set_aside": health.set_aside,
            "unused": health.unused,
        }

    def _geometry(self) -> dict[str, Any]:
        health = self._health
        several = len({bucket.dataset for bucket in health.buckets}) > 1
        names = [
            f"{bucket.size} (dataset {bucket.dataset + 1})" if several else bucket.size
            for bucket in health.buckets
        ]
        counts = [bucket.pictures for bucket in health.buckets]
        return {
            "bucket_svg": Markup(bucket_chart(dict(zip(names, counts, strict=True)))),
            "crop_line": f"{100 * health.mean_lost:.1f} % of the area is cropped away on average.",
            "buckets": [
                {
                    "name": name,
                    "pictures": bucket.pictures,
                    "mean": f"{100 * bucket.mean_lost:.1f} %",
                    "worst": f"{100 * bucket.worst_lost:.1f} %",
                }
                for name, bucket in zip(names, health.buckets, strict=True)
            ],
            "cropped": [
                self._thumb(item.path, f"{100 * item.lost:.0f} % lost", item.bucket)
                for item in health.cropped[:SHOWN]
            ],
            "aspect_svg": Markup(
                histogram_chart(_clipped(health.aspects), "width / height", [1.0])
            ),
            "sizes": list(health.sizes.items())[:SHOWN_ROWS],
            "all_sizes": len(health.sizes),
            "too_small": [
                self._thumb(item.path, f"{item.size}, enlarged {item.factor:.1f}×")
                for item in health.too_small[:SHOWN]
            ],
            "all_too_small": len(health.too_small),
            "rotated": self._thumbs(health.rotated[:SHOWN]),
            "all_rotated": len(health.rotated),
        }

    def _token_chart(self) -> str:
        lengths = self._health.captions.token_lengths
        values = [length for length, count in lengths.items() for _ in range(count)]
        if not values:
            return ""
        marks = [limit for limit in TOKEN_LIMITS if limit <= max(values)]
        return Markup(histogram_chart(values, "tokens in the caption", marks, whole=True))

    def _facts(self) -> list[dict[str, str]]:
        health = self._health
        twice = sum(len(group) - 1 for group in health.equal)
        alike = sum(len(group) - 1 for group in health.near)
        tally = health.tally
        return [
            _fact("usable images", tally.usable),
            _fact("showings per epoch", health.showings),
            *self._regularisation_facts(),
            *([_fact("with crops of their own", tally.cut)] if tally.cut else []),
            _fact("skipped", tally.set_aside, bad=tally.set_aside > 0),
            _fact("also found", tally.also_found, bad=tally.also_found > 0),
            _fact("without words", tally.without_words, bad=tally.without_words > 0),
            _fact("the same twice", twice, bad=twice > 0),
            _fact("nearly the same", alike, bad=alike > 0),
            _fact("too small", len(health.too_small), bad=bool(health.too_small)),
            _fact("over 75 tokens", health.captions.over[75]),
        ]

    def _regularisation_facts(self) -> list[dict[str, str]]:
        balance = self._health.balance
        if balance is None:
            return []
        return [
            _fact("regularisation images", balance.images),
            _fact("of them used", balance.used, bad=balance.used < balance.images),
            _fact("showings of them", balance.showings),
        ]

    def _thumbs(self, paths: Sequence[Path]) -> list[dict[str, str]]:
        return [self._thumb(path) for path in paths]

    def _thumb(self, path: Path, note: str = "", bucket: str = "") -> dict[str, str]:
        self._advance(1)
        return {"name": path.name, "note": note, "image": _data_url(path, bucket)}


def _fact(name: str, value: int, *, bad: bool = False) -> dict[str, str]:
    return {"name": name, "value": f"{value:,}", "mood": "bad" if bad else ""}


def _advice(health: Health) -> list[str]:
    """What a person would do something about, in the order of what it costs."""
    captions = health.captions
    much = sum(item.lost > LARGE_CROP for item in health.cropped)
    sides = len(captions.naming_sides) if health.flips else 0
    rows = [
        (len(health.set_aside), "{files} cannot be used; the reasons are below."),
        (len(captions.missing), "{images have} no words, and so nothing that a prompt can name."),
        (len(health.equal), "{files are} there more than once, and count so: delete the copies."),
        (len(health.near), "{groups of images are} nearly the same: such are learnt best."),
        (
            len(health.too_small),
            "{images are} enlarged by more than half, which teaches blur: leave them out, or "
            "set bucket_no_upscale.",
        ),
        (
            much,
            f"{{images lose}} over {100 * LARGE_CROP:.0f} % to cropping: a smaller "
            f"bucket_reso_steps, or a larger max_bucket_reso, loses less.",
        ),
        (
            len(captions.several_lines),
            "{captions have} several lines, of which only the first is used: set enable_wildcard "
            "to take one at random.",
        ),
        (
            captions.over[75],
            "{captions have} over 75 tokens: what is beyond model.max_tokens is not seen.",
        ),
        (
            sides,
            f"{{captions}} with {' or '.join(SIDES)} in the words, while images are mirrored: "
            f"flip_safe keeps those as they are.",
        ),
        (
            len(health.same_stem),
            "{caption files are} shared by images of which only the endings differ.",
        ),
    ]
    return [_with_count(text, count) for count, text in rows if count]


def _with_count(text: str, count: int) -> str:
    """A sentence that begins with what is counted, in braces, with the number in its place."""
    words, _, rest = text.removeprefix("{").partition("}")
    return counted(count, words) + rest


def _clipped(aspects: Sequence[float]) -> list[float]:
    """Aspects as far as a chart can show them: strips beyond 8 to 1 stand at its ends."""
    return [min(max(aspect, 1 / 8), 8.0) for aspect in aspects]


def _token_line(health: Health) -> str:
    over = ", ".join(f"{count} over {limit}" for limit, count in health.captions.over.items())
    return f"Captions by their length in tokens: {over}."


def _data_url(path: Path, bucket: str) -> str:
    """A small JPEG; with a bucket, what its crop loses is darkened. Empty if it has vanished."""
    try:
        cut = cut_beside(path)
        least = None if cut else Size(THUMBNAIL, THUMBNAIL)
        picture = cut_out(images.read_rgb(path, at_least=least), cut)
    except (images.UnreadableImageError, OSError):
        return ""
    picture.thumbnail((2 * THUMBNAIL, THUMBNAIL))
    if bucket:
        _darken_cropped(picture, Size(*map(int, bucket.split("x"))))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _darken_cropped(picture: Image.Image, bucket: Size) -> None:
    width, height = picture.size
    keep_width = min(width, round(height * bucket.aspect))
    keep_height = min(height, round(width / bucket.aspect))
    left, top = (width - keep_width) // 2, (height - keep_height) // 2
    shade = Image.new("L", picture.size, 160)
    ImageDraw.Draw(shade).rectangle(
        (left, top, left + keep_width - 1, top + keep_height - 1), fill=0
    )
    picture.paste(Image.new("RGB", picture.size, (15, 15, 20)), mask=shade)
