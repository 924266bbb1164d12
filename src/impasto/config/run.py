"""The settings of a training run: one frozen tree, written into the run directory as resolved.

The docstring under a field is its help text and its entry in `docs/config.md`. `None` means "off".
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationInfo, model_validator

from impasto.config.base import Section, is_of_begun
from impasto.config.compatibility import conflicts
from impasto.config.dataset import DatasetConfig
from impasto.config.formats import FORMATS
from impasto.config.hypernetwork import DEFAULT_LR, HypernetworkMethod
from impasto.config.locations import Location, WrittenLocation
from impasto.config.method import FullMethod, MethodConfig
from impasto.config.names import FileName, file_name_problem
from impasto.config.objective import LossConfig, NoiseConfig, PlainLoss, TimestepConfig
from impasto.config.optimizer import OptimizerConfig
from impasto.config.output import LoggingConfig, Precision, PreviewConfig, SavingConfig
from impasto.config.renamed import with_present_names
from impasto.config.schedule import ScheduleConfig
from impasto.config.training import TrainingConfig
from impasto.family_keys import FamilyKey

Positive = Annotated[int, Field(ge=1)]


class ModelConfig(Section):
    """The base model to train, and how captions are encoded for it."""

    path: str
    """Model to start from: a `.safetensors` or `.ckpt` file, a Diffusers folder, a Hub id such as
    `owner/name` or `owner/name@revision`, or the directory of a finished run; or the URL of one of
    these in an object store (`s3://`, `gs://`, `hf://`)."""

    vae: str | None = None
    """VAE to use in place of the model's own: a Diffusers folder or id, a VAE file, or a full
    model, or the URL of one in an object store."""

    family: FamilyKey | None = None
    """Model family, in case it cannot be detected from the model's files; one that its tensors
    contradict is refused. Off means to detect it."""

    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What the U-Net predicts, noise (`epsilon`) or velocity (`v_prediction`), in case the model's
    files do not record it or record it wrongly: this takes precedence, with a warning where they
    differ. Off means to detect it."""

    weights: Literal["auto", "plain", "ema"] = "auto"
    """Which weights to load from a file that also has averaged (EMA) ones: `plain`, which train
    better; `ema`, which sample better; or `auto`, the plain ones, and for a Diffusers folder those
    of its main file."""

    variant: FileName | None = None
    """Variant of a Diffusers folder's files to load, such as `fp16`; off means the main files, or
    fp16 if those are missing."""

    clip_skip: Annotated[int, Field(ge=1, le=12)] | None = None
    """Layer of the text encoder to use, counted from the end and followed by the final layer norm:
    1 is the last, 2 the penultimate, with which NovelAI trained. Off means the one recorded in the
    model's file, or else the family's default: the last, which for SD 2.x is OpenCLIP's
    penultimate. SDXL has fixed layers and refuses this."""

    size_conditioning: Literal["original", "target"] = "original"
    """Image size that SDXL is conditioned on. `original`: the size before resizing, and the crop
    offset, so that the model learns how small and cropped images look and avoids drawing them.
    `target`: the training size without a crop, as for a drawn image; for images that were resized
    beforehand, whose sizes no longer indicate how they look."""

    empty_text: Literal["auto", "encoded", "zeros"] = "auto"
    """How SDXL encodes an empty caption (`caption_dropout_rate` makes some) and an empty negative
    prompt of previews. `encoded`: the empty text is encoded, as ComfyUI and sd-scripts do. `zeros`:
    hidden states and pooled text are zeros, as SDXL 1.0 was trained and as A1111 and Forge draw,
    and diffusers if a folder's `force_zeros_for_empty_prompt` is set. The exported model records
    which. `auto`: captions are encoded; previews and the exported model follow the base model."""

    max_tokens: Literal[75, 150, 225] = 75
    """Maximum length of a caption in tokens; a word is one to three, and the rest is cut off. More
    takes slightly more time and memory; with `token_join` a1111, only for long captions."""

    token_join: Literal["a1111", "kohya"] = "a1111"
    """How captions of more than 75 tokens are encoded. `a1111`: in chunks of 75, each with its own
    start and end token, as A1111, Forge and ComfyUI do when drawing. `kohya`: as sd-scripts trains,
    with one start and one end token, always padded to full length."""

    token_split: Literal["comma", "plain"] = "comma"
    """Where captions of more than 75 tokens are split: `comma` splits after the last comma if it is
    among the last 20 tokens, as A1111 does; `plain` splits anywhere."""

    caption_emphasis: Literal["off", "no_norm", "mean"] = "off"
    """Whether brackets in captions mean emphasis, as in `(cat:1.2)` and `[dog]`: `off`, since many
    tags contain brackets; `no_norm` multiplies the hidden states, as sd-scripts does; `mean` also
    restores their mean, as A1111 does."""

    @property
    def caption_lengths(self) -> int:
        """The number of possible caption lengths, in chunks of 75 tokens; 1 if all are padded."""
        return self.max_tokens // 75 if self.token_join == "a1111" else 1


