"""Finds masks that copied settings do not use yet, such as masks painted after the run started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from impasto.config.fields import fields_of, tree_of
from impasto.data.folders.mask_folders import mask_names
from impasto.studio.datasets import image_files

FIELD = "dataset.mask_dir"


@dataclass(frozen=True)
class FoundMasks:
    """A folder of masks for the images of some settings.

    Attributes:
        folder: The folder.
        number: Number of images that have a mask in it.
        images: Number of images of the settings.
    """

    folder: Path
    number: int
    images: int

    @property
    def field(self) -> str:
        """The folder, formatted as the text of the form field `dataset.mask_dir`."""
        return fields_of({"dataset": {"mask_dir": str(self.folder)}})[FIELD]


def unused_masks_of(fields: Mapping[str, str], within: Sequence[Path]) -> FoundMasks | None:
    """Return the unused masks beside or in the image folder of settings, or None if none exist.

    They are found as by `impasto new`. The result is None if the settings already use masks, from a
    folder or from the transparency of the images, or if they have several subsets.

    Args:
        fields: The text of each field of the settings.
        within: The folders that the studio shows; masks are searched for only in these.
    """
    dataset = tree_of(fields)[0].get("dataset", {})
    images_dir = dataset.get("image_dir")
    if dataset.get("mask_dir") or dataset.get("alpha_mask") or dataset.get("datasets"):
        return None
    if not isinstance(images_dir, str) or not Path(images_dir).is_absolute():
        return None
    masks = mask_names(Path(images_dir), within)
    if masks is None:
        return None
    images = image_files(Path(images_dir), recursive=dataset.get("recursive", True))
    number = sum(map(masks.has, images))
    return FoundMasks(masks.folder, number, len(images)) if number else None
