"""Nearest training images by features and by pixels, to find whether a model repeats them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from impasto.progress import Advance

SIDE = 32
"""Width and height in pixels of the small squares that are compared."""

NEIGHBOURS = 50
CLOSER = 0.5
FEWEST = 10
_ROWS = 256
"""Number of images that are compared with all others at once."""


@dataclass(frozen=True)
class Nearest:
    """The nearest other image of each image.

    Attributes:
        index: [N] its index.
        distance: [N] its distance.
    """

    index: np.ndarray
    distance: np.ndarray


def _unheard(_: int) -> None:
    """Ignore the progress."""


def normalised(features: np.ndarray) -> np.ndarray:
    """Return [N, D] features scaled to length 1, as float32."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(lengths, 1e-12), dtype=np.float32)


def nearest_by_features(
    x: np.ndarray, y: np.ndarray | None = None, told: Advance = _unheard
) -> Nearest:
    """Find the nearest image by the angle between features.

    Args:
        x: [N, D] features of length 1.
        y: [M, D] features of the other images, of length 1; None compares `x` with itself, where no
            image is its own neighbour.
        told: Called with the number of images completed since the last call.

    Returns:
        The nearest images; distances are 1 minus the cosine, 0 to 2.
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
    """Return [N] whether the nearest training image is farther away than that one's own neighbour.

    This is the authenticity of Alaa et al. 2022 (arXiv:2102.08921): an image that is nearer to a
    training image than any other training image may be a noisy copy. The fraction of authentic
    images to expect without copying is that of real images that were not trained on.

    Args:
        to_training: The nearest training image of each image.
        among_training: The nearest other training image of each training image.
    """
    return np.asarray(to_training.distance > among_training.distance[to_training.index])


def mirrored(squares: np.ndarray) -> np.ndarray:
    """Return [N, SIDE * SIDE * 3] small squares, mirrored horizontally."""
    return squares.reshape(-1, SIDE, SIDE, 3)[:, :, ::-1].reshape(len(squares), -1)


def nearest_by_pixels(x: np.ndarray, y: np.ndarray) -> tuple[Nearest, np.ndarray]:
    """Find the nearest training image by pixels, and whether the image is a copy of it.

    Carlini et al. 2023 (arXiv:2301.13188), section 5.1: an image is a copy if its nearest training
    image is within half (`CLOSER`) of its mean distance to its `NEIGHBOURS` nearest ones. With a
    fixed distance, every image with a plain background would count as a copy. With `FEWEST`
    training images or fewer, the mean is meaningless, and no image counts as a copy.

    Args:
        x: [N, P] uint8 pixels of small squares.
        y: [M, P] uint8 pixels of training images.

    Returns:
        The nearest images, by the root mean squared difference of pixels in [0, 1]; and [N] whether
        each image is a copy.
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
    """Return [N, M] root mean squared differences of bytes as pixels in [0, 1], `y` in parts."""
    a = x.astype(np.float32) / 255
    found = np.empty((len(x), len(y)), np.float32)
    for start in range(0, len(y), 4096):
        b = y[start : start + 4096].astype(np.float32) / 255
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * (a @ b.T)
        found[:, start : start + 4096] = np.sqrt(np.maximum(squares, 0) / x.shape[1])
    return found
