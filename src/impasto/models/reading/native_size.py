"""The size of image that a model was trained for, by its file or its configuration."""

from __future__ import annotations

from impasto.checkpoints.modelspec import SIDES, read_resolution
from impasto.models.reading.contents import ModelContents


def native_size(contents: ModelContents) -> tuple[int, int]:
    """Width and height in pixels, multiples of a latent's cell.

    What the file states (`modelspec.resolution`), or else the U-Net's configuration, or else what
    its family was trained at. A stranger's size that no model has is none.
    """
    family, stated = contents.identity.family, read_resolution(contents.metadata)
    cell = family.cell
    if stated is not None:
        width, height = stated
        return width // cell * cell, height // cell * cell
    latent = contents.configs[family.unet.name].get("sample_size")
    if type(latent) is int and latent * cell in SIDES:  # and no bool
        return latent * cell, latent * cell
    return family.resolution, family.resolution
