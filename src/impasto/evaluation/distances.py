"""Distances between two sets of images by their features: Fréchet distance and kernel distance.

clean-fid and torch-fidelity compute both only for Inception, with PyTorch versions of years ago,
and without the weights that the bootstrap needs; both formulas fit on a page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from impasto.evaluation.resampling import Estimate

_ROWS = 512  # images whose kernels with all others are computed at once
_FEWEST, _MOST = 20, 200  # bootstrap draws for the Fréchet distance
_WORK = 4e9  # work limit for all draws of one model, in cubes of the smaller side


def frechet_distance(
    x: np.ndarray, y: np.ndarray, w: np.ndarray | None = None, v: np.ndarray | None = None
) -> float:
    """Return the squared Fréchet distance of two normal distributions fitted to features.

    Heusel et al. 2017 (arXiv:1706.08500), eq. 6: |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^(1/2)), with
    covariances over n - 1. With factors C1 = A'A and C2 = B'B, the last trace is the sum of the
    singular values of AB': this needs no matrix root, cannot round below zero, and costs the cube
    of the smaller side. Only this distance with Inception's features is called "FID".

    Args:
        x: [N, D] features, N at least 2.
        y: [M, D] features of the other set, M at least 2.
        w: [N] weights, how often each row of `x` counts; None means once.
        v: [M] weights of `y`; None means once.
    """
    mean_x, a = _factor(x, w)
    mean_y, b = _factor(y, v)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    shift = ((mean_x - mean_y) ** 2).sum()
    return float(max(0.0, shift + (a**2).sum() + (b**2).sum() - 2 * cross))


def _factor(x: np.ndarray, w: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean [D] of features and a factor A [min(N, D), D] of their covariance A'A."""
    weights = np.ones(len(x)) if w is None else w
    counted = x[weights > 0].astype(np.float64)
    weights = weights[weights > 0]
    total = weights.sum()
    mean = (weights / total) @ counted
    a = np.sqrt(weights / max(total - 1, 1))[:, None] * (counted - mean)
    return mean, np.asarray(np.linalg.qr(a, mode="r")) if a.shape[0] > a.shape[1] else a


def frechet_estimate(
    x: np.ndarray,
    groups: np.ndarray,
    y: np.ndarray,
    draws: np.ndarray,
    draws_y: np.ndarray,
    told: Callable[[int], None],
) -> Estimate:
    """Estimate the Fréchet distance, with bootstrap draws of prompts and of real images.

    The value is NaN with fewer than two samples or real images.

    Args:
        x: [N, D] features of samples.
        groups: [N] the prompt of each sample.
        y: [M, D] features of real images.
        draws: [R, P] how often each prompt was drawn.
        draws_y: [R, M] how often each real image was drawn.
        told: Called with the number of completed draws, 1 each time.
    """
    if len(x) < 2 or len(y) < 2:
        return Estimate(float("nan"), np.empty(0))
    prompts, replicates = len(np.unique(groups)), []
    for w, v in zip(draws, draws_y, strict=True):
        if prompts > 1:  # draws of a single prompt are all equal and carry no information
            replicates.append(frechet_distance(x, y, w[groups], v))
        told(1)
    drawn_from = min(prompts, len(y))
    return Estimate(frechet_distance(x, y), np.array(replicates), "normal", drawn_from)


