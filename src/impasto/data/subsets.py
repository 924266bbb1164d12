"""How the images of one part of a dataset are used: repeats, captions, flips, masks and more."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from impasto.data.captions import CaptionRules

INTERPOLATIONS = (
    "lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box",
)  # fmt: skip


@dataclass(frozen=True)
class Augmentation:
    """Random changes to an image each time it is shown, so that its latents cannot be cached.

    Attributes:
        random_crop: Crop at a random position instead of the centre.
        color: Shift hue and brightness a little.
        face_crop_range: Crop around the face given by the file name (`_cx_cy_w_h`, in pixels), so
            that the face takes 1/high to 1/low of the shorter side; None means no such crop.
    """

    random_crop: bool = False
    color: bool = False
    face_crop_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class MaskRules:
    """Sources of the loss weights of an image's pixels; if both are used, they are multiplied.

    Attributes:
        alpha: Use the image's opacity as weight.
        folder: Folder of mask images with the names of the images, white where the loss counts;
            None means no mask files.
    """

    alpha: bool = False
    folder: Path | None = None


@dataclass(frozen=True, eq=False)
class Subset:
    """Settings of one part of a dataset, shared by all its images.

    Attributes:
        root: The folder that image names are relative to.
        dataset: The number of the dataset, which has its own batch size and buckets.
        number: The number of the subset within its dataset.
        repeats: How often each image is shown in an epoch.
        captions: How captions are varied.
        flips: Whether images are mirrored in half of their showings.
        flip_safe: Words in a caption that prevent mirroring.
        augmentation: Random changes to each image; None if its latents can be cached.
        masks: Sources of loss weights; None if all pixels count the same.
        interpolation: How images are resized, one of `INTERPOLATIONS`.
        reads_npz: Whether latents that sd-scripts cached beside the images are used.
        class_tokens: The caption of images that have no caption file; empty means none.
        is_reg: Whether the images are regularisation images; see `regularisation.py`.
        loss_weight: Factor of the loss of each image.
    """

    root: Path = field(default_factory=Path)
    dataset: int = 0
    number: int = 0
    repeats: int = 1
    captions: CaptionRules = field(default_factory=CaptionRules)
    flips: bool = False
    flip_safe: tuple[str, ...] = ()
    augmentation: Augmentation | None = None
    masks: MaskRules | None = None
    interpolation: str = "lanczos"
    reads_npz: bool = False
    class_tokens: str = ""
    is_reg: bool = False
    loss_weight: float = 1.0

    def may_flip(self, caption: str) -> bool:
        """Return whether an image with this caption may be mirrored."""
        return self.flips and not mentions_side(caption, self.flip_safe)


def mentions_side(caption: str, sides: tuple[str, ...]) -> bool:
    """Return whether one of `sides` occurs in `caption` as a whole word, in any letter case."""
    if not sides:
        return False
    pattern = "|".join(re.escape(side.replace("_", " ")) for side in sides)
    return re.search(rf"\b({pattern})\b", caption.replace("_", " "), re.IGNORECASE) is not None


PLAIN = Subset()
"""The default subset: images are used unchanged."""
