"""Networks that start without values: their tensors are stored as read until they are needed.

`offload.py` loads them into the networks and offloads them again.
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
"""Returns the same tensors, independent of the file that they were read from."""


def leave_without_values(module: nn.Module, tensors: Tensors, source: str, keep: Keep) -> Tensors:
    """Leave a network without values, frozen, and return its tensors in the form stored meanwhile.

    Raises:
        ModelError: A tensor that `keep` reads has NaN or infinite values.
    """
    waiting: Any = module
    waiting.offloaded_tensors = dict(keep({n: _finite(t, n, source) for n, t in tensors.items()}))
    module.requires_grad_(requires_grad=False).eval()
    return waiting.offloaded_tensors  # type: ignore[no-any-return]


def _finite(lazy: LazyTensor, name: str, source: str) -> LazyTensor:
    """Return a lazy tensor that is checked for NaN and infinite values when it is read."""
    checked = partial(_checked, name=name, source=source)
    return replace(
        lazy,
        read=partial(checked, lazy.read),
        read_range=None if lazy.read_range is None else partial(checked, lazy.read_range),
        stored=None,  # else the tensor would be read from the file, unchecked
    )


def _checked(read: Callable[..., Tensor], *span: int, name: str, source: str) -> Tensor:
    """Return the finite values that `read` gives, of a whole tensor or a range of its elements.

    Raises:
        ModelError: A value is NaN or infinite.
    """
    values = read(*span)
    if not is_finite(values):
        raise not_finite(name, source)
    return values


def not_finite(name: str, source: str) -> ModelError:
    """Return the error for a tensor with NaN or infinite values."""
    return ModelError(
        f"{source}: {name} holds NaN or infinite values. The model is damaged; use another copy "
        f"of it."
    )
