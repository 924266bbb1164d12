"""Parses numbers of steps, and values by step, in the forms that settings allow."""

from __future__ import annotations

import math

Steps = int | float | str
"""A number of steps, a fraction of the run (below 1), or a percentage such as "5%"."""


def counted(steps: Steps, total: int) -> int:
    """Return a number of steps; a fraction or a percentage is taken of `total`.

    Raises:
        ValueError: The value is neither a number of steps, nor a fraction, nor a percentage.
    """
    problem = f'{steps!r} is not a number of steps; expected 500, 0.05 or "5%"'
    if not isinstance(steps, str):
        if steps < 0 or (steps > 1 and not is_count(steps)):
            raise ValueError(problem)
        return int(steps) if is_count(steps) else int(steps * total)
    number, percent, rest = steps.partition("%")
    try:
        fraction = float(number) / 100
    except ValueError as error:
        raise ValueError(problem) from error
    if not percent or rest.strip() or not 0 <= fraction <= 1:
        raise ValueError(problem)
    return int(fraction * total)


def parse_rules(rules: str) -> list[tuple[float, int | None]]:
    """Parse `value:until, value:until, value` into values with the step before which each applies.

    The last one has None and applies until the end.

    Raises:
        ValueError: The text is not of that form, or the steps do not increase.
    """
    problem = f"rules is {rules!r}; expected value:step, value:step, ..., value"
    levels: list[tuple[float, int | None]] = []
    for rule in rules.split(","):
        value, colon, until = rule.partition(":")
        try:
            levels.append((float(value), int(until) if colon else None))
        except ValueError as error:
            raise ValueError(problem) from error
    steps = [until for _, until in levels]
    if None in steps[:-1] or not all(0 <= value < math.inf for value, _ in levels):
        raise ValueError(problem)
    numbers = [until for until in steps if until is not None]
    if numbers != sorted(set(numbers)) or any(number < 1 for number in numbers):
        raise ValueError(f"{problem}, with rising steps")
    if steps[-1] is not None:
        levels.append((levels[-1][0], None))
    return levels


def is_count(steps: Steps) -> bool:
    """Return whether a length is a whole number of steps, not a fraction or a percentage."""
    return isinstance(steps, int) or (isinstance(steps, float) and steps.is_integer())
