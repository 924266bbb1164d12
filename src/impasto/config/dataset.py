"""Settings of the dataset; key names are those of sd-scripts' dataset configuration.

Three levels: a run's `[dataset]` (sd-scripts' `[general]`), `[[dataset.datasets]]`, and
`[[dataset.datasets.subsets]]`. A level inherits each key that it does not set from the level above.
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
    """Sizes and buckets; may be set for all datasets or for one."""

    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Images per forward pass and process for this dataset; off means `training.batch_size`."""

    resolution: Side | tuple[Side, Side] = 512
    """Training resolution in pixels, `N` or `[width, height]`; with buckets only its area
    counts. Stable Diffusion 1.x was trained at 512, 2.x 768-v at 768; memory and time grow with
    the area."""

    enable_bucket: bool = True
    """Sort images into aspect-ratio buckets; off, all images are cropped to exactly
    `resolution`."""

    min_bucket_reso: Side = 256
    """Shortest side of a bucket in pixels: a multiple of `bucket_reso_steps`, at most the shorter
    side of `resolution`."""

    max_bucket_reso: Side = 1024
    """Longest side of a bucket in pixels: a multiple of `bucket_reso_steps`, at least the longer
    side of `resolution`."""

    bucket_reso_steps: Annotated[int, Field(ge=8)] = 64
    """Step between bucket sides in pixels: each side is a multiple of it. Must itself be a multiple
    of 8."""

    bucket_no_upscale: bool = False
    """Never enlarge an image: one that is smaller than its bucket gets a smaller bucket to itself.
    More buckets mean more incomplete batches. Sides exceed the limits above only where respecting
    them would crop more than sd-scripts does, which ignores them."""

    bucket_selection: Literal["native", "kohya"] = "native"
    """How the bucket of an image is chosen: `native` keeps as much of the image as possible;
    `kohya` chooses as sd-scripts does, for runs that must match earlier ones."""

    bucket_table: Literal["resolution", "novelai", "metadata"] = "resolution"
    """Which buckets exist: `resolution` derives them from the resolution and the limits above;
    `novelai` is NovelAI's table of 19, from 256x1024 to 1024x256, of at most 512x768 pixels in
    area; `metadata` uses the `train_resolution` of each entry of the `metadata_file` if every entry
    has one, as sd-scripts did up to 0.9.1."""

    buckets: tuple[tuple[Side, Side], ...] = ()
    """Your own list of buckets, such as `[[512, 768], [768, 512]]`, in place of `bucket_table`."""

    validation_split: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Fraction of the images to hold out for validation; off means `validation.split`."""

    validation_seed: Count | None = None
    """Seed that chooses the held-out images; off means the run's `seed`."""

    prior_loss_weight: Annotated[float, Field(ge=0)] = 1.0
    """Factor on the loss of regularisation images (`is_reg`); 1 counts them as much as the training
    images."""

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
        """Check that the limits of bucket sides fit the resolution.

        Checked only at the level that has images, since a higher level may leave the resolution to
        lower ones.

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
                "its own. Remove one of them"
            )
        if self.buckets and self.bucket_table == "metadata" and not begun:
            raise ValueError(
                "buckets and bucket_table metadata contradict each other: both say which buckets "
                "exist. Remove buckets, or set bucket_table to resolution"
            )
        if self.bucket_table == "novelai" and (self.buckets or self.bucket_no_upscale):
            raise ValueError(
                "bucket_table novelai has exactly 19 buckets: remove buckets and bucket_no_upscale"
            )


class SubsetConfig(SubsetKeys):
    """A group of images within a dataset, such as one folder."""

    image_dir: Location | None = None
    """Folder of images, each with its caption in a `.txt` or `.caption` file of the same name; with
    `metadata_file`, the folder that its file names are relative to. Also a folder of tar shards,
    Parquet or Arrow tables, or such files by name, such as `shards/cats-*.tar`; or the URL of any
    of these in an object store: `s3://bucket/cats`."""

    metadata_file: Location | None = None
    """JSON or JSONL file that lists the images and their captions, or its URL. Set this,
    `image_dir`, or both."""

    mask_dir: Path | None = None
    """Folder of loss masks, one per image and with the same name: white pixels count in the loss,
    black ones do not. An image without a mask counts everywhere."""

    loss_weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the loss of each image of the subset, in the mean over all images of a step;
    `num_repeats` sets how often they are shown. For regularisation images it multiplies
    `prior_loss_weight`."""

    is_reg: bool = False
    """Treat the images as regularisation images, which preserve the model's idea of the class: in
    each epoch they are shown as often as all other images of the dataset together, and their loss
    is multiplied by `prior_loss_weight`. They are never held out."""

    @model_validator(mode="after")
    def _names_images(self) -> SubsetConfig:
        if self.image_dir is None and self.metadata_file is None:
            raise ValueError("give image_dir, metadata_file, or both")
        return self


class DatasetEntry(DatasetKeys):
    """A dataset with its own sizes and batch size."""

    subsets: Annotated[tuple[SubsetConfig, ...], Field(min_length=1)]
    """The subsets, each of which names its images."""

    @model_validator(mode="after")
    def _each_once(self) -> DatasetEntry:
        self.require_bounds()
        for number, subset in enumerate(self.subsets):
            if subset in self.subsets[:number]:
                location = subset.metadata_file or subset.image_dir
                raise ValueError(
                    f"subset {number + 1} repeats an earlier one ({location}). Remove it; "
                    f"num_repeats shows images more often"
                )
        require_balance(self.subsets)
        return self


