"""Whether models learnt the demo's style and kept what the base model knew, by what they drew.

The prompts name things that no training image shows, and real drawings of these in the style were
held out. A validation loss tells how well noise is found in those; it does not tell whether what is
drawn is still what was asked for. The tagger that comes with the demo does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from impasto.data.scanning.scan import scan_folder
from impasto.demo.recipe import HELD_OUT, TAGGER
from impasto.evaluation.distances import kernel_estimate
from impasto.evaluation.looking import CaptionedImage, Looks, look_at
from impasto.evaluation.networks import TaggerNetwork
from impasto.evaluation.obedience import PromptTags, seen_shares
from impasto.progress import Progress


@dataclass(frozen=True)
class Evidence:
    """What is seen in the drawings of a model.

    Attributes:
        recognised: Drawings in which the tagger sees all that the prompt names.
        asked: Drawings whose prompts name something that the tagger knows.
        distance: Kernel distance to the held-out drawings by the tagger's features (Bińkowski et
            al. 2018, arXiv:1801.01401): lower is nearer, and may be below 0 where there is no
            difference. NaN of a single drawing.
    """

    recognised: int
    asked: int
    distance: float

    def __str__(self) -> str:
        """The numbers in words."""
        return (
            f"{self.recognised} of {self.asked} things recognised, kernel distance "
            f"{self.distance:.2f}"
        )


def look_at_drawings(
    folders: Mapping[str, Path], prompts: Sequence[str], progress: Progress
) -> dict[str, Evidence]:
    """What is seen in the drawings of several models.

    Args:
        folders: What a model is called -> the folder with its drawings, `000.png` and so on.
        prompts: What they were asked to show, in their order; at least one.
        progress: Shows how far the work is.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
    """
    tagger = TaggerNetwork("demo", TAGGER, progress)
    finder = PromptTags(tagger.table)
    wanted = [finder.of(prompt) for prompt in prompts]
    held_out = [CaptionedImage.of(record) for record in scan_folder(HELD_OUT).records]
    real = look_at(held_out, [tagger], "the held-out drawings", progress)
    indices = {image.caption: index for index, image in enumerate(real.images)}
    linked = [indices.get(prompt) for prompt in prompts]
    found = {}
    for name, folder in folders.items():
        drawn = [CaptionedImage(folder / f"{number:03d}.png") for number in range(len(prompts))]
        looks = look_at(drawn, [tagger], f"what was drawn by {name}", progress)
        found[name] = _evidence(looks, real, wanted, linked)
    return found


def _evidence(
    looks: Looks,
    real: Looks,
    wanted: Sequence[frozenset[int]],
    linked: Sequence[int | None],
) -> Evidence:
    shares = [s for s in seen_shares(wanted, looks.tags or ()) if s is not None]
    x, y = looks.features["demo"], real.features["demo"]
    none_drawn = np.empty((0, len(x))), np.empty((0, len(y)))
    distance = kernel_estimate(x, np.arange(len(x)), y, *none_drawn, linked).value
    return Evidence(sum(share == 1 for share in shares), len(shares), distance)
