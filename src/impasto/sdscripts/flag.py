"""The description of a flag of sd-scripts, and the commands that have flags."""

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
    """A flag of an sd-scripts command, and how it is translated.

    Attributes:
        name: Its name without dashes.
        kind: The type of its value.
        default: Its value if it is not given.
        to: The setting that it sets, as `section.key`; empty if a rule translates it.
        notice: Why it has no effect.
        refusal: Why it is rejected, and what to use instead.
        differs: How its effect differs from sd-scripts.
        choices: Its allowed values; empty for any.
        nearest: For a rejected flag: last part of its value -> what to use instead.
        only: The commands that have this flag.
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
