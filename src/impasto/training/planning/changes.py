"""Changes of settings, as a ladder or advice proposes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from impasto.config.base import BEGUN
from impasto.config.run import RunConfig

Changes = Mapping[str, Mapping[str, Any]]
"""Section -> field -> value."""


def with_changes(config: RunConfig, changes: Changes) -> RunConfig:
    """The settings with changes, each section checked as any."""
    for section, fields in changes.items():
        config = with_fields(config, section, fields)
    return config


def with_fields(config: RunConfig, section: str, fields: Mapping[str, Any]) -> RunConfig:
    """The settings with other values in a section, which is checked as any.

    What was not set before counts as not set afterwards either.
    """
    current = getattr(config, section)
    if section == "dataset":  # its keys are handed down to datasets when it is read, and only then
        return config.model_copy(update={section: current.model_copy(update=fields)})
    values = {**current.model_dump(), **fields}
    changed = type(current).model_validate(values, context={BEGUN: config.is_begun})
    changed.__pydantic_fields_set__ = {*current.model_fields_set, *fields}
    return config.model_copy(update={section: changed})


def settings_text(changes: Changes) -> str:
    """`section.field = value`, for all that is changed and not taken out."""
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
