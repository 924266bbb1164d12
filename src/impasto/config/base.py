"""The base class of every section of the settings tree: frozen, strict, documented by docstrings.

Numbers must be finite: `nan` would pass comparisons that should reject it.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from impasto.config.locations import remote_fault

BEGUN = "begun"
"""Key of the validation context: whether the settings are those of a run that was started
before."""


def is_of_begun(info: ValidationInfo) -> bool:
    """Return whether settings belong to a run that was started before, perhaps by an older version.

    New runs refuse settings that have no effect; a run that was started with them continues
    unchanged.
    """
    return bool(info.context and info.context.get(BEGUN))


class Section(BaseModel):
    """A section of the settings; unknown keys are errors.

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
