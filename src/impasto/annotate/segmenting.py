"""Masks from segmentation models of transformers: semantic, instance, panoptic, and mattes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter

from impasto.annotate.captioners import require_data_only
from impasto.errors import ConfigError, MissingDependencyError, ModelError
from impasto.invocation import install_packages

LONGEST = 1024
"""Maximum longer side, in pixels, of an image that a model is given; it shrinks it further
itself."""

Kind = Literal["semantic", "instance", "panoptic"]


@dataclass(frozen=True)
class KnownSegmenter:
    """A segmentation model on the Hub.

    Attributes:
        hub_id: `owner/name`.
        kind: The kind of segmentation it was trained for; with another it finds hardly anything.
    """

    hub_id: str
    kind: Kind | None = None


SEGMENTERS: Mapping[str, KnownSegmenter] = {
    "clothes": KnownSegmenter("mattmdjaga/segformer_b2_clothes", "semantic"),
    "coco": KnownSegmenter("facebook/mask2former-swin-small-coco-instance", "instance"),
    "coco-panoptic": KnownSegmenter("facebook/mask2former-swin-large-coco-panoptic", "panoptic"),
}
"""Short name -> model; Mask2Former models need SciPy, which transformers requires for them."""


@dataclass(frozen=True)
class MaskShape:
    """How a segmentation becomes a mask.

    Attributes:
        grow: Pixels of the image by which the area grows on all sides; negative ones shrink it.
        blur: Radius of the soft edge, in pixels of the image.
        invert: Whether to select everything else instead.
        rest: Loss weight outside of the selected area, from 0 to 1.
    """

    grow: int = 0
    blur: float = 0.0
    invert: bool = False
    rest: float = 0.0

    def applied(self, found: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Return the mask to write.

        Args:
            found: White where something was found, grey 8-bit, at the size the model was given.
            size: (width, height) of the image and of the mask.
        """
        scale = max(found.size) / max(size)
        steps = round(abs(self.grow) * scale)
        change = ImageFilter.MaxFilter(3) if self.grow > 0 else ImageFilter.MinFilter(3)
        for _ in range(steps):
            found = found.filter(change)
        if self.blur:
            found = found.filter(ImageFilter.GaussianBlur(self.blur * scale))
        whole = found.resize(size, Image.Resampling.BILINEAR)
        if self.invert:
            whole = ImageChops.invert(whole)
        least = round(255 * self.rest)
        return whole.point([max(least, value) for value in range(256)]) if least else whole


@dataclass
class Segmenter:
    """A loaded segmentation model.

    Attributes:
        pipeline: transformers' `image-segmentation`.
        labels: The labels that it distinguishes.
        kind: The kind of segmentation; None for the first supported of panoptic, instance,
            semantic.
        threshold: Minimum probability of an object, for models that find objects.
    """

    pipeline: Any
    labels: tuple[str, ...]
    kind: Kind | None = None
    threshold: float = 0.5

    @classmethod
    def load(cls, name: str, device: torch.device, **options: Any) -> Segmenter:
        """Load from a folder, or by a short name or Hub id, in float32.

        Raises:
            ConfigError: There is no such name.
            MissingDependencyError: transformers lacks a package that this model needs.
            ModelError: It is missing, damaged, or not a segmentation model.
        """
        known = locate_segmenter(name)
        source = known.hub_id
        require_data_only(Path(source))
        from transformers import pipeline
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            made = pipeline(
                "image-segmentation",
                model=source,
                device=device,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        except ImportError as error:
            raise MissingDependencyError(
                f"The model {source} needs a package that is not installed "
                f"({_first_line(error)}). Packages are installed with: {install_packages('NAME')}"
            ) from error
        except (OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
            raise ModelError(
                f"The model {source} cannot be loaded ({_first_line(error)}). Give the folder of a "
                f"model that transformers knows as image-segmentation, with its weights as "
                f".safetensors, or its Hub id."
            ) from error
        names = made.model.config.id2label
        labels = tuple(dict.fromkeys(str(names[number]) for number in sorted(names)))
        own = {key: value for key, value in options.items() if value is not None}
        return cls(made, labels, **{"kind": known.kind, **own})

    def chosen(self, wanted: Collection[str]) -> frozenset[str]:
        """Return the requested labels in the model's spelling; letter case is ignored.

        Raises:
            ConfigError: There is no such label, or none was requested and there are several.
        """
        known = {label.casefold(): label for label in self.labels}
        listed = ", ".join(self.labels[:40]) + (" ..." if len(self.labels) > 40 else "")
        if not wanted and len(known) > 1:
            raise ConfigError(
                f"This model has {len(self.labels)} labels. Choose with --label which of "
                f"them count in the loss: {listed}."
            )
        for label in wanted:
            if label.casefold() not in known:
                raise ConfigError(f"This model has no label {label!r}. It has: {listed}.")
        return frozenset(known[label.casefold()] for label in wanted) or frozenset(self.labels)

    def find(self, image: Image.Image, labels: Collection[str]) -> Image.Image | None:
        """Return a mask that is white where something of the labels is; None if nothing is found.

        Args:
            image: RGB, upright.
            labels: A subset of `self.labels`.

        Returns:
            Grey, 8 bits, of the size of the image, or of `LONGEST` if that is less: the output of a
                semantic model at 24 megapixels would take gigabytes.
        """
        seen = image.copy()
        seen.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        with torch.no_grad():
            found = (
                [(self.labels[0], self._matte(seen))]
                if len(self.labels) == 1 and not self._finds_objects
                else self._segments(seen)
            )
        union = Image.new("L", seen.size)
        for label, mask in found:
            if label in labels:
                union = ImageChops.lighter(union, mask)
        return union if union.getextrema()[1] else None

    @property
    def _finds_objects(self) -> bool:
        processor = self.pipeline.image_processor
        ways = ("post_process_panoptic_segmentation", "post_process_instance_segmentation")
        return self.kind != "semantic" and any(hasattr(processor, way) for way in ways)

    def _segments(self, image: Image.Image) -> list[tuple[str, Image.Image]]:
        options = {"threshold": self.threshold} if self._finds_objects else {}
        segments = self.pipeline(image, subtask=self.kind, **options)
        return [(str(segment["label"]), segment["mask"].convert("L")) for segment in segments]

    def _matte(self, image: Image.Image) -> Image.Image:
        """Return the probability of a single label at each pixel; argmax would select everything.

        The logits of one channel are those of a sigmoid.
        """
        inputs = self.pipeline.preprocess(image)
        logits = self.pipeline.forward(inputs)["logits"].float()
        wide = torch.nn.functional.interpolate(
            logits[:, :1], size=(image.height, image.width), mode="bilinear", align_corners=False
        )
        return Image.fromarray((wide[0, 0].sigmoid().numpy() * 255 + 0.5).astype(np.uint8))


def locate_segmenter(name: str) -> KnownSegmenter:
    """Find a segmentation model: a folder, or its id on the Hub.

    Raises:
        ConfigError: There is no such name.
    """
    if name in SEGMENTERS and not Path(name).exists():
        return SEGMENTERS[name]
    if not Path(name).exists() and (name.count("/") != 1 or Path(name).suffix):
        raise ConfigError(
            f"There is no model {name!r}: neither a folder that exists, nor a Hub id (owner/name), "
            f"nor one of the short names {', '.join(SEGMENTERS)}."
        )
    return KnownSegmenter(name)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
