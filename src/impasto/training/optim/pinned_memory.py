"""Pinned RAM, which a GPU copies from and to directly, with an error that explains its limit."""

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
    """Return an uninitialized tensor in RAM with the shape of another tensor.

    Args:
        tensor: The tensor that gives the shape.
        setting: The setting that needs it, for the error, such as `training.ema_on_cpu`.
        pinned: Whether to pin the memory, so that a GPU can copy it asynchronously.
        dtype: The dtype; None means that of `tensor`.

    Raises:
        OutOfMemoryError: The system cannot pin more RAM.
    """
    with _explaining(setting, pinned=pinned):
        return torch.empty_like(tensor, device="cpu", dtype=dtype, pin_memory=pinned)


def pinned_bytes(size: int, setting: str, *, pinned: bool) -> Tensor:
    """Return an uninitialized uint8 tensor in RAM.

    Args:
        size: The number of bytes.
        setting: The setting that needs it, for the error, such as `training.stream_weights`.
        pinned: Whether to pin the memory, so that a GPU can copy it asynchronously.

    Raises:
        OutOfMemoryError: The system cannot pin more RAM.
    """
    with _explaining(setting, pinned=pinned):
        return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)


@contextlib.contextmanager
def _explaining(setting: str, *, pinned: bool) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # cudaHostAlloc's message differs by system
        is_lack = any(text in str(error).lower() for text in ("out of memory", "alloc", "pin"))
        if not (pinned and is_lack):
            raise
        raise OutOfMemoryError(
            f"{setting} keeps data in pinned RAM, and the system cannot pin more ({error}). "
            f"{_HALF_OF_RAM}Set {setting} to false and let training.memory choose settings that "
            f"take less memory, or close other programs."
        ) from error
