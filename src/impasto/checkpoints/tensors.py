"""Lazy tensors, whose names, shapes and dtypes are known before they are read.

All reading returns these mappings and all writing takes them, so that converting a model holds only
the tensor that is read and those that wait to be written (`writing.py`).
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
"""Bytes that are read at a time if a tensor can be read in part: they stay in a CPU's cache until
they are converted, hashed and written. This is much less than `allocation.MAPPED_FROM`, even for a
dtype twice as wide: each larger piece is new memory, and the system takes longer to provide that
than everything else takes.
"""

_AT_ONCE = 1 << 15
"""Elements that are processed at a time: for more, PyTorch uses its own thread pool (GRAIN_SIZE in
ATen/TensorIterator.h), whose threads then wait for work on CPUs that others need.
"""


class TensorChangedError(Exception):
    """A tensor does not have its announced shape or dtype when it is read."""


@dataclass(frozen=True)
class LazyTensor:
    """A tensor with known shape and dtype that is not in memory until it is read.

    Attributes:
        shape: Shape of the tensor.
        dtype: Its dtype as stored.
        read: Returns the tensor on the CPU. Copy it before writing to it, unless `owns_memory`.
        owns_memory: Whether each read returns new memory that nothing else uses.
        read_range: Returns the elements from one position up to another, flat and in row-major
            order, on the CPU; None if only the whole can be read. Copy them before writing to them.
        stored: Position of its elements in a file, flat and in row-major order; None if they are
            computed, or not contiguous.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    owns_memory: bool = False
    read_range: Callable[[int, int], Tensor] | None = None
    stored: StoredBytes | None = None

    @classmethod
    def of(cls, tensor: Tensor) -> LazyTensor:
        """Wrap a tensor that is in memory already, on any device."""

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
        """Return the ranges of positions in which its elements are read, of up to 1 MiB each.

        There is one range if only the whole can be read.
        """
        count = prod(self.shape)
        if self.read_range is None or self.size_bytes <= _PIECE:
            return [(0, count)]
        step = _PIECE // self.dtype.itemsize
        return [(begin, min(begin + step, count)) for begin in range(0, count, step)]

    def elements(self, begin: int, end: int) -> Tensor:
        """Read the elements of one of `ranges`, flat.

        Raises:
            TensorChangedError: The tensor now has another shape or dtype.
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
        """Read the tensor in a dtype, as a writable copy; the calling thread converts it."""
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
        """The size of its elements in bytes."""
        return prod(self.shape) * self.dtype.itemsize

    def reshaped(self, shape: tuple[int, ...]) -> LazyTensor:
        """Return a lazy tensor of the same elements in another shape."""
        return replace(self, shape=shape, read=lambda: self.read().reshape(shape))

    def transposed(self) -> LazyTensor:
        """Return a lazy tensor of the transposed matrix."""
        return LazyTensor(self.shape[::-1], self.dtype, lambda: self.read().T.contiguous())

    def third(self, number: int) -> LazyTensor:
        """Return the first, second or last third along the first dimension; `number` is 0, 1 or 2.

        It is a copy: a view would keep all three in memory for as long as one of them waits to be
        written, while only its own bytes are counted.
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
        """Return the tensor in another floating-point dtype; None and integer types: unchanged."""
        if dtype in (None, self.dtype) or not self.dtype.is_floating_point:
            return self
        read_range = self.read_range

        def read_cast_range(begin: int, end: int) -> Tensor:
            assert read_range is not None  # noqa: S101 - set only if `read_range` is
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
    """Memory that a tensor is read into in its stored dtype, and converted in place.

    The stored elements are at the end of it. Converting from the first element to the last never
    overwrites elements that are still to be read, as long as the dtype is no narrower.

    Attributes:
        values: The tensor; its elements are valid once they are converted.
        found: The elements in their stored dtype, flat, in the same memory.
        bytes: The memory that these elements are read into.
    """

    values: Tensor
    found: Tensor
    bytes: memoryview

    @classmethod
    def for_tensor(cls, tensor: LazyTensor, dtype: torch.dtype) -> TensorMemory:
        """Allocate memory for reading a tensor in a dtype that is no narrower than its own."""
        values = torch.empty(tensor.shape, dtype=dtype)
        memory = values.view(-1).view(torch.uint8)
        found = memory[memory.numel() - tensor.size_bytes :]
        return cls(values, found.view(tensor.dtype), found.numpy().data)

    def convert(self, begin: int, end: int) -> None:
        """Convert elements that have been read, after those before them."""
        if self.values.dtype != self.found.dtype:
            _convert(self.found[begin:end], self.values.view(-1)[begin:end], shared=True)


Tensors = Mapping[str, LazyTensor]


def joined(pieces: tuple[LazyTensor, ...]) -> LazyTensor:
    """Return the concatenation of tensors along the first dimension."""
    first = pieces[0]
    rows = sum(piece.shape[0] for piece in pieces)
    return LazyTensor(
        (rows, *first.shape[1:]), first.dtype, lambda: torch.cat([piece.read() for piece in pieces])
    )


def pieces_of(flat: Tensor) -> Iterator[Tensor]:
    """Yield a flat tensor in pieces small enough for PyTorch to process on the calling thread."""
    for begin in range(0, len(flat), _AT_ONCE):
        yield flat[begin : begin + _AT_ONCE]


def _convert(source: Tensor, target: Tensor, *, shared: bool = False) -> None:
    """Copy flat values to another dtype; between 16-bit dtypes via float32, as PyTorch rounds.

    PyTorch's own conversion between those goes element by element and takes twice as long.

    Args:
        source: The values.
        target: Tensor that they are copied into.
        shared: Whether both may be the same memory.
    """
    both_narrow = source.dtype.itemsize == target.dtype.itemsize == 2
    for narrow, into in zip(pieces_of(source), pieces_of(target), strict=True):
        if both_narrow:
            into.copy_(narrow.float())
        else:
            into.copy_(narrow.clone() if shared else narrow)


def total_bytes(tensors: Tensors) -> int:
    """Return the size of all tensors in bytes."""
    return sum(tensor.size_bytes for tensor in tensors.values())
