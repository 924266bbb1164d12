"""Makes diffusers' schedulers take exactly the requested number of steps.

"Trailing" spacing is T, T - T/n, T - 2 T/n, ... above 0, each rounded and less 1: n timesteps (Lin
et al. 2023, arXiv:2305.08891, table 2). diffusers computes them by `np.arange(T, 0, -T / n)` (0.42,
`set_timesteps` of each scheduler), which for 62 of the n up to 1000 = T, 61 the first of them,
yields one more value, a rounding error above 0: a timestep of -1, which no model was trained on.
"""

from __future__ import annotations

import math
from typing import Any

import torch


class _Steps(int):
    """A number of steps; dividing timesteps by it rounds up, so that no extra step arises."""

    def __rtruediv__(self, timesteps: int) -> float:
        return math.nextafter(timesteps / int(self), math.inf)


def set_timesteps(scheduler: Any, steps: int, device: torch.device | None = None) -> None:
    """Set the timesteps of diffusers' scheduler, all of them in [0, T).

    Args:
        scheduler: The scheduler.
        steps: Number of steps that it will take.
        device: Device on which the timesteps are needed.
    """
    scheduler.set_timesteps(_Steps(steps), device=device)
