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
    """Which base model is trained, and how its captions are read."""

    path: str
    """The model to start from: a `.safetensors` or `.ckpt` file, a Diffusers folder, a Hub id such
    as `owner/name` or `owner/name@revision`, or the directory of a finished run; or the URL of one
    of these in an object store (`s3://`, `gs://`, `hf://`)."""

    vae: str | None = None
    """Another VAE than the model's: a Diffusers folder or id, a VAE file, or a full model, or the
    URL of one in an object store."""

    family: FamilyKey | None = None
    """What the model is, where its files do not tell; one that its tensors contradict is refused.
    Off means to detect it."""

    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What its U-Net predicts, where its files do not tell or are wrong: it counts before them, and
    a warning says so. Off means to detect it."""

    weights: Literal["auto", "plain", "ema"] = "auto"
    """Which weights of a file that also has averaged ones: `plain`, which train better, `ema`,
    which sample better, or `auto`: the plain ones, and of a Diffusers folder its main file."""

    variant: FileName | None = None
    """Which set of files of a Diffusers folder, such as `fp16`; off means the main one, or else
    fp16."""

    clip_skip: Annotated[int, Field(ge=1, le=12)] | None = None
    """Take the text encoder's n-th layer from the end, followed by its final layer norm: 1 is the
    last, 2 the penultimate that NovelAI trained with. Off means the one that the model's file
    records, or else the family's own: the last, which of SD 2.x is OpenCLIP's penultimate. SDXL has
    one of its own, and refuses this."""

    size_conditioning: Literal["original", "target"] = "original"
    """What SDXL is told of an image's size. `original`: its own size before resizing, and what its
    crop leaves out, so that the model learns what small and cropped images look like and does not
    draw such images. `target`: the size that it is trained at and no crop, as for an image that is
    drawn; for images that were resized elsewhere, whose own sizes no longer say how they look."""

    empty_text: Literal["auto", "encoded", "zeros"] = "auto"
    """What SDXL is given for an empty caption (`caption_dropout_rate` makes some) and for an empty
    negative prompt of previews. `encoded`: the empty text, as ComfyUI and sd-scripts do. `zeros`:
    zeros for the states and the pooled text, as SDXL 1.0 was trained, and as A1111 and Forge draw,
    and diffusers where a folder's `force_zeros_for_empty_prompt` says so. The exported model says
    which. `auto`: captions are encoded; previews, and what the exported model says, are as the base
    model says."""

    max_tokens: Literal[75, 150, 225] = 75
    """How much of a caption is read, in tokens; a word is one to three. More takes a little more
    time and memory, for long captions only with `token_join` a1111."""

    token_join: Literal["a1111", "kohya"] = "a1111"
    """How captions of over 75 tokens are put together. `a1111`: 75 at a time, each with its own
    begin and end, as A1111, Forge and ComfyUI do when drawing. `kohya`: as sd-scripts trains, with
    one begin and one end, always at full length."""

    token_split: Literal["comma", "plain"] = "comma"
    """Where captions of over 75 tokens are cut: `comma` after the last comma, if it is among the
    last 20 tokens, as A1111 does; `plain` anywhere."""

    caption_emphasis: Literal["off", "no_norm", "mean"] = "off"
    """Whether brackets in captions are emphasis, as in `(cat:1.2)` and `[dog]`: `off`, since tags
    carry brackets of their own; `no_norm` multiplies the states, as sd-scripts does; `mean` keeps
    their mean besides, as A1111 does."""

    @property
    def caption_lengths(self) -> int:
        """How many lengths captions have, in chunks of 75 tokens; one where all are filled up."""
        return self.max_tokens // 75 if self.token_join == "a1111" else 1


class ValidationConfig(Section):
    """Loss on images that are not trained on, at fixed noise and timesteps."""

    image_dir: Location | None = None
    """Folder of held-out images with captions, or its URL; off means to hold out `split` of the
    dataset."""

    split: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the dataset's images to hold out when there is no `image_dir`; 0 means none."""

    every_steps: Positive = 100
    """Optimizer steps between measurements; the first and the last step are always measured."""

    copies: Literal["near", "bytes"] = "near"
    """What counts as a copy of a held-out image, which is never trained on: `near`, images that
    look the same too, as one that was resized or saved again (by perceptual hash, in datasets of up
    to 10,000 images); `bytes`, equal files alone."""

    timesteps: Positive = 4
    """Noise levels per image at least, evenly spread; more is steadier and slower."""

    standard_error: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """The standard error that noise and timesteps may leave in the validation loss, as a share of
    it. The fewer held-out images, the more draws each gets: at 0.05, 4 images get 7 each and 16 get
    4. 0 means `timesteps` draws for each image, at the same noise levels for all."""

    training_images: Annotated[int, Field(ge=0)] = 8
    """Images of the training set that are measured the same way at each validation: their loss
    falls below that of held-out images as they are learnt by heart. 0 means none."""

    by: tuple[Literal["tag", "dataset", "subset"], ...] = ()
    """Also tell the loss of held-out images by what they have in common: a `tag` (what stands
    between the commas of captions), their `dataset`, or their `subset` (folder). Up to 40 of each
    are shown, those with most images. It costs no further forward passes."""

    by_images: Annotated[int, Field(ge=2)] = 4
    """The least number of held-out images of a tag, dataset or subset whose loss is shown; copies
    count as one."""


