"""Tensors whose names, shapes and types are known before they are read.

All reading ends in these mappings and all writing begins with them, so that converting a model
holds the tensor that is read, and besides only what waits to be written (`writing.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from impasto.checkpoints.stored_bytes import StoredBytes

SAFETENSORS_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
TYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_TYPES.items()}

_PIECE = 1 << 20
"""Bytes that are read at a time where a tensor can be read in part: they stay in a CPU's
cache until they are converted, hashed and written. Much less than `allocation.MAPPED_FROM`, also
twice as wide: each larger piece is new memory, which the system takes longer to hand out than all
the rest takes."""

_AT_ONCE = 1 << 15
"""Elements that are computed with at a time: of more, PyTorch wakes threads of its own (GRAIN_SIZE
in ATen/TensorIterator.h), which then wait for work on CPUs that others need."""


class TensorChangedError(Exception):
    """A tensor is not what it was said to be when it is read."""


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is somewhere else until it is read.

    Attributes:
        shape: Its shape.
        dtype: Its type as stored.
        read: Gives it, on the CPU. Copy it before writing to it, unless `owns_memory`.
        owns_memory: Whether each reading gives new memory, that nothing else looks at.
        read_range: Gives the elements from one position up to another, flat and in row-major order,
            on the CPU; None where only the whole can be read. Copy them before writing to them.
        stored: Where its elements lie in a file, flat and in row-major order; None where they are
            computed, or not in one piece.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    owns_memory: bool = False
    read_range: Callable[[int, int], Tensor] | None = None
    stored: StoredBytes | None = None

    @classmethod
    def of(cls, tensor: Tensor) -> LazyTensor:
        """A tensor that is in memory already, on any device."""

        def read_range(begin: int, end: int) -> Tensor:
            return tensor.detach().view(-1)[begin:end].cpu()

        is_flat = tensor.layout == torch.strided and tensor.is_contiguous()
        return cls(
            tuple(tensor.shape),
            tensor.dtype,
            lambda: tensor.detach().cpu(),
            owns_memory=tensor.device.type != "cpu",
            read_range=read_range if is_flat else None,
        )

    def ranges(self) -> list[tuple[int, int]]:
        """Positions that its elements are read by, one range after another: of up to 1 MiB each.

        One range where only the whole can be read.
        """
        count = prod(self.shape)
        if self.read_range is None or self.size_bytes <= _PIECE:
            return [(0, count)]
        step = _PIECE // self.dtype.itemsize
        return [(begin, min(begin + step, count)) for begin in range(0, count, step)]

    def elements(self, begin: int, end: int) -> Tensor:
        """Read the elements of one of `ranges`, flat.

        Raises:
            TensorChangedError: The tensor has another shape or type now.
        """
        if self.read_range is not None:
            found = self.read_range(begin, end)
            is_as_told = found.shape == (end - begin,) and found.dtype == self.dtype
        else:
            found = self.read()
            is_as_told = tuple(found.shape) == self.shape and found.dtype == self.dtype
        if not is_as_told:
            raise TensorChangedError
        return found.reshape(-1)

    def read_as(self, dtype: torch.dtype) -> Tensor:
        """A copy which may be written to; another type is made on the thread that asks for it."""
        if dtype == self.dtype:
            return self.read() if self.owns_memory else self.read().clone()
        if self.stored is not None and dtype.itemsize >= self.dtype.itemsize:
            memory = TensorMemory.for_tensor(self, dtype)
            for begin, end in self.ranges():
                size = self.dtype.itemsize
                self.stored.shifted(begin * size).read_into(memory.bytes[begin * size : end * size])
                memory.convert(begin, end)
            return memory.values
        values = torch.empty(self.shape, dtype=dtype)
        flat = values.view(-1)
        for begin, end in self.ranges():
            _convert(self.elements(begin, end), flat[begin:end])
        return values

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
        shape = (rows, *self.shape[1:])
        read_range, count = self.read_range, prod(shape)
        if read_range is None:
            return LazyTensor(
                shape,
                self.dtype,
                lambda: self.read()[number * rows : (number + 1) * rows].clone(),
                owns_memory=True,
            )

        def read_own(begin: int, end: int) -> Tensor:
            return read_range(number * count + begin, number * count + end)

        def read() -> Tensor:
            own = read_own(0, count).reshape(shape)
            return own if self.owns_memory else own.clone()

        return LazyTensor(shape, self.dtype, read, owns_memory=True, read_range=read_own)

    def cast(self, dtype: torch.dtype | None) -> LazyTensor:
        """A tensor in another floating-point type; integers stay, and None keeps the type."""
        if dtype in (None, self.dtype) or not self.dtype.is_floating_point:
            return self
        read_range = self.read_range

        def read_cast_range(begin: int, end: int) -> Tensor:
            assert read_range is not None  # noqa: S101 - not offered otherwise
            values = torch.empty(end - begin, dtype=dtype)
            _convert(read_range(begin, end), values)
            return values

        return LazyTensor(
            self.shape,
            dtype,
            lambda: self.read().to(dtype),
            owns_memory=True,
            read_range=None if read_range is None else read_cast_range,
        )


@dataclass(frozen=True)
class TensorMemory:
    """Memory that a tensor is read into as it is stored, and converted in.

    What is stored lies at the end of it. Converting from the first element to the last writes
    nowhere that is still to be read, as long as the type is no narrower.

    Attributes:
        values: The tensor; its elements count once they are converted.
        found: The elements as they are stored, flat, in the same memory.
        bytes: Where these elements go when they are read.
    """

    values: Tensor
    found: Tensor
    bytes: memoryview

    @classmethod
    def for_tensor(cls, tensor: LazyTensor, dtype: torch.dtype) -> TensorMemory:
        """Memory that nothing was read into, for a type that is no narrower than its own."""
        values = torch.empty(tensor.shape, dtype=dtype)
        memory = values.view(-1).view(torch.uint8)
        found = memory[memory.numel() - tensor.size_bytes :]
        return cls(values, found.view(tensor.dtype), found.numpy().data)

    def convert(self, begin: int, end: int) -> None:
        """Make values of elements that were read, after those before them."""
        if self.values.dtype != self.found.dtype:
            _convert(self.found[begin:end], self.values.view(-1)[begin:end], shared=True)


Tensors = Mapping[str, LazyTensor]


def joined(pieces: tuple[LazyTensor, ...]) -> LazyTensor:
    """Tensors one after another along the first dimension."""
    first = pieces[0]
    rows = sum(piece.shape[0] for piece in pieces)
    return LazyTensor(
        (rows, *first.shape[1:]), first.dtype, lambda: torch.cat([piece.read() for piece in pieces])
    )


def pieces_of(flat: Tensor) -> Iterator[Tensor]:
    """A flat tensor in pieces that PyTorch computes with on the thread that asks."""
    for begin in range(0, len(flat), _AT_ONCE):
        yield flat[begin : begin + _AT_ONCE]


def _convert(source: Tensor, target: Tensor, *, shared: bool = False) -> None:
    """Copy flat values to another type; between 16-bit types by way of float32, as PyTorch rounds.

    Its own conversion between those goes number by number and takes twice as long.

    Args:
        source: The values.
        target: Where they go.
        shared: Whether both may be the same memory.
    """
    both_narrow = source.dtype.itemsize == target.dtype.itemsize == 2
    for narrow, into in zip(pieces_of(source), pieces_of(target), strict=True):
        if both_narrow:
            into.copy_(narrow.float())
        else:
            into.copy_(narrow.clone() if shared else narrow)


def total_bytes(tensors: Tensors) -> int:
    """Bytes of all tensors."""
    return sum(tensor.size_bytes for tensor in tensors.values())
