"""RAM that a GPU copies from and to directly, and what to do where there is no more of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor

from impasto.errors import OutOfMemoryError

_HALF_OF_RAM = "On Windows a program may pin about half of the RAM. " if os.name == "nt" else ""


def pinned_like(
    tensor: Tensor, setting: str, *, pinned: bool, dtype: torch.dtype | None = None
) -> Tensor:
    """An empty tensor in RAM, of a tensor's shape.

    Args:
        tensor: Whose shape it has.
        setting: What asks for it, as in `training.ema_on_cpu`.
        pinned: Whether the system has to keep it in place, so that a GPU copies it by itself.
        dtype: Its type; None means the tensor's.

    Raises:
        OutOfMemoryError: The system pins no more.
    """
    with _explaining(setting, pinned=pinned):
        return torch.empty_like(tensor, device="cpu", dtype=dtype, pin_memory=pinned)


def pinned_bytes(size: int, setting: str, *, pinned: bool) -> Tensor:
    """RAM of some bytes, as an empty tensor of uint8.

    Args:
        size: How many.
        setting: What asks for it, as in `training.stream_weights`.
        pinned: Whether the system has to keep it in place, so that a GPU copies it by itself.

    Raises:
        OutOfMemoryError: The system pins no more.
    """
    with _explaining(setting, pinned=pinned):
        return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)


@contextlib.contextmanager
def _explaining(setting: str, *, pinned: bool) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # cudaHostAlloc's own words differ by system
        is_lack = any(text in str(error).lower() for text in ("out of memory", "alloc", "pin"))
        if not (pinned and is_lack):
            raise
        raise OutOfMemoryError(
            f"{setting} keeps data in pinned RAM, and the system gives no more of it ({error}). "
            f"{_HALF_OF_RAM}Set {setting} to false and let training.memory choose what takes less, "
            f"or close other programs."
        ) from error
