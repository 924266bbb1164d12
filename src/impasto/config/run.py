"""The settings of a training run: one frozen tree, written into the run directory as resolved.

The docstring under a field is its help text and its entry in `docs/config.md`. `None` means "off".
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from impasto.config.base import Section
from impasto.config.dataset import DatasetConfig, Side
from impasto.config.objective import LossConfig, NoiseConfig, TimestepConfig
from impasto.config.optimizer import OptimizerConfig, Rate
from impasto.config.schedule import ScheduleConfig

Positive = Annotated[int, Field(ge=1)]
Precision = Literal["fp32", "fp16", "bf16"]
SamplerName = Literal[
    "ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmpp_2m", "dpmsolver",
    "dpmsingle",
]  # fmt: skip
BlockName = Literal[
    "conv_in", "time_embedding", "down_blocks.0", "down_blocks.1", "down_blocks.2", "down_blocks.3",
    "mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2", "up_blocks.3", "conv_norm_out",
    "conv_out",
]  # fmt: skip
MetadataKey = Literal[
    "title", "author", "description", "license", "tags", "usage_hint", "trigger_phrase",
    "merged_from", "thumbnail",
]  # fmt: skip


class ModelConfig(Section):
    """The base model."""

    path: str
    """The model to start from: a `.safetensors` or `.ckpt` file, a Diffusers folder, a Hub id such
    as `owner/name` or `owner/name@revision`, or the directory of a finished run."""

    vae: str | None = None
    """Another VAE than the model's: a Diffusers folder or id, a VAE file, or a full model."""

    family: Literal["sd1", "sd2-base", "sd2-v"] | None = None
    """What the model is, where it cannot be told from its files; off means to find out."""

    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What its U-Net predicts, where it cannot be told from its files; off means to find out."""

    weights: Literal["auto", "plain", "ema"] = "auto"
    """Which weights of a file that also has averaged ones: `plain`, which train better, `ema`,
    which sample better, or `auto`: the plain ones, and of a Diffusers folder its main file."""

    variant: str | None = None
    """Which set of files of a Diffusers folder, such as `fp16`; off means the main one, or else
    fp16."""

    clip_skip: Annotated[int, Field(ge=1, le=12)] | None = None
    """Take the text encoder's n-th layer from the end, followed by its final layer norm. 2 is the
    penultimate layer that NovelAI trained with; off means the last layer. SD 2.x uses the
    penultimate layer of its own encoder without this setting."""

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


class FullMethod(Section):
    """Train the whole U-Net, and the text encoder if asked."""

    kind: Literal["full"] = "full"
    """Full fine-tuning."""

    train_text_encoder: bool = False
    """Train the text encoder too: learns new words better, forgets old ones faster."""

    text_encoder_lr: Rate | None = None
    """Learning rate of the text encoder; off means the optimizer's."""

    text_encoder_layers: Positive | None = None
    """Train only so many of its last layers, those that `clip_skip` uses; off means all, and its
    embeddings."""

    text_encoder_from_step: Annotated[int, Field(ge=0)] = 0
    """The optimizer update from which it learns."""

    text_encoder_until_step: Positive | None = None
    """The optimizer update from which it learns no more; off means to the end."""

    block_lrs: dict[BlockName, Rate] = Field(default_factory=dict)
    """Learning rates of blocks of the U-Net by their names, such as `{"down_blocks.0" = 1e-6,
    "mid_block" = 5e-6}`: `conv_in`, `time_embedding`, `down_blocks.0` to `.3`, `mid_block`,
    `up_blocks.0` to `.3`, `conv_norm_out`, `conv_out`. The others have the optimizer's."""

    @model_validator(mode="after")
    def _text_encoder_is_trained(self) -> FullMethod:
        names = ("lr", "layers", "from_step", "until_step")
        given = [n for n in (f"text_encoder_{name}" for name in names) if getattr(self, n)]
        if given and not self.train_text_encoder:
            raise ValueError(f"{given[0]} has no effect without train_text_encoder")
        end = self.text_encoder_until_step
        if end is not None and end <= self.text_encoder_from_step:
            raise ValueError(
                f"text_encoder_until_step {end} is not after text_encoder_from_step "
                f"{self.text_encoder_from_step}"
            )
        return self


