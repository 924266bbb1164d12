"""Input formats of each kind of tagger: size, layout, channels, range, and how an image is fitted.

The formats are from the model cards and loaders of SmilingWolf (WD14), cella110n (cl_tagger),
pixai-labs, Camais03 (Camie), fancyfeast (JoyTag), KichangKim and its ports (DeepDanbooru), and
deepghs/imgutils, which packs several of them with a `preprocess.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from impasto.annotate.tags import CHARACTER, GENERAL
from impasto.data.engines.stages import Failure
from impasto.data.pixels.images import UnreadableImageError, read_rgb
from impasto.data.records import Size
from impasto.errors import ModelError
from impasto.parsing import parse_json, read_text

Fit = Literal["white", "black", "edge", "squash"]
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Profile:
    """How images become a tagger's input, and its output becomes probabilities.

    Attributes:
        name: The name of the kind.
        side: Side of the square input in pixels.
        channels_first: Whether the layout is [N, 3, H, W] and not [N, H, W, 3].
        bgr: Whether the channels are in the order blue, green, red.
        fit: How an image that is not square is fitted: padded (`white`, `black`, `edge`), or
            `squash`ed.
        scale: Divisor applied to the bytes first: 1 leaves 0 to 255.
        mean: Subtracted next, per channel in the order of the input.
        std: Divisor applied last, per channel.
        logits: Whether the output still needs a sigmoid.
        output: The name of the output, if there are several.
        thresholds: The thresholds that its authors publish, by category.
        by_score: Whether its authors write the likeliest tags first.
    """

    name: str
    side: int = 448
    channels_first: bool = False
    bgr: bool = False
    fit: Fit = "white"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    logits: bool = False
    output: str | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    by_score: bool = False

    def batch(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Return [N, H, W, 3] or [N, 3, H, W] float32 from uint8 RGB squares."""
        stacked = np.stack(pixels).astype(np.float32)
        if self.bgr:
            stacked = stacked[..., ::-1]
        if self.scale != 1 or any(self.mean) or self.std != (1.0, 1.0, 1.0):
            mean, std = (np.asarray(v, dtype=np.float32) for v in (self.mean, self.std))
            stacked = (stacked / np.float32(self.scale) - mean) / std
        if self.channels_first:
            stacked = stacked.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(stacked)


WD14 = Profile("WD14", bgr=True, thresholds={GENERAL: 0.35, CHARACTER: 0.85})
CL_TAGGER = Profile(
    "cl_tagger", channels_first=True, bgr=True, scale=127.5, mean=(1.0, 1.0, 1.0), logits=True,
    by_score=True,
)  # fmt: skip
PIXAI = Profile(
    "PixAI tagger",
    channels_first=True,
    scale=255.0,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    output="prediction",
    thresholds={GENERAL: 0.3, CHARACTER: 0.85},
)
CAMIE = Profile(
    "Camie tagger", 512, channels_first=True, scale=255.0, logits=True,
    thresholds={GENERAL: 0.26, CHARACTER: 0.26},
)  # fmt: skip
JOYTAG = Profile(
    "JoyTag", channels_first=True, scale=255.0, mean=CLIP_MEAN, std=CLIP_STD, logits=True,
    thresholds={GENERAL: 0.4},
)  # fmt: skip
DEEPDANBOORU = Profile(
    "DeepDanbooru", 512, fit="edge", scale=255.0, thresholds={GENERAL: 0.5, CHARACTER: 0.5}
)
KINDS: Mapping[str, Profile] = {
    "wd14": WD14,
    "cl-tagger": CL_TAGGER,
    "pixai": PIXAI,
    "camie": CAMIE,
    "joytag": JOYTAG,
    "deepdanbooru": DEEPDANBOORU,
}
"""Short name -> profile, for models whose files do not identify the kind."""

