"""The dataset and bucket of each image of a plan, as one small number per image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from impasto.data.records import Size


class Group(NamedTuple):
    """Images that may be in a batch together: those of one dataset in one bucket."""

    dataset: int
    bucket: Size


class Groups(Sequence[Group]):
    """The group of each image: 4 bytes per image, and one object per group.

    Args:
        table: The different groups, in any order.
        codes: [images] int32: the index of each image's group in `table`.
    """

    def __init__(self, table: Sequence[Group], codes: npt.NDArray[np.int32]) -> None:
        self.table, self.codes = tuple(table), codes

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Groups:
        """Make columns of a sequence of groups; `Groups` are returned unchanged."""
        if isinstance(groups, Groups):
            return groups
        numbers: dict[Group, int] = {}
        codes = np.fromiter(
            (numbers.setdefault(group, len(numbers)) for group in groups), np.int32, len(groups)
        )
        return cls(tuple(numbers), codes)

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, index: int) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> Groups: ...
    def __getitem__(self, index: int | slice) -> Group | Groups:
        if isinstance(index, slice):
            return Groups(self.table, self.codes[index])
        return self.table[int(self.codes[index])]

    def __iter__(self) -> Iterator[Group]:
        return (self.table[code] for code in self.codes.tolist())

    def counts(self) -> dict[Group, int]:
        """Return the number of images of each group, in the order of their first images."""
        return {group: len(members) for group, members in self._by_first_image()}

    def members(self) -> list[tuple[Group, npt.NDArray[np.int32]]]:
        """Return each group, in ascending order, with the numbers of its images, ascending too."""
        return sorted(self._by_first_image(), key=lambda pair: pair[0])

    def _by_first_image(self) -> list[tuple[Group, npt.NDArray[np.int32]]]:
        """Return each group that has images, with their numbers, in the order of first images."""
        order = np.argsort(self.codes, kind="stable").astype(np.int32)
        counts = np.bincount(self.codes, minlength=len(self.table))
        of_groups = np.split(order, np.cumsum(counts)[:-1])
        found = [(g, rows) for g, rows in zip(self.table, of_groups, strict=True) if len(rows)]
        return sorted(found, key=lambda pair: int(pair[1][0]))