class TrainingConfig(Section):
    """The loop."""

    max_steps: Positive | None = None
    """Optimizer updates to train for. Give this or `max_epochs`."""

    max_epochs: Positive | None = None
    """Passes over the data to train for. Give this or `max_steps`."""

    batch_size: Positive = 1
    """Pictures per forward pass and process; more takes memory by the same factor."""

    gradient_accumulation_steps: Positive = 1
    """Forward passes per update: a larger effective batch at no cost in memory."""

    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """`bf16` computes in bfloat16 with float32 weights: faster on GPUs from 2020 on. `fp16` does in
    float16, for older ones; updates whose gradient overflows are passed over."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: far less memory, about a quarter slower."""

    channels_last: bool = False
    """Keep the U-Net's convolutions in channels-last memory order: faster on GPUs and for narrow
    networks, slower for a full-size U-Net on a CPU."""

    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the whole gradient; longer ones are scaled down to it. 0 means no limit."""

    text_cache_mib: Annotated[int, Field(ge=0)] = 256
    """Memory for remembered outputs of a text encoder that is not trained, in MiB on the U-Net's
    device; 75 tokens take 0.23 (SD 1.x) to 0.31 (SD 2.x)."""

    cache_text_to_disk: bool = False
    """Encode all captions before training, keep them beside the latents, and take the text encoder
    off the device: saves 0.5 to 1.3 GiB there. Captions that change are still encoded when met."""

    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep a running average of the weights with this decay per update, and export it; costs one
    copy of the weights. Off means none."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        if (self.max_steps is None) == (self.max_epochs is None):
            raise ValueError("give exactly one of max_steps and max_epochs")
        return self


class ValidationConfig(Section):
    """Loss on pictures that are not trained on, at fixed noise and timesteps."""

    image_dir: Path | None = None
    """Folder of held-out pictures with captions; off means to hold out `split` of the data set."""

    split: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the data set's pictures to hold out when there is no `image_dir`; 0 means none."""

    every_steps: Positive = 100
    """Optimizer updates between measurements; the first and the last step are always measured."""

    timesteps: Positive = 4
    """Noise levels per picture, evenly spread; more is steadier and slower."""


class PreviewConfig(Section):
    """Samples during training, beside the base model's."""

    prompts: tuple[str, ...] = ()
    """One picture is drawn for each; none means no previews."""

    prompt_file: Path | None = None
    """More prompts, each perhaps with settings of its own: a `.txt` with one per line and
    sd-scripts' options (`a cat --n dog --w 512 --h 768 --d 1 --l 7 --s 20`), or `.toml` or
    `.json`."""

    every_epochs: Positive | None = None
    """Passes over the data between previews, in place of `every_steps`."""

    at_first: bool = True
    """Also draw with the base model, to compare with."""

    sampler: SamplerName = "ddim"
    """How pictures are drawn."""

    negative_prompt: str = ""
    """What the pictures should not show."""

    every_steps: Positive = 200
    """Optimizer updates between previews; the base model and the end are always drawn."""

    width: Side = 512
    """Width in pixels, a multiple of 8."""

    height: Side = 512
    """Height in pixels, a multiple of 8."""

    steps: Positive = 20
    """Sampler steps."""

    guidance_scale: Annotated[float, Field(ge=0)] = 7.0
    """How strongly the words guide; 1 means no guidance."""

    seed: Annotated[int, Field(ge=0)] = 1
    """Seed of the first prompt; each further one adds 1."""

    emphasis: Literal["off", "no_norm", "mean"] = "mean"
    """Whether brackets in prompts are emphasis; `mean` is what A1111 does. A bracket itself is
    written `\\(`."""

    @model_validator(mode="after")
    def _sides_fit(self) -> PreviewConfig:
        for name in ("width", "height"):
            if getattr(self, name) % 8:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a multiple of 8")
        return self


