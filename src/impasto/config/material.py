"""What there is to begin a run with: a model, images, a card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Material:
    """What settings for a goal depend on.

    Attributes:
        model: The base model's path or id.
        family: What the model is, in words.
        resolution: Pixels a side that are trained at.
        generation: What its learning rate goes by, as in `SD 2.x`.
        predicts_noise: Whether it predicts noise, and not velocity.
        takes_clip_skip: Whether models of its family were trained on other layers.
        image_dir: The folder of images.
        images: How many there are.
        captions: Their captions, in order, empty ones too.
        output_dir: The run directory to be.
        vram: GiB that the run may take; None means what is free.
        clip_skip: The layer of the text encoder that was asked for.
        mask_dir: The folder of their masks; empty where there is none.
        masked: How many images have a mask there.
        native: Pixels a side that the model was trained at; None where they are `resolution`.
        free_gib: GiB that are free on the GPU of this machine; None without one.
        half: The 16-bit type that it computes, `bf16` or `fp16`; None where that is not known.
    """

    model: str
    family: str
    resolution: int
    generation: str
    predicts_noise: bool
    takes_clip_skip: bool
    image_dir: str
    images: int
    captions: Sequence[str]
    output_dir: str
    vram: int | None = None
    clip_skip: int | None = None
    mask_dir: str = ""
    masked: int = 0
    native: int | None = None
    free_gib: float | None = None
    half: str | None = None
