"""The input and the result of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from impasto.evaluation.image_features import CaptionedImage
from impasto.evaluation.networks import Network
from impasto.evaluation.samples import Contestant
from impasto.models.tokenization.tokens import Emphasis
from impasto.sampling.prompts import Prompt


@dataclass(frozen=True)
class RealImages:
    """Real images that models are compared with.

    Attributes:
        source: Their name in results.
        entries: The images.
        name_of: Returns the name of an image in results.
    """

    source: str
    entries: Sequence[CaptionedImage]
    name_of: Callable[[Path], str]


@dataclass(frozen=True)
class Question:
    """The input of an evaluation.

    Attributes:
        images: The real images.
        training: The training images; None if they are unknown. If they are the same as `images`,
            it is the same object.
        prompts: The prompts, each with the index in `images` of the image whose caption it is, or
            None.
        per_prompt: Number of samples per prompt.
        prompts_of: Returns the prompts of a model, with seeds and sizes: `per_prompt` for each of
            `prompts`, in their order.
        networks: The feature networks; the first tagger among them reports tags.
        replicates: Number of bootstrap draws.
        seed: Seed of these draws.
        trained_on: Run -> the files that it was trained on, as far as known; a note reports real
            images among them.
        emphasis: The syntax of emphasis in the prompts.
    """

    images: RealImages
    training: RealImages | None
    prompts: Sequence[tuple[str, int | None]]
    per_prompt: int
    prompts_of: Callable[[Contestant], Sequence[Prompt]]
    networks: tuple[Network, ...]
    replicates: int
    seed: int
    trained_on: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    emphasis: Emphasis = "off"


@dataclass(frozen=True)
class Answer:
    """The result of an evaluation.

    Attributes:
        values: The content of its JSON file.
        real: Name in `values` -> the real image.
        training: Name in `values` -> the training image.
    """

    values: dict[str, Any]
    real: dict[str, CaptionedImage]
    training: dict[str, CaptionedImage]
