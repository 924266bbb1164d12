"""Reads the values of flags that are more than one number or word."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from impasto.errors import ConfigError
from impasto.finite import finite
from impasto.sdscripts.flags import FLAGS


def read_resolution(text: str) -> Any:
    """A side, or width and height.

    Raises:
        ConfigError: It is written otherwise.
    """
    numbers = [part.strip() for part in text.split(",")]
    if len(numbers) > 2 or not all(part.isdecimal() for part in numbers):
        raise ConfigError(f"--resolution is {text!r}; expected 512 or 512,768 (width, height).")
    return int(numbers[0]) if len(numbers) == 1 else [int(part) for part in numbers]


def read_numbers(name: str, flags: Mapping[str, Any], count: int) -> list[float]:
    """So many numbers with commas between them.

    Raises:
        ConfigError: It is written otherwise.
    """
    parts = str(flags[name]).split(",")
    try:
        numbers = [finite(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise ConfigError(f"--{name} is {flags[name]!r}; expected {count} numbers with a comma.")
    return numbers


def read_number(name: str, found: str, text: str) -> float:
    """A number that is part of a flag's value; `found` is all of it, for the error.

    Raises:
        ConfigError: It is written otherwise.
    """
    try:
        return finite(text)
    except ValueError as error:
        raise ConfigError(f"--{name} is {found!r}; expected a number.") from error


def read_steps(name: str, flags: Mapping[str, Any]) -> Any:
    """A number of updates, a share of the run, or a percentage.

    Raises:
        ConfigError: It is written otherwise.
    """
    text = str(flags.get(name, FLAGS[name].default)).strip()
    if text.endswith("%"):
        return text
    try:
        return int(text) if text.isdecimal() else finite(text)
    except ValueError as error:
        raise ConfigError(f"--{name} is {text!r}; expected 500, 0.05 or 5%.") from error


def read_pairs(name: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    """`key=value` words; a value is a Python literal, or else text.

    Raises:
        ConfigError: A word is not of that form.
    """
    pairs: dict[str, Any] = {}
    for word in flags.get(name, []):
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"--{name} has {word!r}; expected key=value.")
        try:
            pairs[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            pairs[key] = value.strip("\"'")
    return pairs
