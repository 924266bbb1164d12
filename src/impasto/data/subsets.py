"""How the images of one part of a dataset are used: repeats, words, flips, masks and more."""

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
    """What changes an image anew each time it is shown, so that it cannot be encoded ahead.

    Attributes:
        random_crop: Crop anywhere instead of in the middle.
        color: Shift hue and brightness a little.
        face_crop_range: Crop around the face that the file's name gives (`_cx_cy_w_h`, in pixels),
            so that it takes 1/high to 1/low of the shorter side; None means no such crop.
    """

    random_crop: bool = False
    color: bool = False
    face_crop_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class MaskRules:
    """Where the weights of an image's parts in the loss come from; both are multiplied.

    Attributes:
        alpha: Opacity is weight.
        folder: An image of the same name in this folder, white where the loss counts.
    """

    alpha: bool = False
    folder: Path | None = None


@dataclass(frozen=True, eq=False)
class Subset:
    """A part of a dataset, as its images refer to it.

    Attributes:
        root: The folder that names of images are relative to.
        dataset: The number of the dataset, which has a batch size and buckets of its own.
        number: The number of the subset in it.
        repeats: How often each image comes in an epoch.
        captions: What becomes of the words.
        flips: Whether images are mirrored in half of their showings.
        flip_safe: Words that keep an image from being mirrored.
        augmentation: What changes images each time; None if they can be encoded ahead.
        masks: Where weights in the loss come from; None if all parts count the same.
        interpolation: How images are resized, one of `INTERPOLATIONS`.
        reads_npz: Whether latents that sd-scripts left beside the images are used.
        class_tokens: The words of images that have no caption file; empty means none.
        is_reg: Whether they are regularisation images; see `regularisation.py`.
        loss_weight: What the loss of each image is multiplied by.
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
        """Whether an image with these words may be mirrored."""
        return self.flips and not mentions_side(caption, self.flip_safe)


def mentions_side(caption: str, sides: tuple[str, ...]) -> bool:
    """Whether one of `sides` stands in `caption` as a word of its own, in any letter case."""
    if not sides:
        return False
    pattern = "|".join(re.escape(side.replace("_", " ")) for side in sides)
    return re.search(rf"\b({pattern})\b", caption.replace("_", " "), re.IGNORECASE) is not None


PLAIN = Subset()
"""Images that are used as they are."""
