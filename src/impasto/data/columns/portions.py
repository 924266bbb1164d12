"""Cuts work that several programs may be at into portions, so that hardly anything is done twice.

Each program begins at a random place and goes forward. Before each portion it is told what others
have done since, which it leaves out. Where that is just what came next, or what it has done too,
another program is at the things there, and it goes on in the middle of the longest stretch that is
left. So what is done twice is what another program is at just now, and needs no claims: all that
programs have to see of each other is what is done.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

import numpy as np

SECONDS = 10.0
"""How long a portion takes, about."""

_GROWTH = 4.0
_STRETCH = 64  # things in a row that others have done: who did them may be at the next ones
_SHARE = 16  # portions of what is left, or of a portion, once others are seen


class Portions:
    """What is left of some work, and the indices of the next portion in it.

    Args:
        costs: Of each thing, in portions of the first size: the first is of things that cost 1.
        seed: Of the random beginnings; None takes another one each time.
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
        """The indices of the next portion, which count as done; none where nothing is left."""
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
        """Be told how long the last portion took; the next ones become of `SECONDS`."""
        wanted = self._taken * SECONDS / max(seconds, 1e-3)
        self._size = min(max(wanted, self._size / _GROWTH), self._size * _GROWTH)

    def leave_out(self, indices: Collection[int]) -> int:
        """Be told what others have done, and perhaps this program too; returns what was left."""
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
        """An index in the middle half of the longest stretch that is left, not twice the same."""
        ends = np.diff(np.concatenate(([False], self._left, [False])).astype(np.int8))
        begins, lengths = np.flatnonzero(ends == 1), np.flatnonzero(ends == -1)
        if not len(begins):
            return 0
        lengths -= begins
        longest = int(lengths.argmax())
        quarter = int(lengths[longest]) // 4
        inside = self._random.randrange(int(lengths[longest]) - 2 * quarter)
        return int(begins[longest]) + quarter + inside
