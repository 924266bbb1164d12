"""Settings of the images; key names are those of sd-scripts' dataset configuration.

Three levels: a run's `[dataset]` (sd-scripts' `[general]`), `[[dataset.datasets]]`, and
`[[dataset.datasets.subsets]]`. A key that a lower level does not give is taken from the one above.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, model_validator

from impasto import files
from impasto.config.base import is_of_begun
from impasto.config.bucket_limits import require_around, require_steps
from impasto.config.levels import inherit_settings
from impasto.config.locations import Location, WrittenLocation
from impasto.config.regularisation import require_balance, require_weighted
from impasto.config.subset_keys import Count, SubsetKeys
from impasto.member_paths import folder_of
from impasto.remote_paths import is_remote, local_folder_of

Side = Annotated[int, Field(ge=8, le=8192)]


class DatasetKeys(SubsetKeys):
    """Sizes and buckets; may be given for all datasets or for one."""

    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Images per forward pass and process for this dataset; off means `training.batch_size`."""

    resolution: Side | tuple[Side, Side] = 512
    """Training resolution in pixels, `N` or `[width, height]`; with buckets only its area counts.
    Stable Diffusion 1.x knows 512, 2.x 768-v knows 768; more takes memory and time by the area."""

    enable_bucket: bool = True
    """Sort images into aspect-ratio buckets; off, all are cropped to exactly `resolution`."""

    min_bucket_reso: Side = 256
    """Shortest side of a bucket in pixels; a multiple of `bucket_reso_steps`, at most the
    resolution."""

    max_bucket_reso: Side = 1024
    """Longest side of a bucket in pixels; a multiple of `bucket_reso_steps`, at least the
    resolution."""

    bucket_reso_steps: Annotated[int, Field(ge=8)] = 64
    """Sides of buckets are multiples of this, in pixels; itself a multiple of 8."""

    bucket_no_upscale: bool = False
    """Never enlarge an image: one that is smaller than its bucket gets a smaller bucket of its
    own. More buckets mean more short batches. Sides go beyond the limits above only where keeping
    them would crop more than sd-scripts, which ignores them, does."""

    bucket_selection: Literal["native", "kohya"] = "native"
    """How an image's bucket is chosen: `native` keeps the most of the image; `kohya` is
    sd-scripts' choice, for runs that have to be like earlier ones."""

    bucket_table: Literal["resolution", "novelai", "metadata"] = "resolution"
    """Which buckets there are: by `resolution` and the limits above; or the 19 of `novelai`, from
    256x1024 to 1024x256 within 512x768 pixels; or, where each entry of the `metadata` has one, its
    `train_resolution`, as in sd-scripts up to 0.9.1."""

    buckets: tuple[tuple[Side, Side], ...] = ()
    """A table of your own, as `[[512, 768], [768, 512]]`, in place of `bucket_table`."""

    validation_split: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the images to hold out; off means `validation.split`."""

    validation_seed: Count | None = None
    """Seed of the choice of images that are held out; off means the run's."""

    prior_loss_weight: Annotated[float, Field(ge=0)] = 1.0
    """What the loss of regularisation images (`is_reg`) is multiplied by; 1 counts them as much as
    the images that are trained on."""

    @property
    def width_height(self) -> tuple[int, int]:
        """The resolution as (width, height) in pixels."""
        if isinstance(self.resolution, int):
            return self.resolution, self.resolution
        return self.resolution

    @model_validator(mode="after")
    def _sides_fit(self, info: ValidationInfo) -> DatasetKeys:
        step = self.bucket_reso_steps
        if step % 8:
            raise ValueError(f"bucket_reso_steps is {step}; expected a multiple of 8")
        if self.enable_bucket:
            require_steps(self.min_bucket_reso, self.max_bucket_reso, step)
        self._require_one_table(begun=is_of_begun(info))
        if not self.enable_bucket and any(side % 8 for side in self.width_height):
            raise ValueError(
                f"resolution is {self.resolution}; without buckets both sides must be multiples "
                f"of 8"
            )
        return self

    def require_bounds(self) -> None:
        """Make sure that the limits of bucket sides fit the resolution.

        Checked where images are, since a level above may leave the resolution to those below.

        Raises:
            ValueError: The shortest side is above the resolution, or the longest below it.
        """
        if self.enable_bucket and not self.buckets and self.bucket_table != "novelai":
            require_around(self.min_bucket_reso, self.max_bucket_reso, self.width_height)

    def _require_one_table(self, *, begun: bool) -> None:
        odd = [size for size in self.buckets if any(side % 8 for side in size)]
        if odd:
            raise ValueError(f"buckets has {list(odd[0])}; expected multiples of 8")
        if self.buckets and self.bucket_no_upscale:
            raise ValueError(
                "buckets and bucket_no_upscale contradict each other: the second makes buckets of "
                "its own. Take one of them out"
            )
        if self.buckets and self.bucket_table == "metadata" and not begun:
            raise ValueError(
                "buckets and bucket_table metadata contradict each other: both say which buckets "
                "there are. Take buckets out, or set bucket_table to resolution"
            )
        if self.bucket_table == "novelai" and (self.buckets or self.bucket_no_upscale):
            raise ValueError(
                "bucket_table novelai stands for its 19 buckets alone: take buckets and "
                "bucket_no_upscale out"
            )


