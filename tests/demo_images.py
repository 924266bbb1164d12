"""A part of the demo's images, for tests that need real ones."""

import shutil
from pathlib import Path

from impasto.demo.recipe import PICTURES


def every_fourth(folder: Path) -> Path:
    """Copy 25 of the hundred images with their captions; return the folder."""
    folder.mkdir()
    for image in sorted(PICTURES.glob("*.webp"))[::4]:
        shutil.copy(image, folder)
        shutil.copy(image.with_suffix(".txt"), folder)
    return folder
