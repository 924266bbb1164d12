"""What the base model's file says of its training: taken where the settings are silent.

A model that was trained on CLIP's penultimate layer learns another text from the last one; so the
layer comes from the file unless `model.clip_skip` says otherwise. What contradicts the file, or
cannot be taken from it, is told.
"""

from __future__ import annotations

from impasto.config.run import RunConfig
from impasto.models.reading.contents import ModelContents
from impasto.models.reading.opening import open_model
from impasto.models.reading.recorded import trained_clip_skip, trained_resolution
from impasto.progress import Progress
from impasto.training.builders.model import build_open_options

FAR_APART = 1.25
"""Ratio of sides from which another resolution is worth a word: 512 against 640."""


def with_model_defaults(config: RunConfig, progress: Progress) -> RunConfig:
    """Settings with what the base model's file records, where they leave it open.

    Raises:
        ModelError: The model cannot be opened.
    """
    contents = open_model(config.model.path, build_open_options(config), progress)
    for line in contradictions(config, contents):
        progress.note(f"Warning: {line}")
    layer = trained_clip_skip(contents)
    if layer is None or layer == 1 or config.model.clip_skip is not None:
        return config
    progress.note(
        f"{contents.name} says that it was trained with clip skip {layer}: taken. "
        f"model.clip_skip = 1 takes the last layer instead."
    )
    model = config.model.model_copy(update={"clip_skip": layer})
    return config.model_copy(update={"model": model})


def contradictions(config: RunConfig, contents: ModelContents) -> list[str]:
    """Where settings and what the file records differ, in sentences."""
    found = []
    layer, asked = trained_clip_skip(contents), config.model.clip_skip
    if layer is not None and asked is not None and asked != layer:
        found.append(
            f"model.clip_skip is {asked}, but {contents.name} says that it was trained with "
            f"{layer}: its words mean something else at another layer."
        )
    size = trained_resolution(contents)
    largest = max(entry.width_height for entry in config.dataset.entries)
    if size is not None and _far_apart(size, largest):
        found.append(
            f"dataset.resolution is {largest[0]}x{largest[1]}, but {contents.name} says that it "
            f"was trained at {size[0]}x{size[1]}; far from its own size a model draws things "
            f"twice, or small."
        )
    return found


def _far_apart(one: tuple[int, int], other: tuple[int, int]) -> bool:
    ratio = (one[0] * one[1] / (other[0] * other[1])) ** 0.5
    return not 1 / FAR_APART <= ratio <= FAR_APART
