"""Parses the values of flags that are more than one number or word."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from impasto.errors import ConfigError
from impasto.finite import finite
from impasto.parsing import is_deep, is_text

_LARGEST = 2**63 - 1
_SIDE = re.compile(r"\d{1,9}", re.ASCII)
_SHOWN = 80  # the most characters of a value in an error message


def read_resolution(text: str, name: str = "resolution") -> Any:
    """Parse a resolution in pixels: one side, or width and height.

    Args:
        text: The value of the flag.
        name: The name of the flag.

    Raises:
        ConfigError: The value is malformed.
    """
    numbers = [piece.strip() for piece in text.split(",")]
    if len(numbers) > 2 or not all(_SIDE.fullmatch(piece) for piece in numbers):
        raise ConfigError(f"--{name} is {_short(text)}; expected 512 or 512,768 (width, height).")
    return int(numbers[0]) if len(numbers) == 1 else [int(piece) for piece in numbers]


def read_numbers(name: str, flags: Mapping[str, Any], count: int) -> list[float]:
    """Parse `count` numbers separated by commas.

    Raises:
        ConfigError: The value is malformed, or has another count.
    """
    pieces = str(flags[name]).split(",")
    try:
        numbers = [finite(piece) for piece in pieces]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise ConfigError(
            f"--{name} is {flags[name]!r}; expected {count} numbers separated by commas."
        )
    return numbers


def read_number(name: str, found: str, text: str) -> float:
    """Parse a number that is part of a flag's value; `found` is the whole value, for the error.

    Raises:
        ConfigError: It is not a finite number.
    """
    try:
        return finite(text)
    except ValueError as error:
        raise ConfigError(f"--{name} is {found!r}; expected a number.") from error


def read_steps(name: str, flags: Mapping[str, Any]) -> Any:
    """Parse a number of steps, a fraction of the run, or a percentage; 0 if it is not given.

    Raises:
        ConfigError: The value is malformed, or is 1.0, which is ambiguous.
    """
    text = str(flags.get(name, "0")).strip()
    if text.endswith("%"):
        return text
    try:
        steps = int(text) if text.isdecimal() else finite(text)
    except ValueError as error:
        raise ConfigError(f"--{name} is {text!r}; expected 500, 0.05 or 5%.") from error
    if steps == 1 and isinstance(steps, float):
        raise ConfigError(
            f"--{name} is {text}, which could mean one step or, as in a file of sd-scripts, the "
            f"whole run. Write 1 for one step, or 100% for the whole run."
        )
    return steps


def read_pairs(name: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Parse `key=value` arguments; a value is a Python literal, or else text.

    Values are stored in the run's settings, which are TOML, and a resumed run reads them from
    there: values that TOML cannot express are rejected.

    Raises:
        ConfigError: An argument is not `key=value`, or TOML cannot express a value.
    """
    pairs: dict[str, Any] = {}
    for pair in flags.get(name, []):
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--{name} has {_short(pair)}; expected key=value.")
        try:
            found = _literal(value)
            listed = _as_toml(found)
        except ValueError as error:
            raise ConfigError(f"--{name} has {_short(pair)}: {error}.") from error
        pairs[key] = tuple(listed) if isinstance(found, tuple) else listed
        if is_deep(listed) or not is_text(key):
            raise ConfigError(f"--{name} has {_short(pair)}, which a settings file cannot hold.")
    return pairs


def _literal(text: str) -> Any:
    """Parse a value as a Python literal; other text is returned without its quotes.

    Raises:
        ValueError: The value is nested too deeply, or cannot be evaluated.
    """
    try:
        return ast.literal_eval(text)
    except (MemoryError, RecursionError) as error:
        raise ValueError("it is nested too deeply") from error
    except TypeError as error:
        raise ValueError(f"it is not a valid value ({error})") from error
    except (ValueError, SyntaxError):
        return text.strip("\"'")


def _as_toml(value: Any) -> Any:
    """Return a value with tuples replaced by lists, for TOML.

    Raises:
        ValueError: TOML cannot express the value.
    """
    if isinstance(value, (list, tuple)):
        return [_as_toml(item) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) and is_text(key) for key in value):
            raise ValueError("the keys of a table must be text")
        return {key: _as_toml(item) for key, item in value.items()}
    if isinstance(value, str) and not is_text(value):
        raise ValueError("it is not UTF-8 text")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError("a whole number has 64 bits at most")
    if not isinstance(value, (str, bool, int, float)):
        raise ValueError(
            f"{'None' if value is None else f'a value of type {type(value).__name__}'} cannot be "
            f"written into a settings file; expected a number, True, False, text, or a list or "
            f"table of such. To keep a default, leave the argument out"
        )
    return value


def _short(given: str) -> str:
    return repr(given if len(given) <= _SHOWN else f"{given[:_SHOWN]}…")
