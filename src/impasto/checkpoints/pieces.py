"""Pieces of tensors to be written: hashed and written while the next are read."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO

import torch
from torch import Tensor

from impasto.checkpoints.tensors import TYPE_NAMES, LazyTensor
from impasto.progress import Advance

_TOGETHER = 1 << 20
"""Bytes of small tensors that are hashed and written at a time: passing each one to two threads
takes longer than hashing it."""
_WAITING = 16 << 20
"""Bytes that may wait to be hashed and written while the next are read; a larger tensor that cannot
be read in part waits alone."""


@dataclass(frozen=True)
class Piece:
    """A tensor, or a part of one, to be written to a file.

    Attributes:
        name: Name of the tensor.
        tensor: The tensor.
        values: Bytes of its elements from `begin` up to `end`.
        begin: Position of the first element.
        end: Position after the last element.
    """

    name: str
    tensor: LazyTensor
    values: memoryview
    begin: int
    end: int

    @property
    def begins(self) -> bool:
        """Whether this is the first piece of its tensor."""
        return self.begin == 0

    @property
    def ends(self) -> bool:
        """Whether this is the last piece of its tensor."""
        return self.end == math.prod(self.tensor.shape)


class HashedAndWritten:
    """Hashes and writes pieces in order, on one thread each; errors are raised to the caller.

    Args:
        file: File that they are written to.
        hasher: Called with each piece.
        advance: Called with the number of bytes written, on the thread that adds pieces.
    """

    def __init__(self, file: IO[bytes], hasher: Callable[[Piece], None], advance: Advance) -> None:
        self._file, self._hasher, self._advance = file, hasher, advance
        self._hashing, self._writing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._under_way: deque[tuple[int, Future[None], Future[None]]] = deque()
        self._together: list[Piece] = []
        self._size = self._waiting = 0

    def __enter__(self) -> HashedAndWritten:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._send()
                self._drain()
        finally:
            self._hashing.shutdown(cancel_futures=True)
            self._writing.shutdown(cancel_futures=True)

    def make_room(self, size: int) -> None:
        """Wait until `size` more bytes may be read."""
        if self._size + size > _TOGETHER:
            self._send()
        self._wait(max(_WAITING - size, 0))

    def add(self, piece: Piece) -> None:
        """Have a piece hashed and written after those before it."""
        self._together.append(piece)
        self._size += len(piece.values)

    def _send(self) -> None:
        if not self._together:
            return
        pieces, size = self._together, self._size
        hashed = self._hashing.submit(self._hash, pieces)
        written = self._writing.submit(self._write, pieces)
        self._under_way.append((size, hashed, written))
        self._waiting += size
        self._together, self._size = [], 0

    def _wait(self, most: int) -> None:
        while self._waiting > most:
            self._wait_for_first()

    def _drain(self) -> None:
        """Wait for all pieces, tensors without elements too, which count no bytes."""
        while self._under_way:
            self._wait_for_first()

    def _wait_for_first(self) -> None:
        size, hashed, written = self._under_way.popleft()
        hashed.result()
        written.result()
        self._waiting -= size
        self._advance(size)

    def _hash(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            self._hasher(piece)

    def _write(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            self._file.write(piece.values)


def hash_none(*_: object) -> None:
    """Compute no hash, for files that are never compared."""


class HashAll:
    """One hash over the bytes of all tensors."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def __call__(self, piece: Piece) -> None:
        """Add the bytes of the next piece."""
        self.digest.update(piece.values)


class HashEach:
    """One hash per tensor, including its dtype and shape."""

    def __init__(self, hashes: dict[str, str]) -> None:
        self._hashes = hashes
        self._digest = hashlib.sha256()

    def __call__(self, piece: Piece) -> None:
        """Add the bytes of the next piece; after a tensor's last piece, store its hash."""
        if piece.begins:
            self._digest = begun_hash(piece.tensor.dtype, piece.tensor.shape)
        self._digest.update(piece.values)
        if piece.ends:
            self._hashes[piece.name] = self._digest.hexdigest()


def begun_hash(dtype: torch.dtype, shape: Sequence[int]) -> hashlib._Hash:
    """Return the hash of a tensor's dtype and shape, to be updated with its bytes."""
    return hashlib.sha256(f"{TYPE_NAMES[dtype]}{list(shape)}".encode())


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's elements, in row-major order."""
    values: memoryview = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return values
