"""A row of the compatibility table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from impasto.config.cases import Case


@dataclass(frozen=True)
class Rule:
    """A combination of settings that is refused.

    Attributes:
        settings: The settings concerned, by section and field.
        applies: Returns whether a case has this combination.
        sentence: Returns the sentence that users read, without a full stop.
        of_new_runs: Whether only new runs refuse it: an older version accepted it without effect,
            and a run that was started with it continues unchanged.
    """

    settings: tuple[str, ...]
    applies: Callable[[Case], bool]
    sentence: Callable[[Case], str]
    of_new_runs: bool = False
