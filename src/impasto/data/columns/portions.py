"""Splits work that several programs may share into portions, so that hardly any is done twice.

Each program starts at a random index and moves forward. Before each portion it checks which items
others have completed since, and skips them. If those are the items right ahead, or some it has
completed itself, another program is working there, and it continues in the middle of the longest
stretch that is left. So only portions in progress at the same time can be done twice. No claims are
needed: programs only have to see what others have completed.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

import numpy as np

SECONDS = 10.0
"""Approximate duration of a portion."""

_GROWTH = 4.0
# a portion ends before a run of this many items that others have done
_STRETCH = 64
# once others were seen, a portion is 1/16 of the rest, within [1/16, 1] of its usual size
_SHARE = 16


class Portions:
    """The remaining items of some work, and the indices of the next portion.

    Args:
        costs: The cost of each item; the first portion takes items with a total cost of about 1.
        seed: Seed of the random start indices; None takes a different one each time.
    """

    def __init__(self, costs: Sequence[float], seed: int | None = None) -> None:
        self._costs = np.asarray(costs, dtype=np.float64)
        self._left = np.ones(len(self._costs), dtype=np.bool_)
        self._own = np.zeros_like(self._left)
        self._random = random.Random(seed)
        self._next = self._random.randrange(max(1, len(self._left)))
        self._size, self._taken = 1.0, 0.0
        self._has_met_others = False

    def take(self) -> list[int]:
        """Return the indices of the next portion, and mark them as done; empty if none is left."""
        left = np.flatnonzero(self._left)
        if not len(left):
            return []
        if not self._left[self._next]:
            self._next = self._far_from_others()
        ahead = left[np.searchsorted(left, self._next) :]
        size = self._size
        if self._has_met_others:
            size = min(size, max(size / _SHARE, float(self._costs[left].sum()) / _SHARE))
        number = 1 + int(np.searchsorted(np.cumsum(self._costs[ahead]), size))
        skips = np.flatnonzero(np.diff(ahead[:number]) > _STRETCH)
        portion = ahead[: int(skips[0]) + 1] if len(skips) else ahead[:number]
        self._left[portion], self._own[portion] = False, True
        self._next = (int(portion[-1]) + 1) % len(self._left)
        self._taken = float(self._costs[portion].sum())
        indices: list[int] = portion.tolist()
        return indices

    def took(self, seconds: float) -> None:
        """Report how long the last portion took, to give the next ones a duration of `SECONDS`."""
        wanted = self._taken * SECONDS / max(seconds, 1e-3)
        self._size = min(max(wanted, self._size / _GROWTH), self._size * _GROWTH)

    def leave_out(self, indices: Collection[int]) -> int:
        """Mark items as done by others; return how many of them had been left."""
        if not indices:
            return 0
        theirs = np.fromiter(indices, np.int64, len(indices))
        number = int(self._left[theirs].sum())
        self._left[theirs] = False
        self._has_met_others = True
        if self._own[theirs].any():
            self._next = self._far_from_others()
        return number

    @property
    def is_done(self) -> bool:
        """Whether nothing is left."""
        return not self._left.any()

    def _far_from_others(self) -> int:
        """Return a random index in the middle half of the longest stretch that is left."""
        ends = np.diff(np.concatenate(([False], self._left, [False])).astype(np.int8))
        begins, lengths = np.flatnonzero(ends == 1), np.flatnonzero(ends == -1)
        if not len(begins):
            return 0
        lengths -= begins
        longest = int(lengths.argmax())
        quarter = int(lengths[longest]) // 4
        inside = self._random.randrange(int(lengths[longest]) - 2 * quarter)
        return int(begins[longest]) + quarter + inside