class DatasetConfig(DatasetKeys):
    """Which images are trained on, at which sizes, and with which captions."""

    image_dir: Location | None = None
    """Folder of images, each with its caption in a `.txt` or `.caption` file of the same name; with
    `metadata_file`, the folder that its file names are relative to. Also a folder of tar shards,
    Parquet or Arrow tables, or such files by name, such as `shards/cats-*.tar`; or the URL of any
    of these in an object store: `s3://bucket/cats`."""

    metadata_file: Location | None = None
    """JSON or JSONL file that lists the images and their captions, or its URL."""

    mask_dir: Path | None = None
    """Folder of loss masks, one per image and with the same name: white pixels count in the loss,
    black ones do not. An image without a mask counts everywhere."""

    config: Path | None = Field(default=None, exclude=True)
    """A dataset configuration of sd-scripts, TOML or JSON, in place of the settings above. Where it
    is silent, sd-scripts' defaults hold: no buckets, bucket selection `kohya`, and latents cached
    by sd-scripts are used."""

    train_data_dir: Path | None = Field(default=None, exclude=True)
    """Folder of folders named `N_class`, such as `10_sks dog`, in place of the settings above: each
    is a subset with N repeats and that class as its `class_tokens`."""

    reg_data_dir: Path | None = Field(default=None, exclude=True)
    """Folder of `N_class` folders of regularisation images (`is_reg`), beside `train_data_dir`."""

    general: DatasetKeys | None = Field(default=None, exclude=True)
    """Settings shared by all datasets, under sd-scripts' name for them; the same as setting them in
    `[dataset]`."""

    datasets: tuple[DatasetEntry, ...] = ()
    """Several datasets, each with `subsets`, as in sd-scripts: `[[dataset.datasets]]` and
    `[[dataset.datasets.subsets]]`."""

    cache_dir: WrittenLocation | None = None
    """Folder for data derived from the images (encoded latents, the index of the scan), or a URL in
    an object store. Off means `.impasto` in the first image folder, or a local folder if that is in
    an object store. It may be deleted at any time."""

    vae_batch_size: Annotated[int, Field(ge=1)] = 4
    """Images that the VAE encodes at once; more takes more memory and is hardly faster. Unless you
    set it, a run encodes fewer at once if this many do not fit."""

    vae_tiling: bool = False
    """Encode images with a side of more than 512 pixels, and decode such previews, in overlapping
    tiles of 512 pixels, in the memory of one tile. The latents differ slightly from those of whole
    images."""

    vae_precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of encoding. fp16 and bf16 are faster on a GPU; an image that encodes to NaN or
    infinity is encoded again in fp32."""

    decode_workers: Count | None = None
    """Processes that decode images while others are encoded; 0 means none. Off means one per CPU
    core, up to 8, and none if there are few images."""

    executor: Literal["local", "ray"] = "local"
    """What prepares the images: `local` uses threads and processes of this machine; `ray` uses Ray
    Data (the extra `ray`), on this machine or a cluster. Both give the same results."""

    ray_address: str | None = None
    """Address of a Ray cluster, such as `192.168.1.5:6379`, or `auto` for the one running on this
    machine. Off means the environment variable `RAY_ADDRESS`, or, if that is not set, to start Ray
    on this machine and stop it afterwards."""

    on_error: Literal["skip", "stop"] = "skip"
    """What to do with an image that cannot be used: `skip` it and report it, or `stop` the run
    before it starts."""

    batch_order: Literal["shuffled", "proportional"] = "shuffled"
    """Order of the batches: `shuffled` mixes all batches of an epoch. `proportional` gives each
    process its portion of each bucket and lets it draw buckets in proportion to the images left in
    them, as NovelAI did."""

    @property
    def entries(self) -> tuple[DatasetEntry, ...]:
        """The datasets; a single one with one subset if the keys are set in `[dataset]` itself."""
        if self.datasets:
            return self.datasets
        names = SubsetConfig.model_fields.keys() & DatasetConfig.model_fields.keys()
        own = {name: getattr(self, name) for name in names}
        return (_entry_of(self, SubsetConfig.model_construct(**own)),)

    @property
    def derived_dir(self) -> Path:
        """The folder for data derived from the images; may be a URL."""
        first = self.entries[0].subsets[0]
        folder = folder_of(first.image_dir or (first.metadata_file or Path()).parent)
        if self.cache_dir is None and is_remote(folder):
            return local_folder_of(folder, "derived")
        return self.cache_dir or folder / files.DERIVED_DIR

    @property
    def machine_dir(self) -> Path:
        """The local folder for derived data that other machines have no use for."""
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
            raise ValueError("num_repeats is 0 in every subset, so no images are left")
        require_weighted(self.entries)
        return self

    def require_executor(self) -> None:
        """Check that the settings of the executor fit together.

        Raises:
            ValueError: They do not.
        """
        if self.ray_address == "":
            raise ValueError("ray_address is empty; expected host:port, auto, or nothing at all")
        if self.ray_address is not None and self.executor != "ray":
            raise ValueError("ray_address has no effect: set executor to ray, or remove it")
        if self.executor == "ray" and self.decode_workers == 0:
            raise ValueError(
                "decode_workers is 0, and Ray decodes in processes only; set it to 1 or more, or "
                "remove it"
            )


def _entry_of(keys: DatasetKeys, subset: SubsetConfig) -> DatasetEntry:
    own = {name: getattr(keys, name) for name in DatasetKeys.model_fields}
    return DatasetEntry.model_construct(**own, subsets=(subset,))
