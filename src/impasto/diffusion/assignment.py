"""Assigns the noises of a batch to its images (immiscible diffusion).

Li et al. 2024 (arXiv:2406.12303): of the noises drawn for a batch each image gets one, so that the
sum of the distances between images and noises is minimal. Each noise remains Gaussian; the
difference is that an image is paired with nearer noises more often.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

Latents = Float[Tensor, "b c h w"]


def assigned(x_0: Latents, noise: Latents) -> Latents:
    """Return the noises in the order in which they are assigned to the images.

    Distances are those of values rounded to float16, as in the paper's section 3.2.

    Args:
        x_0: Scaled latents.
        noise: The same number of noises, on the same device.
    """
    if len(x_0) == 1:
        return noise
    images, noises = (x.flatten(1).half().float() for x in (x_0, noise))
    order = least_assignment(torch.cdist(images, noises).double().cpu().numpy())
    return noise[torch.tensor(order, device=noise.device)]


def least_assignment(costs: npt.NDArray[np.float64]) -> list[int]:
    """Return the column assigned to each row, all different, with the minimal sum of costs.

    The Hungarian method with shortest augmenting paths (Jonker and Volgenant 1987, Computing 38),
    in O(n^3): exact, and for the up to some hundred rows of a batch a matter of milliseconds.

    Args:
        costs: [n, n], finite.
    """
    n = len(costs)
    of_row, of_column = np.zeros(n), np.zeros(n)  # potentials: costs - both is never below 0
    row_of = np.full(n, -1)
    for row in range(n):
        distance, before = np.full(n, np.inf), np.full(n, -1)
        done = np.zeros(n, dtype=bool)
        current, column, reached = row, -1, 0.0
        while current >= 0:
            reduced = reached + costs[current] - of_row[current] - of_column
            nearer = ~done & (reduced < distance)
            distance[nearer], before[nearer] = reduced[nearer], column
            column = int(np.argmin(np.where(done, np.inf, distance)))
            reached, done[column] = distance[column], True
            current = int(row_of[column])
        _shift(of_row, of_column, row_of, distance, done, (row, reached))
        while column >= 0:  # back along the path, each row is assigned the next column
            previous = int(before[column])
            row_of[column] = row if previous < 0 else row_of[previous]
            column = previous
    found = np.empty(n, dtype=int)
    found[row_of] = np.arange(n)
    return [int(column) for column in found]


def _shift(
    of_row: npt.NDArray[np.float64],
    of_column: npt.NDArray[np.float64],
    row_of: npt.NDArray[np.int_],
    distance: npt.NDArray[np.float64],
    done: npt.NDArray[np.bool_],
    end: tuple[int, float],
) -> None:
    """Change the potentials so that the edges of the path have reduced cost 0."""
    row, reached = end
    of_row[row] += reached
    for column in np.flatnonzero(done):
        if row_of[column] >= 0:
            of_row[row_of[column]] += reached - distance[column]
        of_column[column] -= reached - distance[column]