class RunConfig(Section):
    """A whole training run."""

    output_dir: WrittenLocation
    """The run directory: must not exist yet. Settings, metrics, states, samples and the exported
    model go there. It may be a URL (`s3://`, `gs://`): the run is then trained in a folder of this
    machine, and each file is sent there once it is complete."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Everything random follows from it; the same seed and settings give the same weights, on a GPU
    to the last bit with `training.deterministic`."""

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
            values["optimizer"] = {"lr": DEFAULT_LR, **optimizer}  # which have a rate of their own
        return values

    @model_validator(mode="after")
    def _model_has_a_name(self) -> RunConfig:
        fault = file_name_problem(self.export_name)
        if fault is not None:
            raise ValueError(
                f"the exported model would be called {self.export_name[:60]!r} after output_dir, "
                f"and that {fault}. Set saving.name, or choose another output_dir"
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
        """Whether the settings are those of a run that was begun, perhaps by another version."""
        return self._is_begun

    @property
    def batch_sizes(self) -> dict[int, int]:
        """Images per forward pass and process, by the number of the dataset.

        1 where `auto` is still to be found.
        """
        asked = self.training.batch_size
        usual = 1 if asked == "auto" else asked
        return dict(enumerate(entry.batch_size or usual for entry in self.dataset.entries))

    @property
    def trains_text_encoder(self) -> bool:
        """Whether the text encoder learns, for a part of the run at least."""
        return isinstance(self.method, FullMethod) and self.method.train_text_encoder

    @property
    def holds_out(self) -> bool:
        """Whether there are images to validate on."""
        splits = (entry.validation_split for entry in self.dataset.entries)
        validation = self.validation
        return validation.image_dir is not None or bool(validation.split) or any(splits)

    @property
    def keeps_best(self) -> bool:
        """Whether the model with the least validation loss is kept."""
        return self.saving.best_model and self.holds_out

    @property
    def hypernetwork(self) -> HypernetworkMethod | None:
        """The settings of the hypernetwork that is trained, if one is."""
        return self.method if isinstance(self.method, HypernetworkMethod) else None

    @property
    def export_form(self) -> str:
        """What the trained model or hypernetwork is written as."""
        return self.saving.format or FORMATS[self.method.kind][0]

    @property
    def export_precision(self) -> Precision:
        """The precision of what was trained, in its file."""
        return self.saving.export_dtype or ("fp16" if self.method.kind == "full" else "fp32")

    @property
    def export_name(self) -> str:
        """What the exported model is called."""
        return self.saving.name or Path(os.path.abspath(self.output_dir)).name  # noqa: PTH100 - links stay
