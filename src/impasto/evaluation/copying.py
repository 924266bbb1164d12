"""Which images are copies of training images, and what is nearest to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from impasto.data.inspecting.health_limits import NEAR_DUPLICATE_BITS
from impasto.evaluation.looking import Looks
from impasto.evaluation.neighbours import (
    Nearest,
    mirrored,
    nearest_by_features,
    nearest_by_pixels,
    normalised,
)


@dataclass(frozen=True)
class Copying:
    """What is near to each sample among the training images.

    Attributes:
        nearest: By pixels of a copy; of others by the first feature network, or by pixels where
            there is none. Distances are of features where there are any.
        is_copy: [N] whether a sample is a copy by its pixels or its perceptual hash.
    """

    nearest: Nearest
    is_copy: np.ndarray


def copies_of(looks: Looks, training: Looks, among: Mapping[str, Nearest]) -> Copying:
    """What is near to each image among the training images, and whether it is a copy.

    A copy stands out by its pixels, or its perceptual hash differs in at most so many bits as two
    files of the same photograph do. Mirrored copies are copies: training may mirror its images.

    Args:
        looks: The images.
        training: The training images, at least one.
        among: Networks of which neighbours are known; the nearest is that of the first.
    """
    by_pixels, stands_out = _nearest_of_both(looks.squares, training.squares)
    by_hash, same = _same_hash(looks, training)
    stands_out &= ~looks.flat
    is_copy = stands_out | (same & ~looks.flat)
    name = next(iter(among), None)
    if name is None:
        return Copying(by_pixels, is_copy)
    unit, trained = normalised(looks.features[name]), normalised(training.features[name])
    others = np.where(is_copy, by_hash, nearest_by_features(unit, trained).index)
    index = np.where(stands_out, by_pixels.index, others)
    distance = 1 - (unit * trained[index]).sum(1)
    return Copying(Nearest(index, np.maximum(0.0, distance)), is_copy)


def _nearest_of_both(squares: np.ndarray, training: np.ndarray) -> tuple[Nearest, np.ndarray]:
    """The nearest training image by pixels of each image or its mirror image, and which is a copy.

    Args:
        squares: [N, SIDE * SIDE * 3] small squares.
        training: [M, SIDE * SIDE * 3] those of the training images.
    """
    plain, is_copy = nearest_by_pixels(squares, training)
    turned, is_turned = nearest_by_pixels(mirrored(squares), training)
    closer = turned.distance < plain.distance
    index = np.where(closer, turned.index, plain.index)
    nearest = Nearest(index, np.minimum(turned.distance, plain.distance))
    return nearest, np.asarray(is_copy | is_turned)


def _same_hash(looks: Looks, training: Looks) -> tuple[np.ndarray, np.ndarray]:
    """[N] the training image of the nearest perceptual hash, and [N] whether it is the same."""
    index, same = np.zeros(len(looks.hashes), np.int64), np.zeros(len(looks.hashes), np.bool_)
    for position, pair in enumerate(zip(looks.hashes, looks.mirrored_hashes, strict=True)):
        bits = np.minimum(*(np.bitwise_count(training.hashes ^ value) for value in pair))
        index[position] = bits.argmin()
        same[position] = bits[index[position]] <= NEAR_DUPLICATE_BITS
    return index, same