class ValidationConfig(Section):
    """Loss on images that are not trained on, at fixed noise and timesteps."""

    image_dir: Location | None = None
    """Folder of held-out images with captions, or its URL; off means to hold out `split` of the
    dataset."""

    split: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of the dataset's images to hold out if `image_dir` is not set; 0 means none."""

    every_steps: Positive = 100
    """Optimizer steps between validations; the first and the last step are always validated."""

    copies: Literal["near", "bytes"] = "near"
    """Which images count as copies of a held-out image, and are therefore not trained on: `near`
    includes images that look the same, such as one that was resized or saved again (by perceptual
    hash, in datasets of up to 10,000 images); `bytes` only identical files."""

    timesteps: Positive = 4
    """Minimum number of noise levels per image, evenly spread; more is steadier and slower."""

    standard_error: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Standard error that noise and timesteps may leave in the validation loss, as a fraction of
    the loss. The fewer the held-out images, the more noise samples each gets: at 0.05, 4 images get
    7 each and 16 get 4. 0 means `timesteps` samples per image, at the same noise levels for all."""

    training_images: Annotated[int, Field(ge=0)] = 8
    """Number of training images whose loss is measured the same way at each validation: it falls
    below that of held-out images as the model memorizes them. 0 means none."""

    by: tuple[Literal["tag", "dataset", "subset"], ...] = ()
    """Also report the loss of held-out images in groups: by `tag` (separated by commas in
    captions), by `dataset`, or by `subset` (folder). Up to 40 groups of each are shown, those with
    the most images. This takes no further forward passes."""

    by_images: Annotated[int, Field(ge=2)] = 4
    """Minimum number of held-out images in a tag, dataset or subset for its loss to be shown;
    copies count as one."""


class RunConfig(Section):
    """The settings of a training run."""

    output_dir: WrittenLocation
    """Run directory, which must not exist yet. Settings, metrics, training states, samples and the
    exported model are written there. It may be a URL (`s3://`, `gs://`): the run is then trained in
    a local folder, and each file is uploaded once it is complete."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Seed of everything random; the same seed and settings give the same weights, on a GPU to the
    last bit with `training.deterministic`."""

    model: ModelConfig
    dataset: DatasetConfig
    method: MethodConfig = FullMethod()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    loss: LossConfig = PlainLoss()
    noise: NoiseConfig = NoiseConfig()
    timesteps: TimestepConfig = TimestepConfig()
    training: TrainingConfig
    validation: ValidationConfig = ValidationConfig()
    previews: PreviewConfig = PreviewConfig()
    saving: SavingConfig = SavingConfig()
    logging: LoggingConfig = LoggingConfig()

    _is_begun: bool = PrivateAttr(default=False)

    @model_validator(mode="before")
    @classmethod
    def _under_present_names(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        values, _ = with_present_names(values)
        method, optimizer = values.get("method"), values.get("optimizer", {})
        is_hypernetwork = isinstance(method, dict) and method.get("kind") == "hypernetwork"
        if is_hypernetwork and isinstance(optimizer, dict) and "lr" not in optimizer:
            values["optimizer"] = {
                "lr": DEFAULT_LR,
                **optimizer,
            }  # hypernetworks have their own default
        return values

    @model_validator(mode="after")
    def _model_has_a_name(self) -> RunConfig:
        fault = file_name_problem(self.export_name)
        if fault is not None:
            raise ValueError(
                f"the exported model would be named {self.export_name[:60]!r} after output_dir, "
                f"which {fault}. Set saving.name, or choose another output_dir"
            )
        return self

    @model_validator(mode="after")
    def _goes_together(self, info: ValidationInfo) -> RunConfig:
        self._is_begun = is_of_begun(info)
        sentence = next(conflicts(self), None)
        if sentence is not None:
            raise ValueError(sentence)
        return self

    @property
    def is_begun(self) -> bool:
        """Whether the settings are those of a run that was started before."""
        return self._is_begun

    @property
    def batch_sizes(self) -> dict[int, int]:
        """Images per forward pass and process, by the number of the dataset.

        1 if `auto` has not been resolved yet.
        """
        asked = self.training.batch_size
        usual = 1 if asked == "auto" else asked
        return dict(enumerate(entry.batch_size or usual for entry in self.dataset.entries))

    @property
    def trains_text_encoder(self) -> bool:
        """Whether the text encoder is trained, at least for a part of the run."""
        return isinstance(self.method, FullMethod) and self.method.train_text_encoder

    @property
    def holds_out(self) -> bool:
        """Whether there are images to validate on."""
        splits = (entry.validation_split for entry in self.dataset.entries)
        validation = self.validation
        return validation.image_dir is not None or bool(validation.split) or any(splits)

    @property
    def keeps_best(self) -> bool:
        """Whether the model with the lowest validation loss is kept."""
        return self.saving.best_model and self.holds_out

    @property
    def hypernetwork(self) -> HypernetworkMethod | None:
        """The settings of the hypernetwork that is trained; None if the model itself is."""
        return self.method if isinstance(self.method, HypernetworkMethod) else None

    @property
    def export_form(self) -> str:
        """The file format of the trained model or hypernetwork."""
        return self.saving.format or FORMATS[self.method.kind][0]

    @property
    def export_precision(self) -> Precision:
        """The precision of the trained weights in their file."""
        return self.saving.export_dtype or ("fp16" if self.method.kind == "full" else "fp32")

    @property
    def export_name(self) -> str:
        """The name of the exported model."""
        return self.saving.name or Path(os.path.abspath(self.output_dir)).name  # noqa: PTH100 - links stay
