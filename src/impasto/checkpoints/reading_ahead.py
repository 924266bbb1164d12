"""Tensors on their way from a file into the memory that they will have, while other work goes on.

Importing the classes of networks takes seconds of one processor. Reading meanwhile takes another
one, and waits for Python so seldom that the imports hardly notice.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from impasto import ram
from impasto.checkpoints.stored_bytes import StoredBytes
from impasto.checkpoints.tensors import LazyTensor, TensorMemory, Tensors

SPARE_BYTES = 2 << 30
"""RAM that is left to everything else."""

_BATCH = 64 << 20
"""Bytes that are read at a time. Between two times the thread waits for Python, up to milliseconds
where others compute in it; and whoever needs the last of them, or ends the run, waits for all."""


@dataclass
class _Batch:
    """Neighbours in a file, read at a time.

    Attributes:
        stored: Where the first of them begins.
        memories: Name -> memory of a tensor, in the order of the file, until it is taken.
        read: Is done when all of it has been read, and says whether it has.
    """

    stored: StoredBytes
    memories: dict[str, TensorMemory]
    read: Future[bool] = field(default_factory=Future)


@dataclass(frozen=True)
class _AheadTensor(LazyTensor):
    """A tensor that may be in its memory already; it is read as usual where it is not."""

    name: str = ""
    batch: _Batch | None = None

    def read_as(self, dtype: torch.dtype) -> Tensor:
        """Read the tensor; the first caller gets the copy that was prefetched."""
        memory = self._read_ahead()
        if memory is None or memory.values.dtype != dtype:
            return super().read_as(dtype)
        memory.convert(0, memory.found.numel())
        return memory.values

    def _read_ahead(self) -> TensorMemory | None:
        """Its memory, for the first who asks, if its bytes are there or on their way."""
        if self.batch is None or self.stored is None:
            return None
        # where nobody has begun, this thread may do so at once
        is_read = not self.batch.read.cancel() and self.batch.read.result()
        memory = self.batch.memories.pop(
            self.name, None
        )  # not before, or a read would leave it out
        if not is_read:
            return None
        self.stored.check()
        return memory


class ReadAhead:
    """Reads tensors ahead, on a thread that ends with the last of them.

    Args:
        tensors: Those that will be needed, of which some may not be in files.
        dtype: The type that they will come to; what is stored in a wider one is not read ahead.

    Attributes:
        tensors: The same tensors, which take what was read of them.
    """

    def __init__(self, tensors: Tensors, dtype: torch.dtype) -> None:
        self.tensors, self._batches = tensors, list[_Batch]()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="reading ahead", daemon=True)
        rows = _in_files(tensors, dtype)
        size = sum(math.prod(row.lazy.shape) for row in rows) * dtype.itemsize
        if ram.free_bytes() < size + SPARE_BYTES:
            return
        # memory is asked for here: each call of PyTorch's would wait for Python on the thread
        self._batches = [_batch_of(neighbours, dtype) for neighbours in _neighbours(rows)]
        batches = {name: batch for batch in self._batches for name in batch.memories}
        self.tensors = {
            name: _ahead(name, lazy, batches[name]) if name in batches else lazy
            for name, lazy in tensors.items()
        }
        self._thread.start()

    def close(self) -> None:
        """Read no further, wait until the thread has ended, and free what nobody took."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        for batch in self._batches:
            batch.read.cancel()
            batch.memories.clear()

    def _read(self) -> None:
        for batch in self._batches:
            if self._stopped.is_set():
                return
            buffers = [memory.bytes for memory in list(batch.memories.values())]
            if not batch.read.set_running_or_notify_cancel():
                continue
            try:
                batch.stored.read_into(*buffers)
            except Exception:  # whoever asks for a tensor of it reads it, and says what is wrong
                batch.read.set_result(False)
            else:
                batch.read.set_result(True)


@dataclass(frozen=True)
class _Row:
    """A tensor, and where it lies."""

    name: str
    lazy: LazyTensor
    stored: StoredBytes

    @property
    def end(self) -> int:
        """Position in its file after the last byte."""
        return self.stored.begin + self.lazy.size_bytes


def _in_files(tensors: Tensors, dtype: torch.dtype) -> list[_Row]:
    """Those that can be read ahead, in the order of their files."""
    rows = [
        _Row(name, lazy, lazy.stored)
        for name, lazy in tensors.items()
        if lazy.stored is not None and lazy.dtype.itemsize <= dtype.itemsize
    ]
    return sorted(rows, key=lambda row: (str(row.stored.path), row.stored.begin))


def _neighbours(rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    """Those that lie one after another in a file."""
    group: list[_Row] = []
    for row in rows:
        if group and not (
            row.stored.path == group[0].stored.path
            and row.stored.begin == group[-1].end
            and row.end - group[0].stored.begin <= _BATCH
        ):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _batch_of(rows: Sequence[_Row], dtype: torch.dtype) -> _Batch:
    memories = {row.name: TensorMemory.for_tensor(row.lazy, dtype) for row in rows}
    return _Batch(rows[0].stored, memories)


def _ahead(name: str, lazy: LazyTensor, batch: _Batch) -> LazyTensor:
    known = {one.name: getattr(lazy, one.name) for one in fields(LazyTensor)}
    return _AheadTensor(**known, name=name, batch=batch)
