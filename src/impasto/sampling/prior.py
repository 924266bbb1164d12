"""Regularisation images that a base model draws itself, so that training keeps what it knows.

Ruiz et al. 2023, DreamBooth (arXiv:2208.12242), section 3.3: the prior is kept by training on
samples of the frozen model, drawn for the class's words. Image number n of a folder follows from
the settings and n alone, so a folder that was left unfinished is finished to the same bits on the
same device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from impasto import files, presence, temporary_names
from impasto.data.folders import formats
from impasto.errors import ConfigError
from impasto.parsing import parse_json, read_text
from impasto.progress import Progress
from impasto.sampling.prompts import Prompt
from impasto.sampling.sampler import Sampler, save_png

RECORD = ".prior.json"
"""What decides the images of a folder; a scan of the folder passes over it."""

VERSION = 1
CAPTION = ".txt"


@dataclass(frozen=True)
class PriorPlan:
    """Which images the base model draws for regularisation.

    Attributes:
        texts: Captions that are drawn in turn: image n is of text n modulo their number.
        count: How many images.
        prompt: Everything but the text; its seed is the first image's, and each further one adds 1.
    """

    texts: Sequence[str]
    count: int
    prompt: Prompt

    def prompt_at(self, number: int) -> Prompt:
        """The prompt of an image, counted from 0."""
        settings = {**asdict(self.prompt), "seed": self.prompt.seed + number}
        return Prompt(**{**settings, "text": self.text_at(number)})

    def text_at(self, number: int) -> str:
        """The caption of an image."""
        return self.texts[number % len(self.texts)]

    def record(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """All that decides an image of a given number; how many there are does not.

        Args:
            model: What identifies the model, and how it reads words.
        """
        settings = asdict(self.prompt)
        del settings["text"], settings["loras"]  # none are drawn with
        return {"version": VERSION, "model": dict(model), "texts": list(self.texts), **settings}


def missing_images(folder: Path, count: int) -> list[int]:
    """The numbers of images that are not there yet."""
    return [number for number in range(count) if not presence.exists(_image(folder, number))]


def require_same_folder(folder: Path, record: Mapping[str, Any]) -> None:
    """Make sure that a folder is new, or was begun with the same settings; write them down.

    Raises:
        ConfigError: It holds something else, or was begun with others; what differs is named.
        StorageError: It cannot be written.
    """
    files.require_writable(folder)
    temporary_names.remove_leftovers(folder)
    file = folder / RECORD
    if not presence.exists(file):
        known = {*formats.EXTENSIONS, CAPTION}
        there = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in known)
        if there:
            raise ConfigError(
                f"{folder} holds {there[0]}, and not the record of an unfinished set of drawn "
                f"images ({RECORD}). Nothing was changed. Choose a new folder."
            )
        files.write_json(file, dict(record))
        return
    try:
        before = parse_json(read_text(file))
        differing = [
            f"{name} was {_shown(before.get(name))}, is {_shown(record.get(name))}"
            for name in sorted(record.keys() | before.keys())
            if before.get(name) != record.get(name)
        ]
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{file} cannot be read, so it is not known how the images beside it were drawn: "
            f"{error}. Choose a new folder."
        ) from error
    if differing:
        raise ConfigError(
            f"{folder} was begun with other settings: {'; '.join(differing)}. Nothing was changed. "
            f"Take the same, or a new folder."
        )


def draw_missing(plan: PriorPlan, folder: Path, sampler: Sampler, progress: Progress) -> int:
    """Draw the images that are not there yet, each with its caption beside it.

    The caption is written first, so an image that is there has one.

    Args:
        plan: What is drawn.
        folder: Where to: `00000.png` and `00000.txt`, and so on.
        sampler: Draws.
        progress: Is told.

    Returns:
        How many were drawn.

    Raises:
        StorageError: The disk is full.
    """
    missing = missing_images(folder, plan.count)
    with progress.stage("Drawing regularisation images", len(missing), "images") as advance:
        for number in missing:
            image = _image(folder, number)
            files.write_text(image.with_suffix(CAPTION), f"{plan.text_at(number)}\n")
            prompt = plan.prompt_at(number)
            save_png(sampler.draw(prompt), image, prompt, sampler.text_settings)
            advance(1)
    return len(missing)


def write_missing_captions(plan: PriorPlan, folder: Path) -> int:
    """Write the captions that are not there, of images that are; those that are there stay.

    Returns:
        How many were written.

    Raises:
        StorageError: The disk is full.
    """
    written = 0
    for number in range(plan.count):
        image = _image(folder, number)
        caption = image.with_suffix(CAPTION)
        if presence.exists(image) and not presence.exists(caption):
            files.write_text(caption, f"{plan.text_at(number)}\n")
            written += 1
    return written


def _image(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.png"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
