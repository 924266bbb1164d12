"""The size of picture that a model was trained for, by its file or its configuration."""

from __future__ import annotations

import re

from impasto.checkpoints.keymap import UNET
from impasto.checkpoints.modelspec import RESOLUTION
from impasto.models.contents import ModelContents

_STATED = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?")
_SIDES = range(8, 8193)


def native_size(contents: ModelContents) -> tuple[int, int]:
    """Width and height in pixels, multiples of 8.

    What the file states (`modelspec.resolution`), or else the U-Net's configuration, or else what
    its family was trained at.
    """
    stated = _STATED.fullmatch(contents.metadata.get(RESOLUTION, "").strip())
    if stated is not None:
        width, height = int(stated[1]), int(stated[2] or stated[1])
        if width in _SIDES and height in _SIDES:
            return width // 8 * 8, height // 8 * 8
    latent = contents.configs[UNET].get("sample_size")
    side = latent * 8 if isinstance(latent, int) else contents.identity.family.resolution
    return side, side
