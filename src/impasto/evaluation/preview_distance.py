"""Measures the distance of a run's previews to real images, as `impasto evaluate` does.

A run draws few previews, with the same prompts and seeds each time. The kernel distance is unbiased
for any number of them, and comparable between steps; the Fréchet distance is neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from impasto.errors import DatasetError, StorageError
from impasto.evaluation.distances import kernel_estimate
from impasto.evaluation.image_features import CaptionedImage, ImageFeatures, features_of
from impasto.evaluation.measures import similarity_to
from impasto.evaluation.neighbours import normalised
from impasto.evaluation.networks import Network
from impasto.evaluation.resampling import FEW, Estimate, draw_real, draw_weights, mean_estimate
from impasto.progress import Progress

MOST_REAL = 1000
"""Maximum number of real images to compare with: with few previews, more would not help."""

_REPLICATES, _SEED = 200, 20180105


@dataclass
class PreviewDistance:
    """Compares the previews of a step with real images.

    Attributes:
        network: The feature network.
        real: The real images: all of them, or an evenly spread selection.
        source: Their description: `held out` or `trained on`.
        prompts: The prompt of each preview.
    """

    network: Network
    real: Sequence[CaptionedImage]
    source: str
    prompts: Sequence[str]
    _seen: ImageFeatures | None = field(default=None, init=False)

    @cached_property
    def groups(self) -> np.ndarray:
        """[N] the number of each preview's prompt; equal prompts have the same number."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(text, len(numbers)) for text in self.prompts], np.int64)

    def measure(self, previews: Sequence[Path], progress: Progress) -> dict[str, Any]:
        """Compute the entries for a line of metrics; real images are read only the first time.

        Args:
            previews: The preview file of each prompt.
            progress: Reports progress.

        Raises:
            DatasetError: None of the real images can be read.
            ModelError: The network gives NaN or infinity.
            OutOfMemoryError: Memory is too small for a single image.
            StorageError: A preview is missing or cannot be read.
        """
        real = self._looks_of_real(progress)
        images = [CaptionedImage(file) for file in previews]
        drawn = features_of(images, (self.network,), "the previews", progress)
        if drawn.unread:
            first = drawn.unread[0]
            raise StorageError(f"the preview {first.path} cannot be read: {first.reason}")
        facts = self.network.facts
        return {
            "preview_features": f"{facts.name} {facts.sha256[:12]}",
            "preview_real": f"{len(real.images)} {self.source}",
            **self._numbers(drawn.features[facts.name], real),
        }

    def _looks_of_real(self, progress: Progress) -> ImageFeatures:
        if self._seen is None:
            looks = features_of(self.real, (self.network,), "the real images", progress)
            if not looks.images:
                raise DatasetError("none of the real images can be read")
            self._seen = looks
        return self._seen

    def _numbers(self, drawn: np.ndarray, real: ImageFeatures) -> dict[str, float]:
        known, groups = real.features[self.network.facts.name], self.groups
        prompts = int(groups.max()) + 1
        draws = draw_weights(prompts, _REPLICATES if prompts >= FEW else 0, _SEED)
        indices: dict[str, int] = {}
        for index, image in enumerate(real.images):
            indices.setdefault(image.caption, index)
        of_prompt = [indices.get(text) if text else None for text in dict.fromkeys(self.prompts)]
        draws_of_real = draw_real(len(known), of_prompt, draws, _SEED + 1)
        linked = [of_prompt[group] for group in groups]
        similar = similarity_to(normalised(drawn), normalised(known), linked)
        has_enough = len({text for text, link in zip(self.prompts, linked, strict=True)
                          if link is not None}) >= FEW  # fmt: skip
        return {
            **_named("preview_kernel_distance", kernel_estimate(
                drawn, groups, known, draws, draws_of_real, of_prompt
            )),
            **_named("preview_similarity", mean_estimate(
                similar, groups, draws if has_enough else draws[:0]
            )),
        }  # fmt: skip


def chosen_real(images: Sequence[CaptionedImage], prompts: Sequence[str]) -> list[CaptionedImage]:
    """Select at most `MOST_REAL` images: those captioned as a prompt, and evenly spread others.

    Args:
        images: The real images.
        prompts: The prompts of the previews.
    """
    if len(images) <= MOST_REAL:
        return list(images)
    texts, wanted = set(prompts), dict[int, None]()
    for index, image in enumerate(images):
        if image.caption and image.caption in texts:
            texts.discard(image.caption)
            wanted[index] = None
    others = [index for index in range(len(images)) if index not in wanted]
    free = max(0, MOST_REAL - len(wanted))
    spread = (others[number * len(others) // free] for number in range(free))
    return [images[index] for index in sorted([*list(wanted)[:MOST_REAL], *spread])]


def _named(name: str, estimate: Estimate) -> dict[str, float]:
    """Return the value of an estimate and its standard error, each only if it is known."""
    if not math.isfinite(estimate.value):
        return {}
    found = {name: estimate.value}
    known = estimate.replicates[np.isfinite(estimate.replicates)]
    if len(known) > 1:
        found[f"{name}_se"] = float(known.std(ddof=1))
    return found
