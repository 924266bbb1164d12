"""Facts about a model's training that its file records and that later steps rely on.

Training and sampling read the encoder layer from here unless the user sets it; the prediction and
zero terminal SNR are found in `identity.py` and `opening.py`.
"""

from __future__ import annotations

from impasto.checkpoints.modelspec import read_encoder_layer, read_resolution
from impasto.models.reading.contents import ModelContents

RANDOM_KEY = "impasto.random_weights"
"""Metadata key of files whose weights are random and were never trained."""

MOST_SKIPPED = 12  # CLIP has 12 layers: a file that states more is wrong


def trained_clip_skip(contents: ModelContents) -> int | None:
    """Return the CLIP layer from the end that a model was trained with; None if unrecorded.

    SD 2.x cuts its text encoder to the penultimate layer itself; the number in its file repeats
    that, and applying it again would be wrong. So it is ignored for every family of one fixed
    layer.
    """
    layer = read_encoder_layer(contents.metadata)
    if layer is None or layer > MOST_SKIPPED:
        return None
    if not contents.identity.family.takes_any_layer:
        return None
    return layer


def has_random_weights(contents: ModelContents) -> bool:
    """Return whether a model was made by `impasto init` and never trained."""
    return contents.metadata.get(RANDOM_KEY) == "true"


def trained_resolution(contents: ModelContents) -> tuple[int, int] | None:
    """Return the width and height in pixels that a model was trained at; None if unrecorded."""
    return read_resolution(contents.metadata)
