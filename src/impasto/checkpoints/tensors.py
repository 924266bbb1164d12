"""Tensors whose names, shapes and types are known before they are read.

All reading ends in these mappings and all writing begins with them, so that converting a model
holds the tensor that is read, and besides only what waits to be written (`writing.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

SAFETENSORS_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip


class Scratch:
    """Memory that one tensor after another is read into.

    Memory that was never touched takes a second per GiB to get on a virtual machine.
    """

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def of(self, size: int) -> Tensor:
        """So many bytes, which hold until the next are asked for."""
        if size > self._bytes.numel():
            self._bytes = torch.empty(size, dtype=torch.uint8)
        return self._bytes[:size]


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is somewhere else until it is read.

    Attributes:
        shape: Its shape.
        dtype: Its type as stored.
        read: Gives it, on the CPU. Copy it before writing to it, unless `owns_memory`.
        owns_memory: Whether each reading gives new memory, that nothing else looks at.
        read_into: Reads its bytes into memory of uint8; None where that is not possible.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    owns_memory: bool = False
    read_into: Callable[[Tensor], None] | None = None

    @classmethod
    def of(cls, tensor: Tensor) -> LazyTensor:
        """A tensor that is in memory already, on any device."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor.detach().cpu())

    def read_as(self, dtype: torch.dtype, scratch: Scratch | None = None) -> Tensor:
        """A copy of another type, which may be written to; by way of `scratch` if it is given."""
        if scratch is not None and self.read_into is not None and dtype != self.dtype:
            values = scratch.of(self.size_bytes)
            self.read_into(values)
            return values.view(self.dtype).reshape(self.shape).to(dtype)
        return self.read().to(dtype, copy=not (self.owns_memory and dtype == self.dtype))

    @property
    def size_bytes(self) -> int:
        """Bytes of its elements."""
        return prod(self.shape) * self.dtype.itemsize

    def reshaped(self, shape: tuple[int, ...]) -> LazyTensor:
        """A lazy tensor of the same elements in another shape."""
        return replace(self, shape=shape, read=lambda: self.read().reshape(shape))

    def transposed(self) -> LazyTensor:
        """A matrix with rows and columns exchanged."""
        return LazyTensor(self.shape[::-1], self.dtype, lambda: self.read().T.contiguous())

    def third(self, number: int) -> LazyTensor:
        """The first, second or last third along the first dimension; `number` is 0, 1 or 2.

        It is a copy: a view would keep all three in memory for as long as one of them waits to be
        written, where only its own bytes are counted.
        """
        rows = self.shape[0] // 3
        return LazyTensor(
            (rows, *self.shape[1:]),
            self.dtype,
            lambda: self.read()[number * rows : (number + 1) * rows].clone(),
            owns_memory=True,
        )

    def cast(self, dtype: torch.dtype | None) -> LazyTensor:
        """The same in another floating-point type; integers and None stay as they are."""
        if dtype in (None, self.dtype) or not self.dtype.is_floating_point:
            return self
        return LazyTensor(self.shape, dtype, lambda: self.read().to(dtype), owns_memory=True)


Tensors = Mapping[str, LazyTensor]


def joined(parts: tuple[LazyTensor, ...]) -> LazyTensor:
    """Tensors one after another along the first dimension."""
    first = parts[0]
    rows = sum(part.shape[0] for part in parts)
    return LazyTensor(
        (rows, *first.shape[1:]), first.dtype, lambda: torch.cat([part.read() for part in parts])
    )


def total_bytes(tensors: Tensors) -> int:
    """Bytes of all tensors."""
    return sum(tensor.size_bytes for tensor in tensors.values())
