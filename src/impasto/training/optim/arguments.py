"""Checks that an optimizer accepts and uses the arguments in the settings, by name and type."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from impasto.errors import ConfigError

SET_ELSEWHERE = {
    "lr": "set optimizer.lr instead",
    "params": "[method] decides which weights are trained",
    "self": "it is not an argument",
    "args": "it is internal to bitsandbytes",
    "kwargs": "it is not an argument",
    "differentiable": "trained weights are leaves of the autograd graph",
}
"""Names that `optimizer.arguments` may not contain -> the reason, for the error message."""

READ_BEYOND_SIGNATURE = {
    "AdaFactor": {"beta1"},
    "Adan": {"clip_global_grad_norm"},
    "AliG": {"momentum"},
    "Magma": {"betas", "eps", "weight_decay", "weight_decouple"},
}
"""Class of the pytorch-optimizer collection -> the names that it reads from `**kwargs`; every class
accepts any name there, and those not listed read none."""

_NAMED_IN_SETTINGS = {"betas", "eps", "weight_decay"}


def require_known_arguments(
    kind: str, factory: Any, given: Mapping[str, Any], without_effect: Mapping[str, str]
) -> None:
    """Check that an optimizer accepts and uses each argument, and that the argument's type fits.

    Args:
        kind: The optimizer's name in the settings.
        factory: The optimizer's class.
        given: Argument name -> value.
        without_effect: Arguments that the class accepts but ignores -> the reason.

    Raises:
        ConfigError: An argument is unknown, has no effect, or has the wrong type; the message lists
            the accepted arguments.
    """
    signature = inspect.signature(factory.__init__).parameters
    beyond = READ_BEYOND_SIGNATURE.get(factory.__name__, set())
    takes = sorted(
        {n for n, p in signature.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        - {*SET_ELSEWHERE, *without_effect, "foreach", "fused", "capturable"} | beyond
    )  # fmt: skip
    for name, value in given.items():
        setting = f"optimizer.{'' if name in _NAMED_IN_SETTINGS else 'arguments.'}{name}"
        reason = without_effect.get(name) or SET_ELSEWHERE.get(name)
        if reason is not None:
            raise ConfigError(f"{setting} has no effect on optimizer.kind {kind}: {reason}.")
        if name in signature:
            _require_type(kind, name, value, signature[name].default)
        elif name not in beyond:
            near = difflib.get_close_matches(name, takes, n=1, cutoff=0.5)
            nearest = f"the nearest is {near[0]}; " if near else ""
            raise ConfigError(
                f"optimizer.kind {kind} does not take {name} ({nearest}accepted are "
                f"{', '.join(takes)})."
            )


def _require_type(kind: str, name: str, value: Any, default: Any) -> None:
    """Raise ConfigError unless a value's type matches the default's: bool, number or sequence."""
    problem = f"optimizer.kind {kind}: {name} is {value!r}; expected something like {default!r}."
    if isinstance(default, bool) != isinstance(value, bool) and isinstance(
        default, (bool, int, float)
    ):
        raise ConfigError(problem)
    if isinstance(default, (int, float)) and not isinstance(value, (int, float)):
        raise ConfigError(problem)
    if isinstance(default, (tuple, list)) and (
        not isinstance(value, (tuple, list)) or len(value) != len(default)
    ):
        raise ConfigError(problem)
