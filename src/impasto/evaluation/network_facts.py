"""The identity of a feature network, and its output for images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class NetworkFacts:
    """The identity of a network, for results.

    Attributes:
        name: The name by which it was requested, without folders.
        kind: A description of its features.
        sha256: The SHA-256 of its weights; for a transformers model, also of its preprocessing.
    """

    name: str
    kind: str
    sha256: str


@dataclass(frozen=True)
class NetworkOutput:
    """The output of a network for a few images.

    Attributes:
        features: [N, D] float32; None for a tagger that was loaded only for its tags.
        tags: Numbers of the tags that it finds in each image; None for a network without tags.
    """

    features: np.ndarray | None
    tags: list[frozenset[int]] | None = None