def frechet_draws(samples: int, real: int, width: int, replicates: int) -> int:
    """Return the number of draws for the Fréchet distance, which cost the smaller side cubed."""
    side = max(1, min(samples, real, width))
    return int(min(replicates, max(_FEWEST, min(_MOST, _WORK / side**3))))


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return [N, M] the kernel (x·y / D + 1)³; Bińkowski et al. 2018 (arXiv:1801.01401)."""
    return np.asarray((x @ y.T / x.shape[1] + 1.0) ** 3)


def kernel_estimate(
    x: np.ndarray,
    groups: np.ndarray,
    y: np.ndarray,
    draws: np.ndarray,
    draws_y: np.ndarray,
    linked: Sequence[int | None] = (),
) -> Estimate:
    """Estimate the kernel distance: the unbiased squared maximum mean discrepancy of two sets.

    Gretton et al. 2012, "A Kernel Two-Sample Test", eq. 3, with the kernel of Bińkowski et al.
    2018. It is unbiased for any number of images, and may be below zero if two sets are alike. All
    pairs of images that are not drawn independently are left out: an image and itself, two images
    of one prompt, and an image with the real image whose caption is its prompt. Including the last,
    a model that follows captions would seem nearer than its distribution is, by an amount that
    falls only as slowly as the noise. As a result, a draw that contains a prompt twice does not
    shift the distance either.

    Args:
        x: [N, D] features of samples.
        groups: [N] the prompt of each sample, 0 to P - 1.
        y: [M, D] features of real images.
        draws: [R, P] how often each prompt was drawn.
        draws_y: [R, M] how often each real image was drawn.
        linked: [P] the index in `y` of the image whose caption is the prompt, or None; empty if no
            prompt is a caption.
    """
    prompts = len(np.unique(groups))
    if prompts < 2 or len(y) < 2:
        return Estimate(float("nan"), np.empty(0))
    x, y = x.astype(np.float64), y.astype(np.float64)
    w = np.vstack([np.ones((1, draws.shape[1])), draws])
    v = np.vstack([np.ones((1, draws_y.shape[1])), draws_y])
    single = np.arange(len(y))
    indices = np.array([-1 if index is None else index for index in linked], np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (
            _within(x, groups, w)
            + _within(y, single, v)
            - 2 * _between(x, groups, y, w, v, indices)
        )
    return Estimate(float(found[0]), found[1:], drawn_from=min(prompts, len(y)))


def _sizes(groups: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return [P] the number of images of each prompt."""
    return np.bincount(groups, minlength=w.shape[1]).astype(np.float64)


def _within(x: np.ndarray, groups: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return [R] the mean kernel of two images of different prompts, weighted by each draw."""
    sizes, count = _sizes(groups, w), w.shape[1]
    total, own = np.zeros(len(w)), np.zeros(count)
    for start in range(0, len(x), _ROWS):
        rows = groups[start : start + _ROWS]
        block = _by_group(polynomial_kernel(x[start : start + _ROWS], x), groups, count)
        total += (w[:, rows] * (w @ block.T)).sum(1)
        np.add.at(own, rows, block[np.arange(len(rows)), rows])
    pairs = (w @ sizes) ** 2 - (w**2) @ sizes**2
    return np.asarray((total - (w**2) @ own) / np.where(pairs > 0, pairs, np.nan))


def _between(
    x: np.ndarray,
    groups: np.ndarray,
    y: np.ndarray,
    w: np.ndarray,
    v: np.ndarray,
    linked: np.ndarray,
) -> np.ndarray:
    """Return [R] the mean kernel between the sets, without linked pairs, weighted by each draw."""
    total = np.zeros(len(w))
    for start in range(0, len(x), _ROWS):
        rows = groups[start : start + _ROWS]
        block = polynomial_kernel(x[start : start + _ROWS], y)
        if len(linked):
            own = np.flatnonzero(linked[rows] >= 0)
            block[own, linked[rows[own]]] = 0
        total += (w[:, rows] * (v @ block.T)).sum(1)
    sizes = _sizes(groups, w)
    pairs = (w @ sizes) * v.sum(1)
    if len(linked):
        known = np.flatnonzero(linked >= 0)
        pairs -= (w[:, known] * v[:, linked[known]]) @ sizes[known]
    return np.asarray(total / np.where(pairs > 0, pairs, np.nan))


def _by_group(kernels: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Return [rows, P] the sums of kernels [rows, N] over the images of each prompt."""
    order = np.argsort(groups, kind="stable")
    there, starts = np.unique(groups[order], return_index=True)
    sums = np.zeros((kernels.shape[0], count))
    sums[:, there] = np.add.reduceat(kernels[:, order], starts, axis=1)
    return sums