BY_TAG_FILE: Mapping[str, Profile] = {
    "selected_tags.csv": WD14,
    "tag_mapping.json": CL_TAGGER,
    "deepdanbooru_tags.csv": replace(DEEPDANBOORU, fit="black"),
    "top_tags.txt": JOYTAG,
    "tags.txt": replace(DEEPDANBOORU, fit="squash"),
    "metadata.json": CAMIE,
}
"""File name of the tags -> the kind of model that has such a file."""


def fit_to_input_shape(profile: Profile, shape: Sequence[Any], where: str) -> Profile:
    """Return a profile with the side and layout of the model's input.

    Args:
        profile: The profile of the kind.
        shape: Shape of the input: [N, H, W, 3] or [N, 3, H, W]; dynamic dimensions are not numbers.
        where: The name of the model, for messages.

    Raises:
        ModelError: The input is not a square image.
    """
    sides = [n for n in shape[1:] if isinstance(n, int) and n != 3]
    if len(shape) != 4 or 3 not in shape[1:] or len(set(sides)) > 1:
        raise ModelError(
            f"{where} takes {list(shape)}, which is not a square colour image: it is not a tagger "
            "of a known kind."
        )
    return replace(profile, channels_first=shape[1] == 3, side=sides[0] if sides else profile.side)


def with_preprocessing(profile: Profile, file: Path) -> Profile:
    """Return a profile by deepghs' `preprocess.json`: size, mean, standard deviation, padding.

    Raises:
        ModelError: It is not such a file.
    """
    try:
        content = parse_json(read_text(file))
        steps = content if isinstance(content, list) else next(
            content[key] for key in ("test", "val", "stages") if key in content
        )  # fmt: skip
        found = replace(profile, channels_first=True, bgr=False, scale=255.0, fit="squash")
        for step in steps:
            found = _applied(found, step)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise ModelError(
            f"{file} has no known description of how to prepare images ({error!r})."
        ) from error
    return found


def _applied(profile: Profile, step: Mapping[str, Any]) -> Profile:
    kind, size = str(step["type"]), step.get("size")
    if kind == "normalize":
        mean, std = (tuple(float(v) for v in step[key]) for key in ("mean", "std"))
        return replace(profile, mean=mean, std=std)
    if kind in ("resize", "pad_to_size", "center_crop") and size is not None:
        side = int(size[0] if isinstance(size, list) else size)
        colour = str(step.get("background_color", "white"))
        fits: dict[str, Fit] = {"white": "white", "black": "black"}
        fit = fits.get(colour, "white") if kind == "pad_to_size" else profile.fit
        return replace(profile, side=side, fit=fit)
    return profile


@dataclass(frozen=True)
class PrepareImages:
    """A stage: paths -> uint8 RGB squares of a profile's side; picklable, for processes."""

    profile: Profile

    def __call__(self, paths: Sequence[Path]) -> list[np.ndarray | Failure]:
        """Decode and fit each image; return a `Failure` for one that cannot be read."""
        return [self._one(path) for path in paths]

    def _one(self, path: Path) -> np.ndarray | Failure:
        side = self.profile.side
        try:
            return fit_square(read_rgb(path, at_least=Size(side, side)), side, self.profile.fit)
        except UnreadableImageError as error:
            return Failure(str(error))
        except OSError as error:
            return Failure(f"cannot be read ({error.strerror or error})")


def fit_square(image: Image.Image, side: int, fit: Fit) -> np.ndarray:
    """Return a [side, side, 3] uint8 square; the longer side fills it, unless it is squashed.

    Resized by area when shrinking, bicubic when enlarging.
    """
    if fit == "squash":
        return np.asarray(_resized(image, (side, side)))
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    left, top = (side - width) // 2, (side - height) // 2
    pixels = np.asarray(_resized(image, (width, height)))
    margins = ((top, side - height - top), (left, side - width - left), (0, 0))
    if fit == "edge":
        return np.pad(pixels, margins, mode="edge")
    return np.pad(pixels, margins, constant_values=255 if fit == "white" else 0)


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size == size:
        return image
    shrinks = size[0] < image.width and size[1] < image.height
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    return image.resize(size, method)