class SavingConfig(Section):
    """What is kept during the run and what it leaves in the end."""

    state_every_steps: Positive = 500
    """Optimizer updates between saved training states, from which a run can be resumed."""

    keep_states: Positive = 2
    """How many of the newest states are kept."""

    model_every_steps: Positive | None = None
    """Optimizer updates between models that are exported on the way, as
    `<name>-step00000500.safetensors`; off means none."""

    model_every_epochs: Positive | None = None
    """Passes over the data between models that are exported on the way, as
    `<name>-000003.safetensors`; off means none."""

    keep_models: Positive | None = None
    """How many of the newest of each of those are kept; off means all."""

    model_dir: Path | None = None
    """Folder for exported models; off means `export` in the run directory, and `models` for those
    on the way."""

    format: Literal["safetensors", "ckpt", "diffusers"] = "safetensors"
    """What the trained model is written as: one `.safetensors` or `.ckpt` file for A1111, Forge and
    ComfyUI, or a Diffusers folder."""

    name: str | None = None
    """Name and title of the exported model; off means the run directory's."""

    export_dtype: Precision = "fp16"
    """Precision of the trained parts in the exported model; frozen parts stay as they were, bit for
    bit, unless one of the next three says otherwise."""

    unet_dtype: Precision | None = None
    """Precision of the U-Net in the exported model; off means as `export_dtype` says."""

    text_encoder_dtype: Precision | None = None
    """Precision of the text encoder in the exported model; off means `export_dtype` if it was
    trained, else as it was."""

    vae_dtype: Precision | None = None
    """Precision of the VAE in the exported model; off means as it was."""

    metadata: dict[MetadataKey, str] = Field(default_factory=dict)
    """What the file says of itself besides: `title`, `author`, `description`, `license`, `tags`,
    `usage_hint`, `trigger_phrase`, `merged_from`, `thumbnail`, by the names of the
    modelspec standard."""

    @property
    def part_dtypes(self) -> dict[str, Precision]:
        """Part -> precision, where one is asked for by name."""
        asked = {
            "unet": self.unet_dtype,
            "text_encoder": self.text_encoder_dtype,
            "vae": self.vae_dtype,
        }
        return {part: dtype for part, dtype in asked.items() if dtype is not None}


class LoggingConfig(Section):
    """What is written down while training."""

    every_steps: Positive = 10
    """Optimizer updates between lines of metrics; reading them makes the device wait once."""


class RunConfig(Section):
    """A whole training run."""

    output_dir: Path
    """The run directory: must not exist yet. Settings, metrics, states, samples and the exported
    model go there."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Everything random follows from it; the same seed and settings give the same weights."""

    model: ModelConfig
    dataset: DatasetConfig
    method: FullMethod = FullMethod()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    loss: LossConfig = LossConfig()
    noise: NoiseConfig = NoiseConfig()
    timesteps: TimestepConfig = TimestepConfig()
    training: TrainingConfig
    validation: ValidationConfig = ValidationConfig()
    previews: PreviewConfig = PreviewConfig()
    saving: SavingConfig = SavingConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def _cached_text_is_frozen(self) -> RunConfig:
        if self.training.cache_text_to_disk and self.method.train_text_encoder:
            raise ValueError(
                "training.cache_text_to_disk and method.train_text_encoder contradict each other: "
                "what a learning text encoder says changes with each step. Take one of them out"
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_hold_out(self) -> RunConfig:
        asked = any(part.validation_split is not None for part in self.dataset.parts)
        if asked and self.validation.image_dir is not None:
            raise ValueError(
                "validation.image_dir and validation_split of a data set contradict each other: "
                "take one of them out"
            )
        return self

    @property
    def batch_sizes(self) -> dict[int, int]:
        """Pictures per forward pass and process, by the number of the data set."""
        sizes = [part.batch_size or self.training.batch_size for part in self.dataset.parts]
        return dict(enumerate(sizes))

    @property
    def export_name(self) -> str:
        """What the exported model is called."""
        return self.saving.name or self.output_dir.name
