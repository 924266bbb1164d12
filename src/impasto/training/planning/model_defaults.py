"""Settings that are read from the base model's metadata where the user has not set them.

A model that was trained with CLIP's penultimate layer would learn different text embeddings from
the last layer; so the layer is read from the model's file unless `model.clip_skip` is set. Settings
that contradict the metadata are reported as warnings.
"""

from __future__ import annotations

from impasto.config.run import RunConfig
from impasto.models.reading.contents import ModelContents
from impasto.models.reading.opening import open_model
from impasto.models.reading.recorded import trained_clip_skip, trained_resolution
from impasto.progress import Progress
from impasto.training.builders.model import build_open_options

FAR_APART = 1.25
"""Ratio of side lengths from which a different resolution is reported, as 640 to 512."""


def with_model_defaults(config: RunConfig, progress: Progress) -> RunConfig:
    """Return the settings with the clip skip that the base model's file records, if it is not set.

    The choice, and settings that contradict the file, are reported to `progress`.

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
        f"Using clip skip {layer}: {contents.name} says that it was trained with it. "
        f"model.clip_skip = 1 uses the last layer instead."
    )
    model = config.model.model_copy(update={"clip_skip": layer})
    return config.model_copy(update={"model": model})


def contradictions(config: RunConfig, contents: ModelContents) -> list[str]:
    """Return a sentence for each setting that contradicts the model's metadata."""
    found = []
    layer, asked = trained_clip_skip(contents), config.model.clip_skip
    if layer is not None and asked is not None and asked != layer:
        found.append(
            f"model.clip_skip is {asked}, but {contents.name} says that it was trained with "
            f"{layer}: the model does not know the text embeddings of another layer."
        )
    size = trained_resolution(contents)
    largest = max(entry.width_height for entry in config.dataset.entries)
    if size is not None and _far_apart(size, largest):
        found.append(
            f"dataset.resolution is {largest[0]}x{largest[1]}, but {contents.name} says that it "
            f"was trained at {size[0]}x{size[1]}; far from its training size a model draws "
            f"objects twice, or too small."
        )
    return found


def _far_apart(one: tuple[int, int], other: tuple[int, int]) -> bool:
    ratio = (one[0] * one[1] / (other[0] * other[1])) ** 0.5
    return not 1 / FAR_APART <= ratio <= FAR_APART
