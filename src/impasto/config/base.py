"""What every section of the settings tree shares: frozen, strict, documented by its docstrings.

Numbers are finite everywhere: `nan` passes every comparison that should stop it.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from impasto.config.locations import remote_fault

BEGUN = "begun"
"""Of the context of validation: whether the settings are of a run that was begun."""


def is_of_begun(info: ValidationInfo) -> bool:
    """Whether settings are those of a run that was begun, perhaps by an earlier version.

    What such a run was given and had no effect is refused in new runs alone: it goes on as it was.
    """
    return bool(info.context and info.context.get(BEGUN))


class Section(BaseModel):
    """A section: unknown keys are errors.

    The docstring under a field is its help text, which `field_docs.py` reads.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    @field_validator("*", mode="after")
    @classmethod
    def _is_of_this_machine(cls, value: Any, info: ValidationInfo) -> Any:
        fault = remote_fault(info.field_name or "", value)
        if fault:
            raise ValueError(fault)
        return value
