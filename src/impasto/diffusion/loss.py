"""How far an output is from its target, and how much each timestep counts."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from impasto.diffusion.schedule import NoiseSchedule


@runtime_checkable
class LossWeight(Protocol):
    """Weighs each sample's loss by its timestep."""

    def __call__(self, t: Int[Tensor, "b"], schedule: NoiseSchedule) -> Float[Tensor, "b"]:
        """Non-negative weights."""


def squared_error(
    output: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    mask: Float[Tensor, "b 1 h w"] | None = None,
) -> Float[Tensor, "b"]:
    """Mean squared error of each sample in float32; arXiv:2006.11239 eq. 14 (L_simple).

    A mask weighs the places; the mean is over all of them, as in kohya-ss/sd-scripts
    (`library/custom_train_functions.py`, apply_masked_loss), so a small subject counts less.
    """
    error = (output.float() - target.float()).square()
    if mask is not None:
        error = error * mask
    return error.mean(dim=(1, 2, 3))


def unweighted(t: Int[Tensor, "b"], schedule: NoiseSchedule) -> Float[Tensor, "b"]:  # noqa: ARG001
    """Every timestep counts the same, as in L_simple."""
    return torch.ones(len(t), device=t.device)
