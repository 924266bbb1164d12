"""Regularisation images that a base model generates itself, so that training preserves its prior.

Ruiz et al. 2023, DreamBooth (arXiv:2208.12242), section 3.3: the prior is preserved by training on
samples of the frozen model, generated from prompts that name the class. Image number n of a folder
depends on the settings and n alone, so an unfinished folder is completed with the same bits on the
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
"""File that records the settings of a folder's images; a scan of the folder ignores it."""

VERSION = 1
CAPTION = ".txt"


@dataclass(frozen=True)
class PriorPlan:
    """The regularisation images that the base model generates.

    Attributes:
        texts: Captions that are used in turn: image n has text n modulo their number.
        count: Number of images.
        prompt: All settings but the text; its seed is the first image's, and each further image
            adds 1.
    """

    texts: Sequence[str]
    count: int
    prompt: Prompt

    def prompt_at(self, number: int) -> Prompt:
        """Return the prompt of an image, counted from 0."""
        settings = {**asdict(self.prompt), "seed": self.prompt.seed + number}
        return Prompt(**{**settings, "text": self.text_at(number)})

    def text_at(self, number: int) -> str:
        """Return the caption of an image, counted from 0."""
        return self.texts[number % len(self.texts)]

    def record(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """Return everything that determines an image of a given number, so not their count.

        Args:
            model: Identity of the model, and how it reads text.
        """
        settings = asdict(self.prompt)
        del settings["text"], settings["loras"]  # no LoRAs are used
        return {"version": VERSION, "model": dict(model), "texts": list(self.texts), **settings}


def missing_images(folder: Path, count: int) -> list[int]:
    """Return the numbers of images that do not exist yet."""
    return [number for number in range(count) if not presence.exists(_image(folder, number))]


def require_same_folder(folder: Path, record: Mapping[str, Any]) -> None:
    """Check that a folder is new, or was started with the same settings, and record them.

    Raises:
        ConfigError: It holds something else, or was started with others; the message names the
            differences.
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
                f"{folder} holds {there[0]}, but no record of an unfinished set of generated "
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
            f"{file} cannot be read, so the settings of the images beside it are not known: "
            f"{error}. Choose a new folder."
        ) from error
    if differing:
        raise ConfigError(
            f"{folder} was started with other settings: {'; '.join(differing)}. Nothing was "
            f"changed. Use the same settings, or a new folder."
        )


def draw_missing(plan: PriorPlan, folder: Path, sampler: Sampler, progress: Progress) -> int:
    """Generate the missing images, each with its caption beside it.

    The caption is written first, so that every existing image has one.

    Args:
        plan: Images to generate.
        folder: Folder to write to: `00000.png` and `00000.txt`, and so on.
        sampler: Generates the images.
        progress: Shows the progress.

    Returns:
        The number of images generated.

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
    """Write the missing captions of existing images; existing captions are unchanged.

    Returns:
        The number of captions written.

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
