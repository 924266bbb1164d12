"""Applies emphasis to the states of a text's chunks, and joins the chunks."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from impasto.models.tokenization.tokens import LENGTH

_ROUNDING = 1e-6
"""A mean of at most this fraction of the mean magnitude is rounding; measured ones have 1e-3."""


def apply_emphasis(
    states: Float[Tensor, "b chunks n d"],
    weights: Float[Tensor, "b chunks n"],
    *,
    keep_mean: bool,
) -> Float[Tensor, "b chunks n d"]:
    """Multiply each position by its weight; A1111's `modules/sd_emphasis.py`.

    With `keep_mean` the mean of each chunk is restored. A1111 takes it over all images of a batch,
    which have one prompt there; here it is taken per text, so that a caption does not depend on the
    others of its batch. Where the mean is only rounding, as after a layer norm that was never
    trained, it is not restored: A1111 divides by it, even by zero.
    """
    changed = states * weights.unsqueeze(-1)
    if not keep_mean:
        return changed
    before, after, size = map(_mean, (states, changed, changed.abs()))
    of_type = torch.finfo(states.dtype).eps / (states.shape[-2] * states.shape[-1]) ** 0.5
    has_mean = torch.minimum(before.abs(), after.abs()) > max(_ROUNDING, 4 * of_type) * size
    ratio = torch.where(has_mean, before, 1.0) / torch.where(has_mean, after, 1.0)
    return changed * ratio.to(changed.dtype)


def _mean(states: Float[Tensor, "b chunks n d"]) -> Float[Tensor, "b chunks 1 1"]:
    return states.mean((-2, -1), keepdim=True, dtype=torch.promote_types(states.dtype, torch.float))


def join_chunks(states: Float[Tensor, "b chunks n d"]) -> Float[Tensor, "b positions d"]:
    """Concatenate the chunks, each with its BOS and EOS, as A1111 does."""
    return states.flatten(1, 2)


def join_as_one_sequence(states: Float[Tensor, "b chunks n d"]) -> Float[Tensor, "b positions d"]:
    """Join chunks as sd-scripts does: first BOS, 75 states of each chunk, last position overall."""
    if states.shape[1] == 1:
        return states[:, 0]
    inner = states[:, :, 1 : LENGTH - 1].flatten(1, 2)
    return torch.cat([states[:, 0, :1], inner, states[:, -1, -1:]], dim=1)


JOINERS = {"a1111": join_chunks, "kohya": join_as_one_sequence}
