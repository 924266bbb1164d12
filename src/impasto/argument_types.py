"""Checks the types of arguments of public functions, and reports wrong ones at the call."""

from __future__ import annotations

from typing import Any


def require_kind(call: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    """Check that an argument is of an expected type.

    Args:
        call: The function and the argument, such as `train(config)`.
        value: The argument's value.
        kinds: The expected class, or several.
        expected: A description of the expected value, for the message.

    Raises:
        TypeError: The argument is of another type.
    """
    if not isinstance(value, kinds):
        raise TypeError(f"impasto.{call}: expected {expected}; found {_shown(value)}.")


def require_methods(call: str, value: Any, kind: type, expected: str) -> None:
    """Check that an argument has the methods of a protocol.

    Args:
        call: The function and the argument, such as `train(events)`.
        value: The argument's value.
        kind: The protocol.
        expected: A description of the expected value, for the message.

    Raises:
        TypeError: The argument lacks a method.
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
