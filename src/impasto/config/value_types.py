"""Describes the values that a setting accepts, from its annotation: in words, and for a form."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Form = Literal["flag", "choice", "text", "lines", "table", "sections", "value"]
"""Syntax of a setting in a form: true or false; one of several words; text; one text per line; the
lines of a table; a list of tables; or a value of TOML, in which words need no quotes."""

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_BOUNDS = {"ge": "from {}", "gt": "above {}", "le": "up to {}", "lt": "below {}"}


@dataclass(frozen=True)
class ValueType:
    """The values that a setting accepts.

    Attributes:
        text: A description: `a whole number, from 1`.
        form: Its syntax in a form.
        choices: The accepted values; empty if others are accepted too.
        bounds: Limits of a number by name (`ge`, `gt`, `le`, `lt`).
        can_be_off: Whether leaving it out has a meaning that no value has.
    """

    text: str
    form: Form
    choices: tuple[Any, ...] = ()
    bounds: Mapping[str, float] = field(default_factory=dict)
    can_be_off: bool = False


def type_of(info: FieldInfo) -> ValueType:
    """Return the values that a field of a section accepts."""
    plain, constraints = _opened(info.annotation, info.metadata)
    members = [member for member in _members(plain) if member is not types.NoneType]
    return ValueType(
        text=_text(info.annotation, info.metadata),
        form=_form_of(members),
        choices=tuple(c for m in members if get_origin(m) is Literal for c in get_args(m))
        if all(get_origin(member) is Literal for member in members)
        else (),
        bounds={
            name: limit
            for member in members
            for name, limit in _bounds(_opened(member, constraints)[1]).items()
        },
        can_be_off=types.NoneType in _members(plain),
    )


def section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field holds, or may hold; None if it holds values."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _form_of(members: list[Any]) -> Form:
    kinds = [_opened(member, ())[0] for member in members]
    if kinds == [bool]:
        return "flag"
    if all(get_origin(kind) is Literal for kind in kinds):
        return "choice"
    if all(kind in (str, Path) for kind in kinds):
        return "text"
    if any(get_origin(kind) is dict or section_in(kind) is kind for kind in kinds):
        return "table"
    if len(kinds) == 1 and get_origin(kinds[0]) is tuple:
        return _form_of_list(get_args(kinds[0]))
    return "value"


def _form_of_list(items: tuple[Any, ...]) -> Form:
    item, is_open = _opened(items[0], ())[0], items[-1] is Ellipsis
    if section_in(item) is item:
        return "sections"
    is_text = item is str or (
        get_origin(item) is Literal and all(isinstance(value, str) for value in get_args(item))
    )
    return "lines" if is_open and is_text else "value"


def _opened(annotation: Any, constraints: Iterable[Any]) -> tuple[Any, tuple[Any, ...]]:
    """Return an annotation without `Annotated`, and the constraints in it."""
    found = [*constraints]
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        for constraint in more:
            found += constraint.metadata if isinstance(constraint, FieldInfo) else [constraint]
    return annotation, tuple(found)


def _members(annotation: Any) -> tuple[Any, ...]:
    annotation, _ = _opened(annotation, ())
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(m for member in get_args(annotation) for m in _members_inside(member))
    return (annotation,)


def _members_inside(member: Any) -> tuple[Any, ...]:
    inner = _members(member)
    return inner if len(inner) > 1 else (member,)


def _bounds(constraints: Iterable[Any]) -> dict[str, float]:
    return {
        name: getattr(constraint, name)
        for constraint in constraints
        for name in _BOUNDS
        if getattr(constraint, name, None) is not None
    }


def _text(annotation: Any, constraints: Iterable[Any] = ()) -> str:
    annotation, found = _opened(annotation, constraints)
    members = _members(annotation)
    if len(members) > 1:
        texts = [_text(member) for member in members if member is not types.NoneType]
        return ", or ".join([*texts, *(["off"] if types.NoneType in members else [])])
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return (f"one of {', '.join(map(str, inner))}") if len(inner) > 1 else f'"{inner[0]}"'
    if origin is tuple:
        items = _text(inner[0])
        if inner[-1] is Ellipsis:
            return f"a list, each {items}"
        return f"a list [{', '.join(_text(_opened(item, ())[0]) for item in inner)}]"
    if origin is dict:
        return "a table of names and values"
    if section_in(annotation) is annotation:
        return "a table of settings"
    if isinstance(annotation, type) and issubclass(annotation, Path):
        return "a path"
    limits = [_BOUNDS[name].format(_number(limit)) for name, limit in _bounds(found).items()]
    return _NAMES.get(annotation, "a value") + (f" {', '.join(limits)}" if limits else "")


def _number(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"
