"""Validates settings, with errors that name file, key path, and the nearest valid key."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from impasto.config import elsewhere
from impasto.config.base import BEGUN
from impasto.config.kinds import sections_of
from impasto.errors import ConfigError

REFUSED = {
    "network_multiplier": "it scales a LoRA, and fine-tuning has none; remove it",
    "custom_attributes": "nothing reads it in fine-tuning; remove it",
    "cache_info": "sizes and captions are cached automatically; remove it",
    "conditioning_data_dir": "use mask_dir for masks",
    "caption_extention": "it is spelt caption_extension",
    "debug_dataset": "`impasto dataset plan` and `impasto dataset captions` show the dataset",
    "max_token_length": "it is a setting of the run: model.max_tokens, or --max_token_length",
}
"""Keys of sd-scripts that have no effect here -> the reason, or the alternative."""

_WHOLE, _NUMBER, _FLAG = "a whole number", "a number", "true or false"
_EXPECTED = {
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": _WHOLE,
    "int_from_float": _WHOLE,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": "a finite number",
    "bool_type": _FLAG,
    "bool_parsing": _FLAG,
    "string_type": "text",
    "tuple_type": "a list",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
}
"""What was expected, by pydantic's types of errors; all other errors keep pydantic's own
message."""

_OF_UNION = re.compile(r".*constrained|literal\[")
"""Matches the part that pydantic appends to a key whose value may have several types."""

S = TypeVar("S", bound=BaseModel)

REQUIRED = "is missing; it is required"
"""What follows the path of a setting that has no value."""


def validated(
    section: type[S], values: Mapping[str, Any], source: str, *, begun: bool = False
) -> S:
    """Validate a nested mapping; `source` names it in errors.

    Args:
        section: The section's class.
        values: The mapping.
        source: The name of its source.
        begun: Whether it belongs to a run that was started before; see `Rule.of_new_runs`.

    Raises:
        ConfigError: A key is unknown, or a value is invalid.
    """
    try:
        return section.model_validate(values, context={BEGUN: begun})
    except ValidationError as error:
        faults = _faults_of(error, section)
        told = ". ".join(text for _, text in faults)
        raise ConfigError(f"{source}: {told}.", _by_path(faults, section)) from error


def _faults_of(error: ValidationError, root: type[BaseModel]) -> list[tuple[list[str], str]]:
    """Return all errors of a tree, one per key path: its location, and a sentence.

    An error that lower levels inherited is reported at the level that caused it.
    """
    faults: dict[tuple[str, str], tuple[list[str], str]] = {}
    places: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    found = error.errors()
    for fault in found:
        if any(_is_inside(other["loc"], fault["loc"]) for other in found):
            continue  # a list is too short because an item of it is wrong
        place = tuple(str(item) for item in fault["loc"] if not _OF_UNION.match(str(item)))
        places.setdefault(place, []).append(dict(fault))
    for place, together in places.items():
        location = list(place)
        text = _describe_faults(together, location, root)
        same = (location[-1] if location else "", text.partition(":")[2] or text)
        known = faults.get(same)
        if known is None or ("general" in location and "general" not in known[0]):
            faults[same] = (location, text)
    return [*faults.values()]


def _by_path(faults: list[tuple[list[str], str]], root: type[BaseModel]) -> dict[str, str]:
    """Return the sentences by key path; several of one path are joined."""
    found: dict[str, str] = {}
    for location, text in faults:
        path = _written(_as_typed(location, root))
        found[path] = f"{found[path]}. {text}" if path in found else text
    return found


def _is_inside(location: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return len(location) > len(other) and location[: len(other)] == other


def _describe_faults(
    together: Sequence[dict[str, Any]], location: list[str], root: type[BaseModel]
) -> str:
    """Describe the errors of one location: what each accepted type expects, or the first error."""
    if len(together) == 1 or any(fault["type"] not in _EXPECTED for fault in together):
        return ". ".join(_describe_fault(fault, location, root) for fault in together)
    expected = dict.fromkeys(_expectation(fault) for fault in together)
    path = _written(_as_typed(location, root))
    return f"{path}: expected {', or '.join(expected)} (found {together[0]['input']!r})"


def _expectation(fault: Mapping[str, Any]) -> str:
    limits = {name: _plainly(value) for name, value in fault.get("ctx", {}).items()}
    return _EXPECTED[fault["type"]].format_map(limits)


def _describe_fault(fault: dict[str, Any], location: list[str], root: type[BaseModel]) -> str:
    path = _written(_as_typed(location, root))
    if fault["type"] == "union_tag_invalid":
        found, expected = fault["ctx"]["tag"], fault["ctx"]["expected_tags"]
        return f"{path}.kind is {found!r}; expected one of {expected}"
    if fault["type"] == "extra_forbidden":
        return _unknown_key(path, location, root)
    if fault["type"] == "missing":
        return f"{path} {REQUIRED}"
    if fault["type"] == "value_error":
        reason = str(fault["ctx"]["error"])
        return f"{path}: {reason}" if path else reason
    message = str(fault["msg"])
    known = fault["type"] in _EXPECTED
    text = f"expected {_expectation(fault)}" if known else f"{message[0].lower()}{message[1:]}"
    return f"{path}: {text} (found {fault['input']!r})"


def _plainly(value: Any) -> Any:
    """Return a limit as users write it: 0 and not 0.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _unknown_key(path: str, location: list[str], root: type[BaseModel]) -> str:
    key = location[-1]
    if key in REFUSED:
        return f"{path} has no effect: {REFUSED[key]}"
    allowed = _allowed_keys(root, location[:-1])
    longer = [own for own in allowed if own.endswith(f"_{key}")]
    near = (
        elsewhere.by_meaning(path, root)
        or difflib.get_close_matches(key, longer, n=1, cutoff=0.4)
        or elsewhere.of_that_name(path, root)
        or difflib.get_close_matches(key, allowed, n=1, cutoff=0.5)
        or elsewhere.nearest(path, root)
    )
    nearest = f"the nearest is {near[0]}; " if near else ""
    return f"unknown key {path} ({nearest}known here: {', '.join(allowed)})"


def _written(location: Sequence[str]) -> str:
    """Return a key path as users write it: `datasets[0].subsets[1].image_dir`."""
    path = ""
    for item in location:
        path += f"[{item}]" if item.isdigit() else f".{item}"
    return path.lstrip(".")


def _allowed_keys(root: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Return the keys of the section at `location` of the tree."""
    section: type[BaseModel] = root
    for _, inner in _walk(location, root):
        if inner is None:
            return []
        section = inner
    return sorted(section.model_fields)


def _as_typed(location: Sequence[str], root: type[BaseModel]) -> list[str]:
    """Return a location without the kinds that pydantic appends to sections that depend on them."""
    return [key for key, _ in _walk(location, root)]


def _walk(
    location: Sequence[str], root: type[BaseModel]
) -> Iterator[tuple[str, type[BaseModel] | None]]:
    """Yield each key of a location and the section that it leads to; None if it is a value."""
    section: type[BaseModel] | None = root
    kinds: Mapping[str, type[BaseModel]] = {}
    for number, key in enumerate(location):
        if key in kinds:  # the section that was just given
            kinds = {}
            continue
        field = None if section is None else section.model_fields.get(key)
        if key.isdigit() and field is None:
            yield key, section
            continue
        kinds = {} if field is None else sections_of(field)
        tag = location[number + 1] if number + 1 < len(location) else ""
        section = kinds.get(tag) or (None if field is None else _section_in(field.annotation))
        yield key, section


def _section_in(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
