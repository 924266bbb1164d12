"""Whether a model repeats its training images: by features, and by pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from impasto.progress import Advance

SIDE = 32
"""Pixels of the small squares that are compared."""

NEIGHBOURS = 50
CLOSER = 0.5
FEWEST = 10
_ROWS = 256
"""Images that are compared with all others at once."""


@dataclass(frozen=True)
class Nearest:
    """The nearest of other images, for each of some images.

    Attributes:
        index: [N] which it is.
        distance: [N] how far it is.
    """

    index: np.ndarray
    distance: np.ndarray


def _unheard(_: int) -> None:
    """Report no progress to anybody."""


def normalised(features: np.ndarray) -> np.ndarray:
    """[N, D] features of length 1, float32."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(lengths, 1e-12), dtype=np.float32)


def nearest_by_features(
    x: np.ndarray, y: np.ndarray | None = None, told: Advance = _unheard
) -> Nearest:
    """The nearest image by the angle between features.

    Args:
        x: [N, D] of length 1.
        y: [M, D] the others, of length 1; None means `x` itself, of which none is its own.
        told: Is told how many images are done.

    Returns:
        Distances are 1 less the cosine: 0 to 2.
    """
    others = x if y is None else y
    index, distance = np.zeros(len(x), np.int64), np.zeros(len(x))
    for start in range(0, len(x), _ROWS):
        alike = x[start : start + _ROWS] @ others.T
        rows = np.arange(len(alike))
        if y is None:
            alike[rows, start + rows] = -np.inf
        index[start : start + _ROWS] = found = alike.argmax(1)
        distance[start : start + _ROWS] = np.maximum(0.0, 1 - alike[rows, found])
        told(len(rows))
    return Nearest(index, distance)


def authentic(to_training: Nearest, among_training: Nearest) -> np.ndarray:
    """[N] whether an image is farther from its nearest training image than that is from its own.

    The authenticity of Alaa et al. 2022 (arXiv:2102.08921): an image that is nearer
    to a training image than any other training image is may be a copy with noise. What share of
    images is authentic without any copying is told by real images that were not trained on.

    Args:
        to_training: The nearest training image of each image.
        among_training: The nearest other training image of each training image.
    """
    return np.asarray(to_training.distance > among_training.distance[to_training.index])


def mirrored(squares: np.ndarray) -> np.ndarray:
    """[N, SIDE * SIDE * 3] small squares with left and right exchanged."""
    return squares.reshape(-1, SIDE, SIDE, 3)[:, :, ::-1].reshape(len(squares), -1)


def nearest_by_pixels(x: np.ndarray, y: np.ndarray) -> tuple[Nearest, np.ndarray]:
    """The nearest training image by pixels, and whether it stands out so far that it is a copy.

    Carlini et al. 2023 (arXiv:2301.13188), section 5.1: an image is a copy if it is nearer than
    half (`CLOSER`) of its mean distance to its `NEIGHBOURS` nearest training images. A fixed
    distance would call every image with a plain background a copy. Among `FEWEST` images or
    fewer nothing stands out, and none is called a copy.

    Args:
        x: [N, P] uint8 pixels of small squares.
        y: [M, P] of training images.

    Returns:
        The nearest, by the root of the mean squared difference of pixels in [0, 1]; [N] whether
        it is a copy.
    """
    kept = min(NEIGHBOURS, len(y))
    index, distance = np.zeros(len(x), np.int64), np.zeros(len(x))
    copies = np.zeros(len(x), np.bool_)
    for start in range(0, len(x), _ROWS):
        far = _root_mean_squares(x[start : start + _ROWS], y)
        rows = np.arange(len(far))
        found = far.argmin(1)
        index[start : start + _ROWS], distance[start : start + _ROWS] = found, far[rows, found]
        usual = np.partition(far, kept - 1, axis=1)[:, :kept].mean(1)
        stands_out = far[rows, found] <= CLOSER * usual
        copies[start : start + _ROWS] = stands_out & (kept > FEWEST)
    return Nearest(index, distance), copies


def _root_mean_squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[N, M] root mean squared differences of bytes as pixels in [0, 1]; `y` in parts."""
    a = x.astype(np.float32) / 255
    found = np.empty((len(x), len(y)), np.float32)
    for start in range(0, len(y), 4096):
        b = y[start : start + 4096].astype(np.float32) / 255
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * (a @ b.T)
        found[:, start : start + 4096] = np.sqrt(np.maximum(squares, 0) / x.shape[1])
    return found
