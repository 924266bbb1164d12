"""The health of a dataset as plain values and charts for pages, made from its JSON form.

The report is made from it directly after the examination of the dataset. The studio makes the same
view from the JSON file that `impasto dataset report` wrote, without reading images. Each page
supplies its own thumbnails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from markupsafe import Markup

from impasto.data.inspecting.health_limits import NEAR_DUPLICATE_BITS, SIDES, TOKEN_LIMITS
from impasto.progress import counted
from impasto.report.charts import bucket_chart, histogram_chart

SHOWN = 12
SHOWN_GROUPS = 20
SHOWN_ROWS = 40
LARGE_CROP = 0.15

Content = Mapping[str, Any]
Drawn = Callable[[str, str], Mapping[str, str]]
"""Path of an image, and its bucket or an empty text -> `image`, the address of its thumbnail, and
`address`, the target of its link; each may be empty."""


def health_view(health: Content, drawn: Drawn) -> dict[str, Any]:
    """Return the variables of `health.html.j2`.

    Args:
        health: The result of `Health.as_json`.
        drawn: Makes the thumbnails.

    Raises:
        KeyError, TypeError, ValueError, ArithmeticError: `health` is invalid.
    """
    captions, thumbs = health["captions"], _Thumbs(drawn)
    return {
        "place": health["place"],
        "facts": _facts(health),
        "advice": _advice(health),
        **_geometry(health, thumbs),
        "token_svg": _token_chart(health),
        "token_line": _token_line(captions),
        "missing": thumbs.of(captions["missing"]),
        "all_missing": len(captions["missing"]),
        "several_lines": _texts(captions["several_lines"]),
        "same": [(str(text), int(count)) for text, count in captions["same"][:SHOWN_ROWS]],
        "all_same": len(captions["same"]),
        "sides": _texts(captions["naming_sides"]) if health["flips"] else [],
        "tags": [(str(tag), n) for tag, n in health["tags"].items() if n > 1][:SHOWN_ROWS],
        "tag_line": f"{health['number_of_tags']} different tags; {health['rare_tags']} of them "
        f"occur once.",
        "pairs": [(str(one), str(other), int(n)) for one, other, n in health["tag_pairs"]],
        **{name: thumbs.groups(health[name]) for name in ("equal", "near", "same_stem")},
        "all_equal": len(health["equal"]),
        "all_near": len(health["near"]),
        "near_bits": NEAR_DUPLICATE_BITS,
        "set_aside": _passed_over(health["set_aside"]),
        "unused": _passed_over(health["unused"]),
    }


def _texts(values: Sequence[Any]) -> list[str]:
    return [str(value) for value in values]


def _passed_over(items: Sequence[Content]) -> list[dict[str, str]]:
    return [{"path": str(item["path"]), "reason": str(item["reason"])} for item in items]


class _Thumbs:
    """Makes the thumbnails of images, each with its name and a note."""

    def __init__(self, drawn: Drawn) -> None:
        self._drawn = drawn

    def of(self, paths: Sequence[str]) -> list[dict[str, str]]:
        return [self.one(path) for path in paths[:SHOWN]]

    def groups(self, groups: Sequence[Sequence[str]]) -> list[list[dict[str, str]]]:
        return [self.of(group) for group in groups[:SHOWN_GROUPS]]

    def one(self, path: str, note: str = "", bucket: str = "") -> dict[str, str]:
        return {"name": PurePath(path).name, "note": note, **self._drawn(path, bucket)}


def _geometry(health: Content, thumbs: _Thumbs) -> dict[str, Any]:
    buckets = health["buckets"]
    several = len({bucket["dataset"] for bucket in buckets}) > 1
    names = [
        f"{bucket['size']} (dataset {bucket['dataset'] + 1})" if several else str(bucket["size"])
        for bucket in buckets
    ]
    counts = [bucket["images"] for bucket in buckets]
    aspects = histogram_chart(_clipped(health["aspects"]), "width / height", [1.0])
    return {
        "bucket_svg": Markup(bucket_chart(dict(zip(names, counts, strict=True)))),
        "crop_line": f"{100 * health['mean_lost']:.1f} % of the area is cropped away on average.",
        "buckets": [
            {
                "name": name,
                "images": int(bucket["images"]),
                "mean": f"{100 * bucket['mean_lost']:.1f} %",
                "worst": f"{100 * bucket['worst_lost']:.1f} %",
            }
            for name, bucket in zip(names, buckets, strict=True)
        ],
        "cropped": [
            thumbs.one(item["path"], f"{100 * item['lost']:.0f} % lost", item["bucket"])
            for item in health["cropped"][:SHOWN]
        ],
        "aspect_svg": Markup(aspects),
        "sizes": list(health["sizes"].items())[:SHOWN_ROWS],
        "all_sizes": len(health["sizes"]),
        "too_small": [
            thumbs.one(item["path"], f"{item['size']}, enlarged {item['factor']:.1f}×")
            for item in health["too_small"][:SHOWN]
        ],
        "all_too_small": len(health["too_small"]),
        "rotated": thumbs.of(health["rotated"]),
        "all_rotated": len(health["rotated"]),
    }


def _token_chart(health: Content) -> Markup:
    lengths = {int(length): count for length, count in health["captions"]["token_lengths"].items()}
    if min(lengths.values(), default=0) < 0 or sum(lengths.values()) > len(health["aspects"]):
        raise ValueError("a negative number of captions, or more captions than images")
    values = [length for length, count in lengths.items() for _ in range(count)]
    marks = [limit for limit in TOKEN_LIMITS if limit <= max(values, default=0)]
    return Markup(histogram_chart(values, "tokens in the caption", marks, whole=True))


def _facts(health: Content) -> list[dict[str, str]]:
    twice = sum(len(group) - 1 for group in health["equal"])
    alike = sum(len(group) - 1 for group in health["near"])
    tally, small = health["tally"], len(health["too_small"])
    return [
        _fact("usable images", tally["usable"]),
        _fact("showings per epoch", health["showings"]),
        *_regularisation_facts(health["balance"]),
        *([_fact("with a crop file", tally["cut"])] if tally["cut"] else []),
        _fact("skipped", tally["set_aside"], bad=tally["set_aside"] > 0),
        _fact("also found", tally["also_found"], bad=tally["also_found"] > 0),
        _fact("without a caption", tally["without_words"], bad=tally["without_words"] > 0),
        _fact("copies", twice, bad=twice > 0),
        _fact("near copies", alike, bad=alike > 0),
        _fact("too small", small, bad=small > 0),
        _fact("over 75 tokens", health["captions"]["over"]["75"]),
    ]


def _regularisation_facts(balance: Content | None) -> list[dict[str, str]]:
    if balance is None:
        return []
    return [
        _fact("regularisation images", balance["images"]),
        _fact(
            "regularisation images used", balance["used"], bad=balance["used"] < balance["images"]
        ),
        _fact("regularisation showings", balance["showings"]),
    ]


def _fact(name: str, value: int, *, bad: bool = False) -> dict[str, str]:
    return {"name": name, "value": f"{value:,}", "mood": "bad" if bad else ""}


def _advice(health: Content) -> list[str]:
    """Return sentences of advice, the most important first."""
    captions = health["captions"]
    much = sum(item["lost"] > LARGE_CROP for item in health["cropped"])
    sides = len(captions["naming_sides"]) if health["flips"] else 0
    rows = [
        (len(health["set_aside"]), "{files} cannot be used; the reasons are below."),
        (
            len(captions["missing"]),
            "{images have} no caption, so that no prompt can refer to their content.",
        ),
        (
            len(health["equal"]),
            "{files occur} more than once, and count more than once: delete the copies.",
        ),
        (
            len(health["near"]),
            "{groups of images are} nearly the same, and will be learnt most strongly.",
        ),
        (
            len(health["too_small"]),
            "{images are} enlarged by more than half, which teaches blur: remove them, or "
            "set bucket_no_upscale.",
        ),
        (
            much,
            f"{{images lose}} over {100 * LARGE_CROP:.0f} % to cropping: set a smaller "
            f"bucket_reso_steps, or a larger max_bucket_reso.",
        ),
        (
            len(captions["several_lines"]),
            "{captions have} several lines, of which only the first is used: set enable_wildcard "
            "to take one at random.",
        ),
        (
            captions["over"]["75"],
            "{captions have} over 75 tokens: tokens beyond model.max_tokens are ignored.",
        ),
        (
            sides,
            f"{{captions}} with {' or '.join(SIDES)} in the text, while images are mirrored: set "
            f"flip_safe, which does not mirror these images.",
        ),
        (
            len(health["same_stem"]),
            "{caption files are} shared by images that differ only in their file extensions.",
        ),
    ]
    return [_with_count(text, count) for count, text in rows if count]


def _with_count(text: str, count: int) -> str:
    """Replace the leading plural noun in braces in a sentence by the count and the noun."""
    plural, _, rest = text.removeprefix("{").partition("}")
    return counted(count, plural) + rest


def _clipped(aspects: Sequence[float]) -> list[float]:
    """Clip aspect ratios to the range of the chart, 1/8 to 8."""
    return [min(max(aspect, 1 / 8), 8.0) for aspect in aspects]


def _token_line(captions: Content) -> str:
    over = ", ".join(f"{count} over {limit}" for limit, count in captions["over"].items())
    return f"Captions by their length in tokens: {over}."
