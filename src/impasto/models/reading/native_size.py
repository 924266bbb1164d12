"""The image size that a model was trained for, from its file or its configuration."""

from __future__ import annotations

from impasto.checkpoints.modelspec import SIDES, read_resolution
from impasto.models.reading.contents import ModelContents


def native_size(contents: ModelContents) -> tuple[int, int]:
    """Return width and height in pixels, multiples of the side of a latent's cell.

    The size is the one that the file states (`modelspec.resolution`), else that of the U-Net's
    configuration, else the resolution of the family. Invalid sizes in foreign files are ignored.
    """
    family, stated = contents.identity.family, read_resolution(contents.metadata)
    cell = family.cell
    if stated is not None:
        width, height = stated
        return width // cell * cell, height // cell * cell
    latent = contents.configs[family.unet.name].get("sample_size")
    if type(latent) is int and latent * cell in SIDES:  # excludes bool
        return latent * cell, latent * cell
    return family.resolution, family.resolution
