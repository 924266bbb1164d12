"""Parses draw requests, from the JSON of `request.json` and the studio's form, by the same rules.

Errors are reported per field. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from impasto.errors import ConfigError
from impasto.finite import finite
from impasto.runs.draw_requests import AXES, MOST_IMAGES, Axis, DrawRequest, ImageSettings
from impasto.sampler_table import SAMPLERS

LONGEST_PROMPT = 20_000
_WHOLE = {
    "seed": (0, 2**63 - 1),
    "width": (8, 8192),
    "height": (8, 8192),
    "steps": (1, 1000),
    "count": (1, MOST_IMAGES),
    "clip_skip": (1, 12),
}
_OPTIONAL = ("width", "height", "clip_skip")
_GUIDANCE, _RESCALE, _STRENGTH = (0.0, 1000.0), (0.0, 1.0), (-10.0, 10.0)
_LONGEST_NUMBER = 24


def request_of(values: Mapping[str, Any]) -> DrawRequest:
    """Return the request for plain values.

    Raises:
        ConfigError: Some values are invalid; the message names all of them.
    """
    request, faults = read_request(values)
    if request is None:
        told = " ".join(f"{name}: {fault}" for name, fault in faults.items())
        raise ConfigError(f"The request cannot be drawn. {told}")
    return request


def read_request(values: Mapping[str, Any]) -> tuple[DrawRequest | None, dict[str, str]]:
    """Return the request for plain values, or an error message per invalid field.

    Args:
        values: As `DrawRequest.as_json` returns them; numbers may be text, as in a form.

    Returns:
        The request, None if a value is invalid; and field -> error message.
    """
    read = _Reader(values)
    settings = ImageSettings(
        model=read.text("model", needed="Choose a model."),
        prompt=read.text("prompt"),
        negative=read.text("negative"),
        seed=read.whole("seed", 1) or 0,
        width=read.side("width"),
        height=read.side("height"),
        steps=read.whole("steps", 20) or 1,
        guidance=read.number("guidance", 7.0, *_GUIDANCE),
        sampler=read.sampler(),
        guidance_rescale=read.optional_number("guidance_rescale", *_RESCALE),
    )
    request = DrawRequest(
        settings,
        read.whole("count", 1) or 1,
        read.whole("clip_skip", None),
        read.hypernetworks(),
        read.axis("x", settings),
        read.axis("y", settings),
        values.get("random_seed") is True,
    )
    read.check_whole(request)
    return (None if read.faults else request), read.faults


class _Reader:
    """Reads values one by one and collects their errors."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.faults: dict[str, str] = {}

    def text(self, name: str, needed: str = "") -> str:
        value: object = self._values.get(name, "")
        if not isinstance(value, str) or len(value) > LONGEST_PROMPT or "\0" in value:
            self.faults[name] = f"Expected text of at most {LONGEST_PROMPT:,} characters."
            return ""
        if needed and not value:
            self.faults[name] = needed
        return value

    def whole(self, name: str, default: int | None) -> int | None:
        value = self._values.get(name)
        if value is None or (value == "" and name in _OPTIONAL):
            return default
        least, most = _WHOLE[name]
        found = _whole(value)
        if found is None or not least <= found <= most:
            self.faults[name] = f"Expected a whole number from {least} to {most}."
            return default
        return found

    def side(self, name: str) -> int | None:
        side = self.whole(name, None)
        if side is not None and side % 8:
            self.faults[name] = f"Expected a multiple of 8, such as {max(8, side // 8 * 8)}."
        return side

    def number(self, name: str, default: float, least: float, most: float) -> float:
        value = self._values.get(name, default)
        found = _number(value, least, most)
        if found is None:
            self.faults[name] = f"Expected a number from {least:g} to {most:g}."
            return default
        return found

    def optional_number(self, name: str, least: float, most: float) -> float | None:
        if self._values.get(name) in (None, ""):
            return None
        return self.number(name, least, least, most)

    def sampler(self) -> str:
        name: object = self._values.get("sampler", "ddim")
        if not isinstance(name, str) or name not in SAMPLERS:
            self.faults["sampler"] = f"Choose one of {', '.join(SAMPLERS)}."
            return "ddim"
        return name

    def hypernetworks(self) -> tuple[tuple[str, float], ...]:
        given = self._values.get("hypernetworks", [])
        if not isinstance(given, (list, tuple)):
            given = [None]
        found = []
        for item in given:
            pair = item if isinstance(item, (list, tuple)) and len(item) == 2 else (None, None)
            strength = _number(pair[1], *_STRENGTH)
            if not isinstance(pair[0], str) or strength is None:
                self.faults["hypernetworks"] = (
                    f"Expected files, each with a strength from {_STRENGTH[0]:g} to "
                    f"{_STRENGTH[1]:g}."
                )
                continue
            found.append((pair[0], strength))
        return tuple(found)

    def axis(self, name: str, settings: ImageSettings) -> Axis | None:
        given = self._values.get(name)
        if given is None:
            return None
        kind = given.get("kind") if isinstance(given, Mapping) else None
        values = given.get("values") if isinstance(given, Mapping) else None
        if not isinstance(kind, str) or kind not in AXES or not isinstance(values, (list, tuple)):
            self.faults[name] = f"Expected one of {', '.join(AXES)}, with values."
            return None
        fault = _axis_fault(kind, values, settings)
        if fault:
            self.faults[name] = fault
            return None
        return Axis(kind, tuple(values))

    def check_whole(self, request: DrawRequest) -> None:
        """Check conditions that involve several values."""
        axes = [axis for axis in (request.x, request.y) if axis is not None]
        if len(axes) == 2 and axes[0].kind == axes[1].kind:
            self.faults["y"] = "Both axes vary the same setting. Choose another for one of them."
        if axes and request.count > 1:
            self.faults["count"] = "A grid has one image in each cell. Vary the seed by an axis."
        if any(axis.kind == "strength" for axis in axes) and not request.hypernetworks:
            self.faults["hypernetworks"] = "An axis varies their strength: choose at least one."
        if request.size > MOST_IMAGES:
            self.faults["y" if request.y else "x"] = (
                f"These are {request.size} images; at most {MOST_IMAGES} are drawn at once."
            )


