"""A sequence base class whose objects are created on request, from columns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self, TypeVar, overload

import numpy as np

KEPT_AT_MOST = 1024
"""Maximum number of objects that a sequence caches after they were requested one by one."""

T = TypeVar("T")


class LazySequence(Sequence[T]):
    """A sequence of objects that are stored as columns; equal to any sequence of equal objects.

    The objects requested last are cached, in a plain dictionary: a cache around a method would hold
    a reference to the table, whose columns would then wait for the garbage collector.
    """

    def __init__(self) -> None:
        self._made: dict[int, T] = {}

    @abstractmethod
    def _make(self, index: int) -> T:
        """Create the object with this index, counted from 0."""

    @abstractmethod
    def select(self, indices: np.ndarray) -> Self:
        """Return the objects at some indices, or where a mask is true, as columns again."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> T | Self:
        if isinstance(index, slice):
            return self.select(np.arange(*index.indices(len(self))))
        row = range(len(self))[index]
        made = self._made.get(row)
        if made is None:
            if len(self._made) >= KEPT_AT_MOST:
                self._made = {}
            made = self._made[row] = self._make(row)
        return made

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]
