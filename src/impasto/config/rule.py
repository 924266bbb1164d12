"""A row of the table of what goes with what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from impasto.config.cases import Case


@dataclass(frozen=True)
class Rule:
    """A combination of settings that is refused.

    Attributes:
        settings: Those that it is about, by section and field.
        applies: Whether a case is one of it.
        sentence: What a person reads, without a full stop.
        of_new_runs: Whether a run that was begun with it goes on as it began: an earlier version
            took it, though something had no effect.
    """

    settings: tuple[str, ...]
    applies: Callable[[Case], bool]
    sentence: Callable[[Case], str]
    of_new_runs: bool = False
