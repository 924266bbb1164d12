"""Rounding of updated float32 weights back to 16 bits.

Near a weight of 0.05, bfloat16 has steps of 2.4e-4 and float16 of 3e-5; an update of 1e-6 is lost
when it is rounded to the nearest. Stochastic rounding preserves it on average (Gupta et al. 2015,
arXiv:1502.02551); storing the rounding error preserves it exactly (Kahan 1965; Zamirai et al. 2020,
arXiv:2010.06192, who compare both for bfloat16).
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

RoundingName = Literal["stochastic", "kahan", "nearest"]
COMPENSATION = "compensation"

_DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}  # of float32's 23 bits of fraction
_LEAST_NORMAL = {torch.bfloat16: 2.0**-126, torch.float16: 2.0**-14}
_LEAST_STEP = {torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}


@runtime_checkable
class Rounding(Protocol):
    """Converts a 16-bit weight to the float32 one that an optimizer changes, and back."""

    def begin(self, seed: int) -> None:
        """Start a step; its rounding is the same for the same seed."""

    def widened(self, weight: Tensor, state: MutableMapping[str, Any]) -> Tensor:
        """Return the weight in float32; `state` is the optimizer's for this weight."""

    def narrowed(
        self, value: Tensor, dtype: torch.dtype, state: MutableMapping[str, Any]
    ) -> Tensor:
        """Round a float32 tensor to 16 bits."""


class Nearest:
    """Rounds to the nearest value: small changes are lost, as in sd-scripts' `--full_bf16`."""

    def begin(self, seed: int) -> None:
        """Do nothing: rounding to the nearest draws no random numbers."""

    def widened(self, weight: Tensor, state: MutableMapping[str, Any]) -> Tensor:  # noqa: ARG002
        """Widen a 16-bit weight to float32."""
        return weight.float()

    def narrowed(
        self,
        value: Tensor,
        dtype: torch.dtype,
        state: MutableMapping[str, Any],  # noqa: ARG002
    ) -> Tensor:
        """Round a float32 tensor to 16 bits."""
        return value.to(dtype)


class Stochastic(Nearest):
    """Rounds up or down at random, by distance: exact on average, and takes no memory.

    Args:
        device: The device of the weights; all processes draw the same numbers.
    """

    def __init__(self, device: torch.device) -> None:
        self._generator = torch.Generator(device)

    def begin(self, seed: int) -> None:
        """Seed the random numbers of this step."""
        self._generator.manual_seed(seed)

    def narrowed(
        self,
        value: Tensor,
        dtype: torch.dtype,
        state: MutableMapping[str, Any],  # noqa: ARG002
    ) -> Tensor:
        """Return one of the two nearest 16-bit values at random; a representable value is kept."""
        return stochastically_rounded(value, dtype, self._generator)


class Kahan(Nearest):
    """Rounds to the nearest and adds the rounding error in the next step: 2 bytes per weight."""

    def widened(self, weight: Tensor, state: MutableMapping[str, Any]) -> Tensor:
        """Return the weight in float32 plus the rounding error stored in `state`, if any."""
        lost = state.get(COMPENSATION)
        return weight.float() if lost is None else weight.float() + lost.float()

    def narrowed(
        self, value: Tensor, dtype: torch.dtype, state: MutableMapping[str, Any]
    ) -> Tensor:
        """Return the nearest 16-bit value, and store the rounding error in `state`."""
        kept = value.to(dtype)
        state[COMPENSATION] = (value - kept.float()).to(dtype)
        return kept


def build_rounding(name: RoundingName, device: torch.device) -> Rounding:
    """Return the rounding with a name; the device is that of the weights."""
    roundings: dict[str, Rounding] = {
        "nearest": Nearest(),
        "kahan": Kahan(),
        "stochastic": Stochastic(device),
    }
    return roundings[name]


def stochastically_rounded(value: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Round a float32 tensor to bfloat16 or float16, so that its expected value is unchanged.

    Random bits are added below the last retained bit, and the rest is cut off; this works since a
    float's bit pattern increases with its magnitude. Subnormal float16 values, whose steps all have
    one size, are rounded in units of that step. NaN and infinity are retained.
    """
    dropped = _DROPPED_BITS[dtype]
    noise = torch.empty_like(value, dtype=torch.int32).random_(0, 1 << dropped, generator=generator)
    in_steps = None
    if dtype is torch.float16:
        step = _LEAST_STEP[dtype]
        in_steps = torch.floor(value / step + noise / (1 << dropped)) * step
    noise.add_(value.view(torch.int32)).bitwise_and_(-(1 << dropped))  # in place, to save memory
    rounded = noise.view(torch.float32)
    if in_steps is not None:
        torch.where(value.abs() < _LEAST_NORMAL[dtype], in_steps, rounded, out=rounded)
    return torch.where(value.isfinite(), rounded, value, out=rounded).to(dtype)
