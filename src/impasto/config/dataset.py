"""Settings of the pictures; key names are those of sd-scripts' dataset configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from impasto.config.base import Section

Side = Annotated[int, Field(ge=8, le=8192)]


class DatasetConfig(Section):
    """Which pictures are trained on, at what sizes, and with which words."""

    image_dir: Path
    """Folder with the pictures, each with a `.txt` or `.caption` of the same name beside it."""

    recursive: bool = True
    """Also take pictures from sub-folders."""

    resolution: Side | tuple[Side, Side] = 512
    """Training resolution in pixels, `N` or `[width, height]`; with buckets only its area counts.
    Stable Diffusion 1.x knows 512, 2.x 768-v knows 768; more takes memory and time by the area."""

    enable_bucket: bool = True
    """Sort pictures into aspect-ratio buckets; off, all are cropped to exactly `resolution`."""

    min_bucket_reso: Side = 256
    """Shortest side of a bucket in pixels."""

    max_bucket_reso: Side = 1024
    """Longest side of a bucket in pixels."""

    bucket_reso_steps: Annotated[int, Field(ge=8)] = 64
    """Sides of buckets are multiples of this, in pixels; itself a multiple of 8."""

    bucket_no_upscale: bool = False
    """Never enlarge a picture: one that is smaller than its bucket gets a smaller bucket of its
    own. More buckets mean more short batches."""

    bucket_selection: Literal["native", "kohya"] = "native"
    """How a picture's bucket is chosen: `native` keeps the most of the picture; `kohya` is
    sd-scripts' choice, for runs that have to be like earlier ones."""

    bucket_table: Literal["resolution", "novelai"] = "resolution"
    """Which buckets there are: by `resolution` and the limits above, or the 19 of `novelai`, from
    256x1024 to 1024x256 within 512x768 pixels."""

    buckets: tuple[tuple[Side, Side], ...] = ()
    """A table of your own, as `[[512, 768], [768, 512]]`, in place of `bucket_table`."""

    num_repeats: Annotated[int, Field(ge=1)] = 1
    """How often each picture comes in an epoch."""

    caption_dropout_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Chance that a caption is left empty, so that guidance without words is trained too;
    0.1 is usual for large sets, 0 for small ones."""

    cache_dir: Path | None = None
    """Folder for what is derived from the pictures (encoded latents, the scan's index); off means
    `.impasto` inside `image_dir`. It may be deleted at any time."""

    vae_batch_size: Annotated[int, Field(ge=1)] = 4
    """Pictures that the VAE encodes at once; more is faster and takes more memory."""

    @property
    def width_height(self) -> tuple[int, int]:
        """The resolution as (width, height) in pixels."""
        if isinstance(self.resolution, int):
            return self.resolution, self.resolution
        return self.resolution

    @property
    def derived_dir(self) -> Path:
        """Where derived data is kept."""
        return self.cache_dir or self.image_dir / ".impasto"

    @model_validator(mode="after")
    def _sides_fit(self) -> DatasetConfig:
        step = self.bucket_reso_steps
        if step % 8:
            raise ValueError(f"bucket_reso_steps is {step}; expected a multiple of 8")
        if self.enable_bucket and self.min_bucket_reso > self.max_bucket_reso:
            raise ValueError(
                f"min_bucket_reso {self.min_bucket_reso} is above max_bucket_reso "
                f"{self.max_bucket_reso}"
            )
        if self.enable_bucket and self.min_bucket_reso % step:
            raise ValueError(
                f"min_bucket_reso is {self.min_bucket_reso}; expected a multiple of "
                f"bucket_reso_steps ({step})"
            )
        odd = [size for size in self.buckets if any(side % 8 for side in size)]
        if odd:
            raise ValueError(f"buckets has {list(odd[0])}; expected multiples of 8")
        if self.buckets and self.bucket_no_upscale:
            raise ValueError(
                "buckets and bucket_no_upscale contradict each other: the second makes buckets of "
                "its own. Take one of them out"
            )
        if self.bucket_table == "novelai" and (self.buckets or self.bucket_no_upscale):
            raise ValueError(
                "bucket_table novelai stands for its 19 buckets alone: take buckets and "
                "bucket_no_upscale out"
            )
        if not self.enable_bucket and any(side % step for side in self.width_height):
            raise ValueError(
                f"resolution is {self.resolution}; without buckets both sides must be multiples "
                f"of bucket_reso_steps ({step})"
            )
        return self