def _axis_fault(kind: str, values: Sequence[Any], settings: ImageSettings) -> str:
    """Return what is wrong with the values of an axis; empty if nothing is."""
    if not values or len(values) > MOST_IMAGES:
        return f"Expected 1 to {MOST_IMAGES} values."
    if any(not isinstance(value, str) or not value for value in values):
        return "Expected values that are not empty."
    if kind == "words":
        if values[0] not in settings.prompt and values[0] not in settings.negative:
            return f"The prompt does not contain {values[0]!r}, which the others would replace."
        return ""
    wrong = next((value for value in values if not _fits(kind, value)), None)
    return "" if wrong is None else f"{wrong!r} is not possible here. {_EXPECTED[kind]}"


def _fits(kind: str, value: str) -> bool:
    if kind in ("seed", "steps"):
        found = _whole(value)
        return found is not None and _WHOLE[kind][0] <= found <= _WHOLE[kind][1]
    if kind in _NUMBERS:
        return _number(value, *_NUMBERS[kind]) is not None
    return kind != "sampler" or value in SAMPLERS


_NUMBERS = {"guidance": _GUIDANCE, "guidance_rescale": _RESCALE, "strength": _STRENGTH}
_EXPECTED = {
    "seed": "Expected whole numbers from 0 on.",
    "steps": "Expected whole numbers from 1 to 1000.",
    "guidance": "Expected numbers from 0 to 1000.",
    "guidance_rescale": "Expected numbers from 0 to 1.",
    "strength": "Expected numbers from -10 to 10.",
    "sampler": f"Known are {', '.join(SAMPLERS)}.",
}


def split_values(text: str) -> list[str]:
    """Split user input into values: one per line, or separated by commas in one line."""
    pieces: Iterator[str] = iter(text.splitlines() if "\n" in text.strip() else text.split(","))
    return [piece.strip() for piece in pieces if piece.strip()]


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and len(value) <= _LONGEST_NUMBER and value.isascii():
        try:
            return int(value)
        except ValueError:
            return None
    return value if type(value) is int else None


def _number(value: Any, least: float, most: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = finite(value)
    except (ValueError, OverflowError):
        return None
    return found if least <= found <= most else None
