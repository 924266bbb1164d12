"""Reads tensors from files into their final memory in the background.

Importing the classes of networks takes seconds on one processor. The reading meanwhile uses another
one, and takes the GIL so rarely that the imports are hardly delayed.
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
"""RAM that is left for everything else."""

_BATCH = 64 << 20
"""Bytes that are read at a time. Between two batches the thread waits for the GIL, up to
milliseconds if others compute in Python; a caller that needs the last tensor of a batch, or ends
the run, waits for the whole batch.
"""


@dataclass
class _Batch:
    """Neighbouring tensors in a file, read at a time.

    Attributes:
        stored: Start of the first of them.
        memories: Name -> memory of a tensor, in the order of the file, until it is used.
        read: Finishes when the batch has been read; its result is whether that succeeded.
    """

    stored: StoredBytes
    memories: dict[str, TensorMemory]
    read: Future[bool] = field(default_factory=Future)


@dataclass(frozen=True)
class _AheadTensor(LazyTensor):
    """A tensor that may have been read ahead; otherwise it is read as usual."""

    name: str = ""
    batch: _Batch | None = None

    def read_as(self, dtype: torch.dtype) -> Tensor:
        """Read the tensor; the first caller gets the memory that was read ahead."""
        memory = self._read_ahead()
        if memory is None or memory.values.dtype != dtype:
            return super().read_as(dtype)
        memory.convert(0, memory.found.numel())
        return memory.values

    def _read_ahead(self) -> TensorMemory | None:
        """Return its memory to the first caller if it is read ahead or being read, else None."""
        if self.batch is None or self.stored is None:
            return None
        # if the batch has not been started, this thread reads the tensor at once
        is_read = not self.batch.read.cancel() and self.batch.read.result()
        memory = self.batch.memories.pop(
            self.name, None
        )  # not earlier, or the read would leave it out
        if not is_read:
            return None
        self.stored.check()
        return memory


class ReadAhead:
    """Reads tensors ahead on a thread that ends with the last of them.

    Args:
        tensors: Tensors that will be needed; those that are not in files are not read ahead.
        dtype: Dtype that they will be converted to; tensors stored in a wider one are not read
            ahead.

    Attributes:
        tensors: The same tensors, which return the values read ahead.
    """

    def __init__(self, tensors: Tensors, dtype: torch.dtype) -> None:
        self.tensors, self._batches = tensors, list[_Batch]()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="reading ahead", daemon=True)
        rows = _in_files(tensors, dtype)
        size = sum(math.prod(row.lazy.shape) for row in rows) * dtype.itemsize
        if ram.free_bytes() < size + SPARE_BYTES:
            return
        # memory is allocated here: on the thread, each call of PyTorch's would wait for the GIL
        self._batches = [_batch_of(neighbours, dtype) for neighbours in _neighbours(rows)]
        batches = {name: batch for batch in self._batches for name in batch.memories}
        self.tensors = {
            name: _ahead(name, lazy, batches[name]) if name in batches else lazy
            for name, lazy in tensors.items()
        }
        self._thread.start()

    def close(self) -> None:
        """Stop reading, wait until the thread has ended, and free tensors that were not used."""
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
            except Exception:  # callers read the tensors themselves, and so get the error
                batch.read.set_result(False)
            else:
                batch.read.set_result(True)


@dataclass(frozen=True)
class _Row:
    """A tensor and its position in a file."""

    name: str
    lazy: LazyTensor
    stored: StoredBytes

    @property
    def end(self) -> int:
        """The position after its last byte in the file."""
        return self.stored.begin + self.lazy.size_bytes


def _in_files(tensors: Tensors, dtype: torch.dtype) -> list[_Row]:
    """Return the tensors that can be read ahead, in the order of their files."""
    rows = [
        _Row(name, lazy, lazy.stored)
        for name, lazy in tensors.items()
        if lazy.stored is not None and lazy.dtype.itemsize <= dtype.itemsize
    ]
    return sorted(rows, key=lambda row: (str(row.stored.path), row.stored.begin))


def _neighbours(rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    """Yield groups of contiguous tensors in a file, of up to one batch's size."""
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
