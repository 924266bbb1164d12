"""Tries an optimizer on a few numbers: whether it steps, resumes exactly, and uses groups' rates.

The effect of an option of a library's optimizer is tested by running it, since signatures accept
options that the code then ignores. `build_optimizer` calls this before training.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from impasto.checkpoints.tensors import LazyTensor
from impasto.errors import ConfigError, RunError
from impasto.parsing import parse_json
from impasto.training.devices import is_out_of_memory
from impasto.training.optim.state import (
    optimizer_scalars,
    optimizer_tensors,
    require_savable,
    restore_optimizer,
)

Build = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]

_SHAPES = ((8, 8), (8,), (4, 2, 3, 3))
"""Shapes of a matrix, a bias and a convolution's kernel, as in a U-Net."""

_STEPS, _BEFORE = 4, 2


def require_steps(kind: str, build: Build, device: torch.device) -> None:
    """Check that an optimizer can step from gradients alone, and resume exactly from saved state.

    Raises:
        ConfigError: It cannot: it needs a closure, second derivatives or a whole model; or it keeps
            state outside its parameters' entries and groups, which cannot be saved.
        RuntimeError, MemoryError: Memory ran out.
    """
    try:
        with _quietly():
            whole, resumed = _walk(build, (1e-3,), device), _resumed_walk(build, device)
    except RunError as error:
        raise ConfigError(str(error)) from error
    except Exception as error:  # libraries raise errors of any type
        if is_out_of_memory(error):  # not the optimizer's fault; the caller explains it
            raise
        raise ConfigError(
            f"optimizer.kind {kind} cannot be used with these settings: a first step failed with "
            f"{type(error).__name__}: {error}. Remove its arguments, or choose another kind, such "
            f"as adamw."
        ) from error
    if not all(map(torch.equal, whole, resumed)):
        raise ConfigError(
            f"optimizer.kind {kind} cannot be resumed exactly: part of its state is not saved, so "
            f"its steps differ after a stop. Choose another kind, such as adamw."
        )


def obeys_rates(build: Build, device: torch.device) -> bool:
    """Return whether a parameter group's own learning rate changes how its parameters move."""
    with _quietly():
        alike, apart = (_walk(build, rates, device) for rates in ((1e-2, 1e-2), (1e-2, 1e-3)))
    return not torch.equal(alike[-1], apart[-1])


def steps_weights_alone(build: Build, device: torch.device) -> bool:
    """Return whether weights move the same with one optimizer per weight as with one for all."""
    with _quietly():
        together = _parameters(_SHAPES, device)
        apart = _parameters(_SHAPES, device)
        one = build([{"params": together, "lr": 1e-2}])
        each = [build([{"params": [parameter], "lr": 1e-2}]) for parameter in apart]
        for step in range(_STEPS):
            for parameters, optimizers in ((together, [one]), (apart, each)):
                torch.manual_seed(1 + step)
                for number, parameter in enumerate(parameters):  # gradients of several sizes
                    gradient = torch.randn(parameter.shape) * 10**number
                    parameter.grad = gradient.to(device)
                for optimizer in optimizers:
                    torch.manual_seed(step)
                    optimizer.step()
    return all(map(torch.equal, together, apart))


def _walk(build: Build, rates: Sequence[float], device: torch.device) -> list[Tensor]:
    """Return the parameters after `_STEPS` steps with fixed gradients, with a group per rate.

    A single group has all of `_SHAPES`; of several, each has a matrix.
    """
    shapes = _SHAPES if len(rates) == 1 else _SHAPES[:1]
    groups = [_parameters(shapes, device) for _ in rates]
    optimizer = build(
        [{"params": own, "lr": rate} for own, rate in zip(groups, rates, strict=True)]
    )
    _step(optimizer, groups, 0, _STEPS)
    require_savable(optimizer)
    return [parameter.detach().cpu() for own in groups for parameter in own]


def _resumed_walk(build: Build, device: torch.device) -> list[Tensor]:
    """Return the parameters as `_walk` does, with the optimizer saved and restored half-way."""
    first, again = _parameters(_SHAPES, device), _parameters(_SHAPES, device)
    optimizers = [build([{"params": own, "lr": 1e-3}]) for own in (first, again)]
    _step(optimizers[0], [first], 0, _BEFORE)
    names, others = _named(first), _named(again)
    tensors = optimizer_tensors(optimizers[0], names)
    with torch.no_grad():
        for parameter, saved in zip(again, first, strict=True):
            parameter.copy_(saved)
    restore_optimizer(
        optimizers[1],
        others,
        {key: LazyTensor.of(tensor.cpu().clone()) for key, tensor in tensors.items()},
        parse_json(json.dumps(optimizer_scalars(optimizers[0], names))),
    )
    _step(optimizers[1], [again], _BEFORE, _STEPS)
    return [parameter.detach().cpu() for parameter in again]


def _parameters(shapes: Sequence[Sequence[int]], device: torch.device) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(*shape).to(device)) for shape in shapes]


def _named(parameters: Sequence[Tensor]) -> dict[Tensor, str]:
    return {parameter: str(number) for number, parameter in enumerate(parameters)}


def _step(
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Sequence[nn.Parameter]],
    begin: int,
    end: int,
) -> None:
    """Run the steps from `begin` to `end`, each with its own random seed, as training does."""
    for step in range(begin, end):
        torch.manual_seed(1 + step)
        for own in zip(*groups, strict=True):
            gradient = torch.randn(own[0].shape)
            for parameter in own:
                parameter.grad = gradient.to(parameter.device, copy=True)
        optimizer.step()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Within the context, suppress warnings and prints; restore random states at its end."""
    quiet = contextlib.redirect_stdout(io.StringIO())
    with torch.random.fork_rng(), warnings.catch_warnings(), quiet:
        warnings.simplefilter("ignore")
        yield
