"""What an evaluation is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from impasto.evaluation.looking import CaptionedImage
from impasto.evaluation.networks import Network
from impasto.evaluation.samples import Contestant
from impasto.models.tokenization.tokens import Emphasis
from impasto.sampling.prompts import Prompt


@dataclass(frozen=True)
class RealImages:
    """Real images that models are measured by.

    Attributes:
        source: What they are called in results.
        entries: The images.
        name_of: The name of an image in results.
    """

    source: str
    entries: Sequence[CaptionedImage]
    name_of: Callable[[Path], str]


@dataclass(frozen=True)
class Question:
    """What is to be measured.

    Attributes:
        images: The real images.
        training: The training images; None where they are not known. Where they are the same as
            `images`, it is the same object.
        prompts: What is drawn, with the index of the image in `images` whose caption it is.
        per_prompt: Images of each prompt.
        prompts_of: The prompts of a model, with seeds and sizes: `per_prompt` for each of
            `prompts`, one prompt after the other.
        networks: What looks at images; the first that is a tagger tells tags.
        replicates: Draws of the bootstrap.
        seed: Of those draws.
        trained_on: Run -> the files that it was trained on, as far as they are known: a real image
            among them is told.
        emphasis: How brackets in the prompts are read.
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
    """What an evaluation came to.

    Attributes:
        values: All of it as JSON has it.
        real: Name in `values` -> the real image.
        training: Name in `values` -> the training image.
    """

    values: dict[str, Any]
    real: dict[str, CaptionedImage]
    training: dict[str, CaptionedImage]
