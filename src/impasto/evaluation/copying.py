"""Finds copies of training images among samples, and the training image nearest to each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from impasto.data.inspecting.health_limits import NEAR_DUPLICATE_BITS
from impasto.evaluation.image_features import ImageFeatures
from impasto.evaluation.neighbours import (
    Nearest,
    mirrored,
    nearest_by_features,
    nearest_by_pixels,
    normalised,
)


@dataclass(frozen=True)
class Copying:
    """The nearest training image of each sample, and whether the sample is a copy.

    Attributes:
        nearest: The nearest training images: of copies by pixels or perceptual hash, of other
            samples by the first feature network, or by pixels without a network. Distances are
            those of features if there are any.
        is_copy: [N] whether a sample is a copy by its pixels or its perceptual hash.
    """

    nearest: Nearest
    is_copy: np.ndarray


def copies_of(
    looks: ImageFeatures, training: ImageFeatures, among: Mapping[str, Nearest]
) -> Copying:
    """Find the nearest training image of each image, and whether the image is a copy of one.

    An image is a copy if one training image is far nearer by pixels than the others, or if its
    perceptual hash differs from that of a training image in at most `NEAR_DUPLICATE_BITS` bits, as
    for two files of one photograph. Mirrored copies count too, since training may mirror images.

    Args:
        looks: The images.
        training: The training images, at least one.
        among: Names of networks -> neighbours among training images; the first one is used.
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
    """Find the training image nearest by pixels to each image or its mirror image.

    Args:
        squares: [N, SIDE * SIDE * 3] small squares.
        training: [M, SIDE * SIDE * 3] small squares of the training images.

    Returns:
        The nearest training images, and [N] whether each image is a copy.
    """
    plain, is_copy = nearest_by_pixels(squares, training)
    turned, is_turned = nearest_by_pixels(mirrored(squares), training)
    closer = turned.distance < plain.distance
    index = np.where(closer, turned.index, plain.index)
    nearest = Nearest(index, np.minimum(turned.distance, plain.distance))
    return nearest, np.asarray(is_copy | is_turned)


def _same_hash(looks: ImageFeatures, training: ImageFeatures) -> tuple[np.ndarray, np.ndarray]:
    """Return [N] the index of the nearest perceptual hash, and [N] whether the hashes match."""
    index, same = np.zeros(len(looks.hashes), np.int64), np.zeros(len(looks.hashes), np.bool_)
    for position, pair in enumerate(zip(looks.hashes, looks.mirrored_hashes, strict=True)):
        bits = np.minimum(*(np.bitwise_count(training.hashes ^ value) for value in pair))
        index[position] = bits.argmin()
        same[position] = bits[index[position]] <= NEAR_DUPLICATE_BITS
    return index, same
