"""Checks of what public functions are called with: a wrong kind would end in an error far away."""

from __future__ import annotations

from typing import Any


def require_kind(call: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    """Make sure that an argument is of a kind.

    Args:
        call: The function and the argument, as in `train(config)`.
        value: What was given.
        kinds: One or several classes.
        expected: What is expected, in words.

    Raises:
        TypeError: It is of another kind.
    """
    if not isinstance(value, kinds):
        raise TypeError(f"impasto.{call}: expected {expected}; found {_shown(value)}.")


def require_methods(call: str, value: Any, kind: type, expected: str) -> None:
    """Make sure that an argument has the methods of a protocol.

    Args:
        call: The function and the argument, as in `train(events)`.
        value: What was given.
        kind: A class that has them.
        expected: What is expected, in words.

    Raises:
        TypeError: It lacks one.
    """
    methods = [name for name in dir(kind) if not name.startswith("_")]
    lacking = [name for name in methods if not callable(getattr(value, name, None))]
    if lacking:
        raise TypeError(
            f"impasto.{call}: expected {expected}; found {_shown(value)}, which has no method "
            f"{lacking[0]}."
        )


def _shown(value: object) -> str:
    return f"{value!r:.60}, of the type {type(value).__name__}"
