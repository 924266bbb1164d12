"""The settings of a generated image, and the text that records them in its file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from impasto.errors import ConfigError
from impasto.sampler_table import RANGES, SAMPLERS

if TYPE_CHECKING:
    from impasto.models.tokenization.tokens import Emphasis

_HYPERNETWORK = re.compile(
    r"<hypernet:(?P<name>[^:<>]+)(?::(?P<strength>[-+]?(?:\d+\.?\d*|\.\d+)))?>"
)


@dataclass(frozen=True)
class Prompt:
    """A prompt with all settings that determine its image.

    Attributes:
        text: What the image should show.
        negative: What it should not show.
        seed: Seed of the initial noise.
        width: Pixels, a multiple of 8.
        height: Pixels, a multiple of 8.
        steps: Number of sampler steps.
        guidance_scale: Strength of guidance; 1 means none. Ho and Salimans 2022 (arXiv:2207.12598).
        sampler: Key of `SAMPLERS`.
        guidance_rescale: Fraction of the contrast added by guidance that is removed again, from 0
            to 1; Lin et al. 2023 (arXiv:2305.08891), section 3.4. It has no effect without
            guidance.
        loras: Names and strengths of the LoRAs that were added to the model, only for the image's
            file.
    """

    text: str
    negative: str = ""
    seed: int = 1
    width: int = 512
    height: int = 512
    steps: int = 20
    guidance_scale: float = 7.0
    sampler: str = "ddim"
    guidance_rescale: float = 0.0
    loras: tuple[tuple[str, float], ...] = ()

    @property
    def plain_text(self) -> str:
        """The text without its hypernetwork tags."""
        return _HYPERNETWORK.sub("", self.text).strip()

    @property
    def texts(self) -> tuple[str, str]:
        """The inputs of the text encoder: `plain_text`, and the negative prompt."""
        return self.plain_text, self.negative

    @property
    def is_rescaled(self) -> bool:
        """Whether guidance is rescaled; false at a scale of 1, which is no guidance."""
        return self.guidance_rescale > 0 and self.guidance_scale != 1

    @property
    def strengths(self) -> dict[str, float]:
        """Hypernetwork -> strength, as in `<hypernet:name:0.5>`; 1 if none is given.

        AUTOMATIC1111/stable-diffusion-webui, `modules/extra_networks_hypernet.py`.
        """
        return {
            match["name"]: float(match["strength"] or 1)
            for match in _HYPERNETWORK.finditer(self.text)
        }

    def parameters(self, more: Mapping[str, str] | None = None) -> str:
        """Return the text that A1111 writes into PNG files and other programs read from them.

        LoRAs are written as tags of A1111's prompts, so that A1111 uses the file of that name.

        Args:
            more: Other settings by their names in A1111, such as `Clip skip`.
        """
        text = " ".join((self.text, *(f"<lora:{name}:{value:g}>" for name, value in self.loras)))
        negative = f"\nNegative prompt: {self.negative}" if self.negative else ""
        rescale = f", CFG rescale: {self.guidance_rescale:g}" if self.is_rescaled else ""
        return (
            f"{text}{negative}\nSteps: {self.steps}, Sampler: {self.sampler}, "
            f"CFG scale: {self.guidance_scale:g}, Seed: {self.seed}, "
            f"Size: {self.width}x{self.height}{rescale}"
            + "".join(f", {name}: {value}" for name, value in (more or {}).items())
        )


def require_drawable(prompt: Prompt, cell: int) -> None:
    """Check that the size and the other settings of a prompt are in their ranges.

    Args:
        prompt: The prompt.
        cell: Pixels per side of a latent's cell.

    Raises:
        ConfigError: A number is out of its range, or a side is not a multiple of the cell.
    """
    for name, (least, most) in RANGES.items():
        number = getattr(prompt, name)
        if not least <= number <= most:
            raise ConfigError(f"{name} of a prompt is {number}; expected {least} to {most}.")
    require_sides({"width of a prompt": prompt.width, "height of a prompt": prompt.height}, cell)


def require_sides(sides: Mapping[str, int | None], cell: int) -> None:
    """Check that the sides of an image are multiples of a latent's cell.

    Args:
        sides: Name of each side -> its pixels; None if the model determines it.
        cell: Pixels per side of a latent's cell.

    Raises:
        ConfigError: A side is no multiple of the cell.
    """
    for name, side in sides.items():
        if side is not None and side % cell:
            raise ConfigError(f"{name} is {side}; expected a multiple of {cell}.")


def require_sampler(name: str) -> None:
    """Check that a sampler with this name exists.

    Raises:
        ConfigError: It does not.
    """
    if name not in SAMPLERS:
        raise ConfigError(f"There is no sampler {name!r}; choose one of {', '.join(SAMPLERS)}.")


_EMPHASIS: dict[Emphasis, str | None] = {"mean": None, "no_norm": "No norm", "off": "None"}
"""A1111's names; None is its default, "Original" (`modules/sd_emphasis.py`)."""


def text_settings(clip_skip: int | None, emphasis: Emphasis) -> dict[str, str]:
    """Return how text is read, in the terms of A1111's PNG files, which omit defaults.

    Args:
        clip_skip: CLIP layer, counted from the end; None means the family's own.
        emphasis: Effect of emphasis such as `(cat:1.2)`.
    """
    told = {
        "Clip skip": str(clip_skip) if clip_skip is not None and clip_skip > 1 else None,
        "Emphasis": _EMPHASIS[emphasis],
    }
    return {name: value for name, value in told.items() if value is not None}
