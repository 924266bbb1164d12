"""Sequences whose objects are made when they are asked for, from columns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self, TypeVar, overload

import numpy as np

KEPT_AT_MOST = 1024
"""Objects that a sequence keeps which it was asked for one by one."""

T = TypeVar("T")


class MadeOnRequest(Sequence[T]):
    """A sequence of objects that are held as columns; equal to any sequence of equal objects.

    The few objects that were asked for last are kept, in a plain dictionary: a cache around a
    method would hold on to the table, whose columns would then wait for the garbage collector.
    """

    def __init__(self) -> None:
        self._made: dict[int, T] = {}

    @abstractmethod
    def _make(self, index: int) -> T:
        """Make the object of an index, from 0 on."""

    @abstractmethod
    def select(self, indices: np.ndarray) -> Self:
        """The objects of some indices, or where these are true, as columns again."""

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
