"""Scores drawings of the demo: was the style learnt, and does the model still know its subjects?

The prompts name things that no training image shows; real drawings of these in the style were held
out. A validation loss measures how well noise is predicted for those; it does not measure whether a
drawing still shows the subject of its prompt. The demo's tagger does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from impasto.data.scanning.scan import scan_folder
from impasto.demo.recipe import HELD_OUT, TAGGER
from impasto.evaluation.distances import kernel_estimate
from impasto.evaluation.image_features import CaptionedImage, ImageFeatures, features_of
from impasto.evaluation.networks import TaggerNetwork
from impasto.evaluation.obedience import PromptTags, seen_fractions
from impasto.progress import Progress


@dataclass(frozen=True)
class Evidence:
    """The scores of a model's drawings.

    Attributes:
        recognised: Number of drawings in which the tagger finds everything named in the prompt.
        asked: Number of drawings whose prompt names something that the tagger knows.
        distance: Kernel distance to the held-out drawings in the tagger's features (Bińkowski et
            al. 2018, arXiv:1801.01401): lower is closer; it may be below 0 if there is no
            difference. NaN for a single drawing.
    """

    recognised: int
    asked: int
    distance: float

    def __str__(self) -> str:
        """Return the scores as text, for a table."""
        return (
            f"{self.recognised} of {self.asked} things recognised, kernel distance "
            f"{self.distance:.2f}"
        )


def look_at_drawings(
    folders: Mapping[str, Path], prompts: Sequence[str], progress: Progress
) -> dict[str, Evidence]:
    """Score the drawings of several models, and return the scores by name of the model.

    Args:
        folders: Name of a model -> the folder with its drawings, `000.png` and so on.
        prompts: The prompts of the drawings, in order; at least one.
        progress: Shows the progress.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
    """
    tagger = TaggerNetwork("demo", TAGGER, progress)
    finder = PromptTags(tagger.table)
    wanted = [finder.of(prompt) for prompt in prompts]
    held_out = [CaptionedImage.of(record) for record in scan_folder(HELD_OUT).records]
    real = features_of(held_out, [tagger], "the held-out drawings", progress)
    indices = {image.caption: index for index, image in enumerate(real.images)}
    linked = [indices.get(prompt) for prompt in prompts]
    found = {}
    for name, folder in folders.items():
        drawn = [CaptionedImage(folder / f"{number:03d}.png") for number in range(len(prompts))]
        looks = features_of(drawn, [tagger], f"what was drawn by {name}", progress)
        found[name] = _evidence(looks, real, wanted, linked)
    return found


def _evidence(
    looks: ImageFeatures,
    real: ImageFeatures,
    wanted: Sequence[frozenset[int]],
    linked: Sequence[int | None],
) -> Evidence:
    fractions = [s for s in seen_fractions(wanted, looks.tags or ()) if s is not None]
    x, y = looks.features["demo"], real.features["demo"]
    none_drawn = np.empty((0, len(x))), np.empty((0, len(y)))
    distance = kernel_estimate(x, np.arange(len(x)), y, *none_drawn, linked).value
    return Evidence(sum(fraction == 1 for fraction in fractions), len(fractions), distance)
