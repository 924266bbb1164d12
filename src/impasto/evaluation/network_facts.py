"""What a network is called, and what it makes of images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class NetworkFacts:
    """What a network is, for results.

    Attributes:
        name: As it is asked for, without folders.
        kind: What its features are.
        sha256: Of its weights; of a network of transformers also of how images are prepared for it.
    """

    name: str
    kind: str
    sha256: str


@dataclass(frozen=True)
class Looked:
    """What a network makes of a few images.

    Attributes:
        features: [N, D] float32; None for a tagger that was loaded for its tags alone.
        tags: Numbers of the tags that it sees in each; None for a network that knows none.
    """

    features: np.ndarray | None
    tags: list[frozenset[int]] | None = None
