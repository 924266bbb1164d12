"""What a model's file records of how it was trained, and that those who use it go by.

Training and drawing take the encoder layer from here, where nobody says otherwise; the prediction
and the end of the noise schedule are found in `identity.py` and `opening.py`.
"""

from __future__ import annotations

from impasto.checkpoints.modelspec import read_encoder_layer, read_resolution
from impasto.models.reading.contents import ModelContents

RANDOM_KEY = "impasto.random_weights"
"""How a file says that its weights are those that it was made with, and were never trained."""

MOST_SKIPPED = 12  # CLIP has 12 layers: a file that says more is wrong


def trained_clip_skip(contents: ModelContents) -> int | None:
    """CLIP's layer from the end that a model was trained with, or None where nothing is recorded.

    SD 2.x cuts its text encoder to the penultimate layer itself; a number in its file says that
    again, and would be wrong if it were taken twice. So it is with every family of one layer.
    """
    layer = read_encoder_layer(contents.metadata)
    if layer is None or layer > MOST_SKIPPED:
        return None
    if not contents.identity.family.takes_any_layer:
        return None
    return layer


def has_random_weights(contents: ModelContents) -> bool:
    """Whether a model is as `impasto init` makes it, and was never trained."""
    return contents.metadata.get(RANDOM_KEY) == "true"


def trained_resolution(contents: ModelContents) -> tuple[int, int] | None:
    """Width and height in pixels that a model was trained at, or None where nothing is recorded."""
    return read_resolution(contents.metadata)
