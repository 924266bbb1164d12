"""The best approximation of a matrix by two thin ones, and how far it is off.

By the theorem of Eckart and Young (1936), no matrices of rank r are nearer to M, in the sum of
squares, than those of its r largest singular values. These are found from the smaller of M M^T and
M^T M in float64, which takes a fraction of the time of a singular value decomposition; what is
lost of small singular values, 1e-8 of the largest, is below what any file stores.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_NEGLIGIBLE = 1e-12
"""Of the largest singular value: below it, vectors are not scaled, since that would be noise."""


@dataclass(frozen=True)
class RankRule:
    """How many singular values of a layer are kept.

    Attributes:
        most: At most so many; None is all.
        energy: As many as hold this share of the sum of their squares, in (0, 1]; None is all.
    """

    most: int | None = None
    energy: float | None = None

    def rank(self, squares: Tensor) -> int:
        """The rank for singular values whose squares these are, the largest first; 1 or more."""
        rank = len(squares)
        if self.energy is not None and self.energy < 1:
            held = squares.cumsum(0)
            rank = int(torch.searchsorted(held, self.energy * held[-1])) + 1
        return max(1, min(rank, len(squares), self.most or rank))


@dataclass(frozen=True)
class LowRank:
    """Two thin matrices in place of one.

    Attributes:
        up: `[rows, rank]`.
        down: `[rank, columns]`.
    """

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        """The rank of the factors: how many columns `up` has."""
        return self.up.shape[1]


def decompose(matrix: Tensor, rule: RankRule) -> LowRank:
    """The nearest matrices of the rank that a rule gives, in float64.

    Singular values go half into each of the two, so that neither has numbers too small for
    float16.

    Args:
        matrix: `[rows, columns]`, not all zero.
        rule: How many singular values are kept.
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
