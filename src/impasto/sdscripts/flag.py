"""What a flag of sd-scripts is, and the commands that have flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Script = Literal["fine_tune.py", "train_db.py", "sdxl_train.py"]
FINE_TUNE: Final = "fine_tune.py"
TRAIN_DB: Final = "train_db.py"
SDXL_TRAIN: Final = "sdxl_train.py"
SCRIPTS: tuple[Script, ...] = (FINE_TUNE, TRAIN_DB, SDXL_TRAIN)

Kind = Literal["flag", "int", "float", "text", "list"]


@dataclass(frozen=True)
class Flag:
    """A flag of sd-scripts' command, and what becomes of it.

    Attributes:
        name: Without dashes.
        kind: What follows it.
        default: What holds without it.
        to: Where its value goes in our settings: `section.key`; empty for a rule of its own.
        notice: Why it changes nothing.
        refusal: Why it is refused, and what to use.
        differs: What is not as there, of one that has a rule of its own.
        choices: The words that it takes; empty for any.
        nearest: Of a refused one: the last part of its value -> what to give instead.
        only: The commands that have this row.
    """

    name: str
    kind: Kind = "flag"
    default: Any = None
    to: str = ""
    notice: str = ""
    refusal: str = ""
    differs: str = ""
    choices: tuple[str, ...] = ()
    nearest: Mapping[str, str] = field(default_factory=dict)
    only: tuple[Script, ...] = SCRIPTS
