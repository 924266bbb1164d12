"""Tries an optimizer on a few numbers: whether it can be stepped, and whether it obeys rates.

What a library's optimizer does with an option is found out by doing it, since signatures take what
the code then ignores. `build_optimizer` asks this before training.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from impasto.errors import ConfigError, RunError
from impasto.training.devices import is_out_of_memory
from impasto.training.optim.state import require_savable

Build = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]

_SIDE, _STEPS = 8, 3


def require_steps(kind: str, build: Build, device: torch.device) -> None:
    """Make sure that an optimizer can do a step from gradients alone.

    Raises:
        ConfigError: It cannot: it wants a closure, second derivatives, or a whole model.
        RuntimeError, MemoryError: Memory ran out.
    """
    try:
        _walk(build, (1e-3,), device)
    except RunError as error:
        raise ConfigError(str(error)) from error
    except Exception as error:  # any library's, which says it in any way
        if is_out_of_memory(error):  # no fault of the optimizer; it is explained where it is caught
            raise
        raise ConfigError(
            f"optimizer.kind {kind} cannot be used as it is set: a first step ended with "
            f"{type(error).__name__}: {error}. Take its arguments out, or choose another kind, "
            f"such as adamw."
        ) from error


def obeys_rates(build: Build, device: torch.device) -> bool:
    """Whether another rate of one group of parameters changes how they move."""
    alike, apart = (_walk(build, rates, device)[1] for rates in ((1e-2, 1e-2), (1e-2, 1e-3)))
    return not torch.equal(alike, apart)


def _walk(build: Build, rates: Sequence[float], device: torch.device) -> list[Tensor]:
    """Where parameters of these rates are after some steps, always with the same gradients."""
    quiet = contextlib.redirect_stdout(io.StringIO())
    with torch.random.fork_rng(), warnings.catch_warnings(), quiet:
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        start = torch.randn(_SIDE, _SIDE)
        parameters = [nn.Parameter(start.clone().to(device)) for _ in rates]
        optimizer = build(
            [{"params": [p], "lr": rate} for p, rate in zip(parameters, rates, strict=True)]
        )
        for _ in range(_STEPS):
            gradient = torch.randn(_SIDE, _SIDE).to(device)
            for parameter in parameters:
                parameter.grad = gradient.clone()
            optimizer.step()
        require_savable(optimizer)
    return [parameter.detach().cpu() for parameter in parameters]
