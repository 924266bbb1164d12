"""Whether an optimizer takes the arguments that it is given, by name and type, and heeds them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from impasto.errors import ConfigError

SET_ELSEWHERE = {
    "lr": "it is optimizer.lr",
    "params": "it is what learns, by [method]",
    "self": "it is no argument",
    "args": "it is bitsandbytes' own",
    "kwargs": "it is no argument",
    "differentiable": "weights are leaves of the graph here",
}
"""What is no argument of the settings, and why."""

READ_BEYOND_SIGNATURE = {
    "AdaFactor": {"beta1"},
    "Adan": {"clip_global_grad_norm"},
    "AliG": {"momentum"},
    "Magma": {"betas", "eps", "weight_decay", "weight_decouple"},
}
"""Classes of the pytorch-optimizer collection -> what they read from `**kwargs`; all of them take
any name there, and the others read none."""

_NAMED_IN_SETTINGS = {"betas", "eps", "weight_decay"}


def require_known_arguments(
    kind: str, factory: Any, given: Mapping[str, Any], without_effect: Mapping[str, str]
) -> None:
    """Make sure that an optimizer takes each argument and heeds it, and that its type fits.

    Args:
        kind: What the settings call it.
        factory: Its class.
        given: The arguments.
        without_effect: Arguments that it takes and does not heed, each with the reason.

    Raises:
        ConfigError: It does not; with what it takes.
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
                f"optimizer.kind {kind} does not take {name} ({nearest}it takes "
                f"{', '.join(takes)})."
            )


def _require_type(kind: str, name: str, value: Any, default: Any) -> None:
    """A flag wants a flag, a number a number, a sequence a sequence."""
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
