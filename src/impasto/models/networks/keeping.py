"""Networks that begin without values: their tensors are kept as stored until somebody asks.

What becomes of them is in `offload.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from impasto.checkpoints.tensors import LazyTensor, Tensors
from impasto.checkpoints.writing import is_finite
from impasto.errors import ModelError

META = torch.device("meta")

Keep = Callable[[Tensors], Tensors]
"""Gives the same tensors, independent of the file that they are read from."""


def leave_without_values(module: nn.Module, tensors: Tensors, source: str, keep: Keep) -> Tensors:
    """Leave a network without values; its tensors as they are kept meanwhile.

    Raises:
        ModelError: One has values that are NaN or infinite.
    """
    waiting: Any = module
    waiting.offloaded_tensors = dict(keep({n: _finite(t, n, source) for n, t in tensors.items()}))
    module.requires_grad_(requires_grad=False).eval()
    return waiting.offloaded_tensors  # type: ignore[no-any-return]


def _finite(lazy: LazyTensor, name: str, source: str) -> LazyTensor:
    """Have a tensor checked for values that are not finite when it is read."""
    checked = partial(_checked, name=name, source=source)
    return replace(
        lazy,
        read=partial(checked, lazy.read),
        read_range=None if lazy.read_range is None else partial(checked, lazy.read_range),
        stored=None,  # or it would be read from there, unchecked
    )


def _checked(read: Callable[..., Tensor], *span: int, name: str, source: str) -> Tensor:
    """What a function reads, all of a tensor or a range of its elements, if it is finite."""
    values = read(*span)
    if not is_finite(values):
        raise not_finite(name, source)
    return values


def not_finite(name: str, source: str) -> ModelError:
    """The error of a tensor that is damaged."""
    return ModelError(
        f"{source}: {name} holds NaN or infinite values. The model is damaged; take another copy "
        f"of it."
    )
