"""Checks the results of functions given in code, in their first call only, so later ones are free.

A wrong shape may be broadcast silently, and the loss would then be different without an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from impasto.errors import ConfigError

CALLED_WITH = {
    "timesteps": ("randomness", "num_timesteps"),
    "loss_weight": ("t", "schedule", "prediction"),
    "error": ("output", "target", "t", "schedule"),
    "noise.noise": ("x_0", "randomness"),
    "noise.on_input": ("noise", "randomness"),
}
"""Name of a function that a training step calls -> its arguments."""


class CheckedOnce:
    """A function whose arguments and result are checked in its first call.

    Args:
        function: Function given in code.
        name: Its name in errors: `Overrides.loss_weight`.
        part: Its key in `CALLED_WITH`.
    """

    def __init__(self, function: Callable[..., Any], name: str, part: str) -> None:
        self._function, self._name, self._part = function, name, part
        self._is_checked = False

    def __call__(self, *arguments: Any) -> Any:
        """Return the function's result.

        Raises:
            ConfigError: It cannot be called with these arguments, or returns an unexpected result.
        """
        if self._is_checked:
            return self._function(*arguments)
        require_called_with(self._function, self._name, CALLED_WITH[self._part])
        found = self._function(*arguments)
        fault = _FAULTS[self._part](found, *arguments)
        if fault:
            raise ConfigError(f"{self._name} returned {_shown(found)}; expected {fault}.")
        self._is_checked = True
        return found


class CheckedNoise:
    """A `Noise` whose results are checked in the first call of each method.

    Args:
        noise: Noise given in code.
        name: Its name in errors.
    """

    def __init__(self, noise: Any, name: str) -> None:
        self.noise = CheckedOnce(noise.noise, f"{name}.noise", "noise.noise")
        self.on_input = CheckedOnce(noise.on_input, f"{name}.on_input", "noise.on_input")
        self.generate_ahead = noise.generate_ahead


def with_checks(given: Mapping[str, Any], shown: str) -> dict[str, Any]:
    """Return functions of a training step that are given in code, with checks of their first calls.

    Impasto's own functions, and those that a step does not call, are unchanged.

    Args:
        given: The functions by name.
        shown: Template of their names in errors, with `{}` for the name: `Overrides.{}`.
    """
    return {
        name: part if _is_of_impasto(part) else _checked(part, name, shown.format(name))
        for name, part in given.items()
    }


def _checked(part: Any, name: str, shown: str) -> Any:
    if name == "noise":
        return CheckedNoise(part, shown)
    return CheckedOnce(part, shown, name) if name in CALLED_WITH else part


def _is_of_impasto(part: Any) -> bool:
    home = part if inspect.isfunction(part) else type(part)
    return home.__module__.partition(".")[0] == "impasto"


def require_called_with(
    function: Callable[..., Any], name: str, arguments: tuple[str, ...]
) -> None:
    """Check that a function takes the arguments that it is called with.

    Args:
        function: Function given in code.
        name: Its name in errors.
        arguments: Names of the arguments, which are passed by position.

    Raises:
        ConfigError: It takes other arguments.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some C functions have no signature
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ConfigError(
            f"{name} is called with ({', '.join(arguments)}), but the given function takes "
            f"{signature} ({error})."
        ) from error


def _fault_of_weight(found: Any, t: Tensor, *_: Any) -> str:
    if isinstance(found, (int, float)):
        return ""
    is_right = isinstance(found, Tensor) and not found.is_complex()
    if is_right and _is_broadcast_to(found, t.shape) and _is_there(found, t):
        return ""
    return f"numbers of the shape of t, {_shape(t)}, on {t.device}, or one number for all samples"


def _fault_of_error(found: Any, output: Tensor, *_: Any) -> str:
    is_right = isinstance(found, Tensor) and found.is_floating_point()
    if is_right and found.dim() == output.dim() and len(found) == len(output):
        return (
            ""
            if _is_broadcast_to(found, output.shape) and _is_there(found, output)
            else (_like(output, "output"))
        )
    return (
        f"{_like(output, 'output')}: the error at each place, of which the mean over each sample "
        f"is taken"
    )


def _fault_of_noise(found: Any, x_0: Tensor, *_: Any) -> str:
    is_right = isinstance(found, Tensor) and found.is_floating_point()
    return (
        ""
        if is_right and found.shape == x_0.shape and _is_there(found, x_0)
        else (_like(x_0, "the latents"))
    )


def _fault_of_timesteps(found: Any, randomness: Any, num_timesteps: int) -> str:
    expected = (len(randomness.positions),)
    is_right = isinstance(found, Tensor) and found.dtype in (torch.int64, torch.int32)
    if is_right and tuple(found.shape) == expected:
        if int(found.min()) >= 0 and int(found.max()) < num_timesteps:
            return ""
        least, most = int(found.min()), int(found.max())
        return f"integers from 0 to {num_timesteps - 1}; found {least} to {most}"
    return f"one integer for each sample, a torch.int64 tensor of shape {list(expected)} on the CPU"


_FAULTS: dict[str, Callable[..., str]] = {
    "timesteps": _fault_of_timesteps,
    "loss_weight": _fault_of_weight,
    "error": _fault_of_error,
    "noise.noise": _fault_of_noise,
    "noise.on_input": _fault_of_noise,
}
"""Name of a function -> function that describes the expected result if its result is wrong.

It returns an empty text if the result is right.
"""


def _is_broadcast_to(found: Tensor, shape: torch.Size) -> bool:
    sizes = zip(reversed(found.shape), reversed(shape), strict=False)
    return found.dim() <= len(shape) and all(size in (1, wide) for size, wide in sizes)


def _is_there(found: Tensor, other: Tensor) -> bool:
    return found.device == other.device or found.dim() == 0


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _like(tensor: Tensor, name: str) -> str:
    return f"a tensor of floats of the shape of {name}, {_shape(tensor)}, on {tensor.device}"


def _shown(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"a {found.dtype} tensor of shape {_shape(found)} on {found.device}"
    return "None" if found is None else f"{found!r:.60}, a {type(found).__name__}"
