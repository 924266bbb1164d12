"""The inputs from which a run is set up: a model, images, a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Material:
    """The facts on which settings for a goal depend.

    Attributes:
        model: The base model's path or id.
        family: The name of the model's family.
        resolution: Training resolution: the side in pixels.
        generation: The generation of models that sets its learning rate, such as `SD 2.x`.
        predicts_noise: Whether it predicts noise, not velocity.
        takes_clip_skip: Whether models of its family were trained on other layers.
        image_dir: The folder of images.
        images: The number of images.
        captions: Their captions, in order, including empty ones.
        output_dir: The future run directory.
        vram: GiB that the run may use; None means all that is free.
        clip_skip: The requested layer of the text encoder.
        mask_dir: The folder of masks; empty if there is none.
        masked: The number of images that have a mask there.
        native: The side in pixels at which the model was trained; None if that is `resolution`.
        free_gib: GiB free on this machine's GPU; None without a GPU.
        half: The GPU's 16-bit type of computation, `bf16` or `fp16`; None if unknown.
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
