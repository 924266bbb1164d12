"""The size of image that a model was trained for, by its file or its configuration."""

from __future__ import annotations

from impasto.checkpoints.keymap import UNET
from impasto.checkpoints.modelspec import SIDES, read_resolution
from impasto.models.contents import ModelContents


def native_size(contents: ModelContents) -> tuple[int, int]:
    """Width and height in pixels, multiples of 8.

    What the file states (`modelspec.resolution`), or else the U-Net's configuration, or else what
    its family was trained at. A stranger's size that no model has is none.
    """
    stated = read_resolution(contents.metadata)
    if stated is not None:
        width, height = stated
        return width // 8 * 8, height // 8 * 8
    latent = contents.configs[UNET].get("sample_size")
    if type(latent) is int and latent * 8 in SIDES:  # and no bool
        return latent * 8, latent * 8
    side = contents.identity.family.resolution
    return side, side