class SubsetConfig(SubsetKeys):
    """Some of the images of a dataset."""

    image_dir: Location | None = None
    """Folder with the images, each with a `.txt` or `.caption` of the same name beside it; with
    `metadata_file`, the folder that its names are relative to. Or a folder of tar shards, of
    Parquet or of Arrow tables, or such files by name, as in `shards/cats-*.tar`. Or the URL of any
    of them in an object store: `s3://bucket/cats`."""

    metadata_file: Location | None = None
    """JSON or JSONL file that names the images and has their words, or its URL. Give this,
    `image_dir`, or both."""

    mask_dir: Path | None = None
    """Folder with an image of the same name for each, white where it counts in the loss, black
    where it does not; an image without one counts everywhere."""

    loss_weight: Annotated[float, Field(gt=0)] = 1.0
    """What the loss of each of its images is multiplied by, in the mean over all images of a step;
    `num_repeats` says how often they are shown. Of regularisation images it multiplies
    `prior_loss_weight`."""

    is_reg: bool = False
    """Regularisation images, which keep the model's idea of the class: in each epoch they come as
    often as the dataset's other images together, and their loss is multiplied by
    `prior_loss_weight`. They are never held out."""

    @model_validator(mode="after")
    def _names_images(self) -> SubsetConfig:
        if self.image_dir is None and self.metadata_file is None:
            raise ValueError("give image_dir, metadata_file, or both")
        return self


class DatasetEntry(DatasetKeys):
    """A dataset with sizes and a batch size of its own."""

    subsets: Annotated[tuple[SubsetConfig, ...], Field(min_length=1)]
    """Where its images are."""

    @model_validator(mode="after")
    def _each_once(self) -> DatasetEntry:
        self.require_bounds()
        for number, subset in enumerate(self.subsets):
            if subset in self.subsets[:number]:
                location = subset.metadata_file or subset.image_dir
                raise ValueError(
                    f"subset {number + 1} repeats an earlier one ({location}). Take it out; "
                    f"num_repeats shows images more often"
                )
        require_balance(self.subsets)
        return self


