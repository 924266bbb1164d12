"""Changes of settings, as the memory fitter and its advice propose them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from impasto.config.base import BEGUN
from impasto.config.run import RunConfig

Changes = Mapping[str, Mapping[str, Any]]
"""Section -> field -> value."""


def with_changes(config: RunConfig, changes: Changes) -> RunConfig:
    """Return the settings with `changes` applied; each changed section is validated."""
    for section, fields in changes.items():
        config = with_fields(config, section, fields)
    return config


def with_fields(config: RunConfig, section: str, fields: Mapping[str, Any]) -> RunConfig:
    """Return the settings with other values for fields of one section, which is validated.

    Fields that were neither set before nor are in `fields` still count as not set.
    """
    current = getattr(config, section)
    if section == "dataset":  # its datasets inherit its keys when it is read, and only then
        return config.model_copy(update={section: current.model_copy(update=fields)})
    values = {**current.model_dump(), **fields}
    changed = type(current).model_validate(values, context={BEGUN: config.is_begun})
    changed.__pydantic_fields_set__ = {*current.model_fields_set, *fields}
    return config.model_copy(update={section: changed})


def settings_text(changes: Changes) -> str:
    """Return `section.field = value` for each change, joined by commas; None values are skipped."""
    return ", ".join(
        f"{section}.{field} = {_toml(value)}"
        for section, fields in changes.items()
        for field, value in fields.items()
        if value is not None
    )


def _toml(value: Any) -> str:
    if isinstance(value, (bool, int)):
        return str(value).lower()
    return f'"{value}"'
