"""Approximates a matrix by the product of two thin ones as closely as possible.

By the theorem of Eckart and Young (1936), no matrices of rank r are nearer to M, in the sum of
squares, than those of its r largest singular values. These are computed from the smaller of M M^T
and M^T M in float64, which takes a fraction of the time of a singular value decomposition; the
precision lost for small singular values, 1e-8 of the largest, is below that of any file.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_NEGLIGIBLE = 1e-12
"""Fraction of the largest singular value below which vectors are not scaled: that would be noise.
"""


@dataclass(frozen=True)
class RankRule:
    """How many singular values of a layer are retained.

    Attributes:
        most: Maximum number; None for no limit.
        energy: Fraction of the sum of their squares that must be retained, in (0, 1]; None for all.
    """

    most: int | None = None
    energy: float | None = None

    def rank(self, squares: Tensor) -> int:
        """Return the rank, at least 1, for squared singular values in descending order."""
        rank = len(squares)
        if self.energy is not None and self.energy < 1:
            held = squares.cumsum(0)
            rank = int(torch.searchsorted(held, self.energy * held[-1])) + 1
        return max(1, min(rank, len(squares), self.most or rank))


@dataclass(frozen=True)
class LowRank:
    """Two thin matrices whose product approximates one.

    Attributes:
        up: `[rows, rank]`.
        down: `[rank, columns]`.
    """

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        """The rank of the factors: the number of columns of `up`."""
        return self.up.shape[1]


def decompose(matrix: Tensor, rule: RankRule) -> LowRank:
    """Return the best factors in float64, of the rank that a rule gives.

    The square root of each singular value goes into each of the two, so that neither has values too
    small for float16.

    Args:
        matrix: `[rows, columns]`, not all zero.
        rule: How many singular values are retained.
    """
    wide = matrix.double()
    rows, columns = wide.shape
    gram = wide @ wide.T if rows <= columns else wide.T @ wide
    squares, vectors = torch.linalg.eigh(gram)
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    rank = rule.rank(squares)
    basis = vectors[:, :rank]
    values = squares[:rank].sqrt()
    half = torch.where(values > _NEGLIGIBLE * values[0], values, torch.ones_like(values)).sqrt()
    if rows <= columns:
        return LowRank(basis * half, (basis.T @ wide) / half[:, None])
    return LowRank((wide @ basis) / half, basis.T * half[:, None])