class DatasetConfig(DatasetKeys):
    """Which images are trained on, at what sizes, and with which words."""

    image_dir: Location | None = None
    """Folder with the images, each with a `.txt` or `.caption` of the same name beside it; with
    `metadata_file`, the folder that its names are relative to. Or a folder of tar shards, of
    Parquet or of Arrow tables, or such files by name, as in `shards/cats-*.tar`. Or the URL of any
    of them in an object store: `s3://bucket/cats`."""

    metadata_file: Location | None = None
    """JSON or JSONL file that names the images and has their words, or its URL."""

    mask_dir: Path | None = None
    """Folder with an image of the same name for each, white where it counts in the loss, black
    where it does not; an image without one counts everywhere."""

    config: Path | None = Field(default=None, exclude=True)
    """A dataset configuration of sd-scripts, TOML or JSON, in place of the above. What it does not
    say is as in sd-scripts: buckets are off, and are chosen its way, and its latents are used."""

    train_data_dir: Path | None = Field(default=None, exclude=True)
    """Folder with folders named `N_class`, as in `10_sks dog`, in place of the above: each is a
    subset with N repeats and those `class_tokens`."""

    reg_data_dir: Path | None = Field(default=None, exclude=True)
    """The same with regularisation images (`is_reg`), beside `train_data_dir`."""

    general: DatasetKeys | None = Field(default=None, exclude=True)
    """sd-scripts' name for what holds for all datasets; the same as giving it in `[dataset]`."""

    datasets: tuple[DatasetEntry, ...] = ()
    """Several datasets, each with `subsets`, as in sd-scripts: `[[dataset.datasets]]` and
    `[[dataset.datasets.subsets]]`."""

    cache_dir: WrittenLocation | None = None
    """Folder for what is derived from the images (encoded latents, the scan's index), or the URL
    of a place in an object store; off means `.impasto` in the first folder of images, and for
    those of a store a folder of this machine. It may be deleted at any time."""

    vae_batch_size: Annotated[int, Field(ge=1)] = 4
    """Images that the VAE encodes at once; more takes more memory and is hardly faster. Unless it
    is set, a run encodes fewer at once where this many do not fit."""

    vae_tiling: bool = False
    """Encode, and decode for previews, images of more than 512 pixels a side in overlapping tiles
    of 512: takes the memory of one tile. Latents differ a little from those of whole images."""

    vae_precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of encoding. Half is faster on a GPU; what it makes NaN or infinite is encoded
    again in fp32."""

    decode_workers: Count | None = None
    """Processes that decode images while others are encoded, 0 for none; off means one for each
    processor, up to 8, and none for a few images."""

    executor: Literal["local", "ray"] = "local"
    """What prepares the images: `local`, threads and processes of this machine; or `ray`, Ray Data
    (the extra `ray`), on this machine or a cluster. Both give the same results."""

    ray_address: str | None = None
    """Address of a Ray cluster, as `192.168.1.5:6379`, or `auto` for the one of this machine; off
    means the environment's `RAY_ADDRESS`, or else that Ray is started on this machine and ended."""

    on_error: Literal["skip", "stop"] = "skip"
    """What an image that cannot be used does: it is skipped and reported, or ends the run before
    it starts."""

    batch_order: Literal["shuffled", "proportional"] = "shuffled"
    """`shuffled` mixes all batches of an epoch. `proportional` gives each process its share of each
    bucket, and lets it draw buckets by what is left in them, as NovelAI did."""

    @property
    def entries(self) -> tuple[DatasetEntry, ...]:
        """The datasets; one with one subset where the keys are given in `[dataset]` itself."""
        if self.datasets:
            return self.datasets
        names = SubsetConfig.model_fields.keys() & DatasetConfig.model_fields.keys()
        own = {name: getattr(self, name) for name in names}
        return (_entry_of(self, SubsetConfig.model_construct(**own)),)

    @property
    def derived_dir(self) -> Path:
        """The folder that data derived from the images is kept in."""
        first = self.entries[0].subsets[0]
        folder = folder_of(first.image_dir or (first.metadata_file or Path()).parent)
        if self.cache_dir is None and is_remote(folder):
            return local_folder_of(folder, "derived")
        return self.cache_dir or folder / files.DERIVED_DIR

    @property
    def machine_dir(self) -> Path:
        """The folder of this machine for what other machines have no use for."""
        own = self.derived_dir
        return local_folder_of(own, "derived") if is_remote(own) else own

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return inherit_settings(values, DatasetKeys.model_fields, SubsetKeys.model_fields)

    @model_validator(mode="after")
    def _names_images(self, info: ValidationInfo) -> DatasetConfig:
        images = self.image_dir is not None or self.metadata_file is not None
        named = ["image_dir", "metadata_file", *([] if is_of_begun(info) else ["mask_dir"])]
        own = [name for name in named if getattr(self, name) is not None]
        if self.datasets and own:
            raise ValueError(
                f"{own[0]} and datasets contradict each other: put {own[0]} into a subset"
            )
        if not self.datasets and not images:
            raise ValueError("give image_dir, metadata_file, datasets, train_data_dir, or config")
        if not self.datasets:
            self.require_bounds()
        self.require_executor()
        if not any(subset.num_repeats for entry in self.entries for subset in entry.subsets):
            raise ValueError("num_repeats is 0 everywhere, so nothing is left")
        require_weighted(self.entries)
        return self

    def require_executor(self) -> None:
        """Make sure that the settings of the executor fit together.

        Raises:
            ValueError: It does not.
        """
        if self.ray_address == "":
            raise ValueError("ray_address is empty; expected host:port, auto, or nothing at all")
        if self.ray_address is not None and self.executor != "ray":
            raise ValueError("ray_address has no effect: set executor to ray, or take it out")
        if self.executor == "ray" and self.decode_workers == 0:
            raise ValueError(
                "decode_workers is 0, and Ray decodes in processes only; set it to 1 or more, or "
                "take it out"
            )


def _entry_of(keys: DatasetKeys, subset: SubsetConfig) -> DatasetEntry:
    own = {name: getattr(keys, name) for name in DatasetKeys.model_fields}
    return DatasetEntry.model_construct(**own, subsets=(subset,))
