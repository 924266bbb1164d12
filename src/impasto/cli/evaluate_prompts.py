"""The prompts of an evaluation: captions of real images, or those in a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impasto.cli.evaluate_images import spread
from impasto.cli.evaluate_options import CAPTIONS
from impasto.cli.sampling_options import require_sampler_and_sides
from impasto.errors import DatasetError

if TYPE_CHECKING:
    from impasto.evaluation.question import RealImages
    from impasto.evaluation.samples import Contestant
    from impasto.models.tokenization.tokens import Emphasis
    from impasto.sampling.prompts import Prompt


@dataclass(frozen=True)
class Prompts:
    """The prompts to draw with each model.

    Attributes:
        texts: The prompts, each with the index of the image whose caption it is, or None.
        made: Returns the prompts for a size in pixels, each once.
        count: Number of images per prompt.
        apart: The distance between the seeds of two images of one prompt: the number of prompts
            before `--limit`, so that a limit changes no image.
        asked: The requested width and height; None where not requested.
        usual: The default size, and the model resolution that it applies to; other models are
            drawn at their native size. None means that all are.
        emphasis: How brackets in prompts are interpreted.
    """

    texts: list[tuple[str, int | None]]
    made: Callable[[tuple[int, int]], list[Prompt]]
    count: int
    apart: int
    asked: tuple[int | None, int | None]
    usual: tuple[tuple[int, int], int] | None
    emphasis: Emphasis

    @classmethod
    def of(
        cls,
        images: RealImages,
        options: dict[str, Any],
        usual: tuple[tuple[int, int], int] | None,
        of_captions: Emphasis,
    ) -> Prompts:
        """Build the prompts from the file in `--prompts`, or else from captions of images.

        Args:
            images: The real images.
            options: The options of the command.
            usual: As the attribute.
            of_captions: How brackets in captions are interpreted without `--emphasis`.

        Raises:
            ConfigError: The file is missing or malformed, or a number is out of range.
            DatasetError: No image has a caption.
        """
        require_sampler_and_sides(options["sampler"], options["width"], options["height"])
        usual_emphasis: Emphasis = of_captions if options["prompts"] is None else "mean"
        emphasis: Emphasis = options["emphasis"] or usual_emphasis
        asked = options["width"], options["height"]
        if options["prompts"] is not None:
            made, apart = _of_file(options["prompts"], options)
            texts: list[tuple[str, int | None]] = [(p.text, None) for p in made((512, 512))]
        else:
            captions = _captions(images)
            apart = len(captions)
            chosen = spread(list(enumerate(captions)), options["limit"] or CAPTIONS)
            texts = [caption for _, caption in chosen]
            numbered = [(number, text) for number, (text, _) in chosen]

            def made(size: tuple[int, int]) -> list[Prompt]:
                return [_prompt(text, number, options, size) for number, text in numbered]

        return cls(texts, made, options["count"], apart, asked, usual, emphasis)

    def of_model(self, model: Contestant) -> list[Prompt]:
        """Return the prompts for a model, `count` of each, with the same seeds for all models."""
        usual = model.size
        if self.usual is not None and model.resolution == self.usual[1]:
            usual = self.usual[0]
        size = (self.asked[0] or usual[0], self.asked[1] or usual[1])
        return [
            replace(prompt, seed=prompt.seed + number * self.apart)
            for prompt in self.made(size)
            for number in range(self.count)
        ]


def _of_file(
    file: Path, options: dict[str, Any]
) -> tuple[Callable[[tuple[int, int]], list[Prompt]], int]:
    """Return a function from size to the prompts of a file, and the number of all its prompts.

    Raises:
        ConfigError: The file is missing or malformed.
    """
    from impasto.sampling.prompt_files import read_prompt_file

    def read(size: tuple[int, int]) -> list[Prompt]:
        return read_prompt_file(file, _prompt("", 0, options, size))

    def made(size: tuple[int, int]) -> list[Prompt]:
        found = read(size)
        return spread(found, options["limit"] or len(found))

    return made, len(read((512, 512)))


def _prompt(text: str, number: int, options: dict[str, Any], size: tuple[int, int]) -> Prompt:
    from impasto.sampling.prompts import Prompt

    return Prompt(
        text,
        options["negative"],
        options["seed"] + number,
        *size,
        options["steps"],
        options["guidance"],
        options["sampler"],
        options["guidance_rescale"],
    )


def _captions(images: RealImages) -> list[tuple[str, int]]:
    """Return the non-empty captions with the indices of their images.

    Raises:
        DatasetError: No image has a caption.
    """
    captioned = [
        (image.caption, index) for index, image in enumerate(images.entries) if image.caption
    ]
    if not captioned:
        raise DatasetError(
            f"None of {images.source} has a caption, so there is nothing to draw. Put a .txt file "
            f"of the same name beside each image, or give a file of prompts with --prompts."
        )
    return captioned
