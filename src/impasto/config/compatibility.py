"""The compatibility table: all combinations of settings that a run refuses.

A row names the settings of a combination and has the sentence that users read. The table is checked
with whatever is known: when settings are loaded, against the settings alone; by `--plan` and when a
run is built, also against its device and processes; before a change is offered, by the search for
settings that take less memory and by the advice after out-of-memory. Facts that are not known yet
(`None` in `Facts`) refuse nothing.
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
"""Every combination that is refused, of settings and of facts about the run."""


def conflicts(config: RunConfig, facts: Facts = SETTINGS_ALONE) -> Iterator[str]:
    """Yield the sentence of each row that refuses these settings, without full stops."""
    case = Case(config, facts)
    asked = (rule for rule in RULES if not (rule.of_new_runs and config.is_begun))
    return (rule.sentence(case) for rule in asked if rule.applies(case))


def goes_together(config: RunConfig, facts: Facts = SETTINGS_ALONE) -> bool:
    """Return whether no row of the table refuses these settings."""
    return next(conflicts(config, facts), None) is None


def require_compatible(config: RunConfig, facts: Facts) -> None:
    """Check that the settings of a run are compatible.

    Raises:
        ConfigError: They are not; with the sentence of the first row that refuses them.
    """
    sentence = next(conflicts(config, facts), None)
    if sentence is not None:
        raise ConfigError(f"{sentence}.")
