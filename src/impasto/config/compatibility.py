"""What goes with what: one table of the combinations of settings that a run refuses.

A row is a combination, by the settings that it names, and the sentence that a person reads. The
table is asked with what is known: when settings are loaded, of the settings alone; by `--plan` and
when a run is built, of its device and processes too; by the ladder of settings that take less
memory and by the advice after out-of-memory, before they offer a change. What is not known yet
(`None` in `Facts`) refuses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from impasto.config.cases import SETTINGS_ALONE, Case, Facts
from impasto.config.rules_of_computing import FLOAT8, KERNELS, PRECISION, STEP_GRAPHS
from impasto.config.rules_of_learning import DRAWN, HELD_OUT, LOSS, TEXT, WRITTEN
from impasto.config.rules_of_memory import MEMORY
from impasto.config.rules_of_optimizing import AVERAGE, OPTIMIZER
from impasto.config.rules_of_sharding import SHARDING
from impasto.errors import ConfigError

if TYPE_CHECKING:
    from impasto.config.run import RunConfig

RULES = (
    *PRECISION, *FLOAT8, *KERNELS, *STEP_GRAPHS, *LOSS, *OPTIMIZER, *MEMORY, *AVERAGE, *TEXT,
    *HELD_OUT, *DRAWN, *WRITTEN, *SHARDING,
)  # fmt: skip
"""Every combination that is refused, of settings and of what is known beside them."""


def conflicts(config: RunConfig, facts: Facts = SETTINGS_ALONE) -> Iterator[str]:
    """The sentences of the rows that settings are a case of, without full stops."""
    case = Case(config, facts)
    asked = (rule for rule in RULES if not (rule.of_new_runs and config.is_begun))
    return (rule.sentence(case) for rule in asked if rule.applies(case))


def goes_together(config: RunConfig, facts: Facts = SETTINGS_ALONE) -> bool:
    """Whether no row of the table refuses these settings."""
    return next(conflicts(config, facts), None) is None


def require_compatible(config: RunConfig, facts: Facts) -> None:
    """Make sure that settings go together.

    Raises:
        ConfigError: They do not; with the sentence of the first row that refuses them.
    """
    sentence = next(conflicts(config, facts), None)
    if sentence is not None:
        raise ConfigError(f"{sentence}.")
