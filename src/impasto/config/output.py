"""Settings of a run's output: previews, training states, models, metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from impasto.config.base import Section
from impasto.config.dataset import Side
from impasto.config.names import FileName
from impasto.publishing import Publishable

Positive = Annotated[int, Field(ge=1)]
Precision = Literal["fp32", "fp16", "bf16"]
MetadataKey = Literal[
    "title", "author", "description", "license", "tags", "usage_hint", "trigger_phrase",
    "merged_from", "thumbnail",
]  # fmt: skip
SamplerName = Literal[
    "ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmpp_2m", "dpmsolver",
    "dpmsingle",
]  # fmt: skip


class PreviewConfig(Section):
    """Samples that are drawn during training, compared with those of the base model."""

    hypernetworks: tuple[str, ...] = ()
    """Hypernetworks with which previews are also drawn: files, each followed by its strength if
    that is not 1, such as `style.pt:0.8`. A prompt can override the strength: `a cat
    <hypernet:style:0.5>`."""

    prompts: tuple[str, ...] = ()
    """Prompts of previews; one image is drawn per prompt. Empty means no previews."""

    prompt_file: Path | None = None
    """File of further prompts, each optionally with its own settings: a `.txt` with one prompt per
    line and sd-scripts' options (`a cat --n dog --w 512 --h 768 --d 1 --l 7 --s 20`), a `.toml` or
    a `.json`."""

    every_epochs: Positive | None = None
    """Epochs between previews, in place of `every_steps`."""

    at_first: bool = True
    """Also draw previews with the base model before training, for comparison."""

    sampler: SamplerName = "ddim"
    """Sampler with which previews are drawn."""

    negative_prompt: str = ""
    """Negative prompt: what previews should not show."""

    every_steps: Annotated[int, Field(ge=0)] = 200
    """Optimizer steps between previews; 0 means only at the end of the run, where previews are
    always drawn."""

    width: Side = 512
    """Width in pixels, a multiple of 8."""

    height: Side = 512
    """Height in pixels, a multiple of 8."""

    steps: Annotated[int, Field(ge=1, le=1000)] = 20
    """Sampler steps per image."""

    guidance_scale: Annotated[float, Field(ge=0, le=1000)] = 7.0
    """Strength of classifier-free guidance (CFG scale); 1 means no guidance."""

    guidance_rescale: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How much of the contrast that guidance adds is removed, from 0 (none) to 1 (all). 0.7 suits
    models with zero terminal SNR, whose images guidance makes too bright or too dark
    (arXiv:2305.08891, section 3.4)."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    """Seed of the first prompt; each further prompt uses the next number."""

    emphasis: Literal["off", "no_norm", "mean"] = "mean"
    """Whether brackets in prompts mean emphasis: `mean` as in A1111, `no_norm` without restoring
    the mean, `off` for none. A literal bracket is written `\\(`."""

    features: str | None = None
    """Network with which the previews of each step are compared with the held-out images, or with
    the training images if none are held out, as `impasto evaluate --features` does: `demo` (for
    flat icons only), `clip`, `dinov2`, a tagger, a folder or a Hub id. It runs on the CPU. The
    metrics record the kernel distance, and the similarity to the image whose caption is the prompt.
    Off means no comparison."""

    vae_tiling: bool = False
    """Decode previews with a side of more than 512 pixels in overlapping tiles of 512 pixels, in
    the memory of one tile; the result differs slightly from decoding the whole image. Training
    latents are not affected."""

    @model_validator(mode="after")
    def _sides_fit(self) -> PreviewConfig:
        for name in ("width", "height"):
            if getattr(self, name) % 8:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a multiple of 8")
        return self


class SavingConfig(Section):
    """Which states and models are saved during the run, and what is exported at its end."""

    state_every_steps: Annotated[int, Field(ge=0)] = 500
    """Optimizer steps between training states, from which a run can be resumed; 0 means only when
    the run is stopped and at its end."""

    state_every_minutes: Annotated[float, Field(gt=0)] | None = None
    """Minutes after which a training state is saved, whatever `state_every_steps` is; off means by
    steps alone."""

    keep_states: Positive = 2
    """Number of newest training states to keep."""

    keep_final_state: bool = True
    """Keep training states after the end of a run, so that it can be extended; off, only the model
    remains."""

    model_every_steps: Positive | None = None
    """Optimizer steps between intermediate models, which are exported as
    `<name>-step00000500.safetensors`; off means none."""

    model_every_epochs: Positive | None = None
    """Epochs between intermediate models, which are exported as `<name>-000003.safetensors`; off
    means none."""

    keep_models: Positive | None = None
    """Number of newest intermediate models to keep, of each of these two kinds; only models of this
    run are removed. Off means all."""

    keep_step_models: Positive | None = None
    """Number of newest models of `model_every_steps` to keep; off means `keep_models`."""

    keep_epoch_models: Positive | None = None
    """Number of newest models of `model_every_epochs` to keep; off means `keep_models`."""

    best_model: bool = True
    """Also export the model each time its validation loss reaches a new low, as
    `<name>-best.safetensors`, which replaces the previous one. Only if images are held out."""

    average: Literal["instead", "beside", "never"] = "instead"
    """Whether to export the average that `training.ema_decay` computes: `instead` of the last
    weights; `beside` them, as `<name>-ema`; or `never`."""

    posthoc_every_steps: Positive | None = None
    """Optimizer steps between stored averages of `training.posthoc_ema`; off means 8 times in the
    run. More often makes averages of other lengths more exact."""

    posthoc_dtype: Literal["fp16", "fp32"] = "fp16"
    """Precision in which the averages of `training.posthoc_ema` are stored, as differences from the
    weights at the start, which are stored once in float32 (4 bytes per weight). Each time, the two
    averages take 4 bytes per weight in fp16, 8 in fp32."""

    merge_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of the trained weights in every exported model; the rest is the base model, as in
    `impasto merge BASE RESULT --ratio`. 1 exports the trained weights alone. Slightly below 1, the
    model retains more of what the base model knew, at nearly the same style (WiSE-FT,
    arXiv:2109.01903); see `docs/guide/quality.md`. Training states, losses, previews and `impasto
    ema` use the trained weights. With `training.weight_dtype = "bf16"` the base model is merged as
    training started from it, rounded to bf16."""

    model_dir: Path | None = None
    """Folder for exported models; off means `export` in the run directory, and `models` for
    intermediate models."""

    overwrite: bool = False
    """Overwrite model files of the same name in `model_dir` that other runs wrote. Off means that a
    run with such a name does not start."""

    format: Literal["safetensors", "ckpt", "diffusers", "a1111", "portable", "novelai"] | None = (
        None
    )
    """File format of the trained model: one `.safetensors` (the default) or `.ckpt` file for A1111,
    Forge and ComfyUI, or a `diffusers` folder. For a hypernetwork: `a1111` (the default), a `.pt`
    for A1111; `portable`, the same with a layout that ComfyUI reads too; `novelai`; or
    `safetensors`. Forge loads hypernetworks but never applies them."""

    name: FileName | None = None
    """File name and title of the exported model, without folder or extension; off means the name of
    the run directory."""

    export_dtype: Precision | None = None
    """Precision of the trained parts in the exported model; off means fp16, or fp32 for a
    hypernetwork. Frozen parts are copied bit for bit, unless one of the next three settings changes
    them."""

    unet_dtype: Precision | None = None
    """Precision of the U-Net in the exported model; off means `export_dtype`."""

    text_encoder_dtype: Precision | None = None
    """Precision of the text encoder in the exported model; off means `export_dtype` if it was
    trained, else that of the base model."""

    vae_dtype: Precision | None = None
    """Precision of the VAE in the exported model; off means that of the base model."""

    publish: tuple[Publishable, ...] = ()
    """Private details that exported files and the report may contain: `paths`, full paths of
    folders and files on this machine, of which otherwise only the last part is written; `prompts`,
    those of previews."""

    metadata: dict[MetadataKey, str] = Field(default_factory=dict)
    """Further metadata of the exported file: `title`, `author`, `description`, `license`, `tags`,
    `usage_hint`, `trigger_phrase`, `merged_from`, `thumbnail`, as the modelspec standard names
    them. For a hypernetwork, only the format `safetensors` can store them."""

    @model_validator(mode="after")
    def _models_are_made(self) -> SavingConfig:
        if self.keep_models and not (self.model_every_steps or self.model_every_epochs):
            raise ValueError("keep_models has no effect without model_every_steps or _epochs")
        for kind in ("step", "epoch"):
            every = f"model_every_{kind}s"
            if getattr(self, f"keep_{kind}_models") and not getattr(self, every):
                raise ValueError(f"keep_{kind}_models has no effect without {every}")
        if self.overwrite and self.model_dir is None:
            raise ValueError("overwrite has no effect without model_dir")
        return self

    @property
    def kept_step_models(self) -> int | None:
        """How many of the newest models of `model_every_steps` to keep; None means all."""
        return self.keep_step_models or self.keep_models

    @property
    def kept_epoch_models(self) -> int | None:
        """How many of the newest models of `model_every_epochs` to keep; None means all."""
        return self.keep_epoch_models or self.keep_models

    @property
    def keeps_newest(self) -> bool:
        """Whether older intermediate models are removed when newer ones are saved."""
        return bool(self.kept_step_models or self.kept_epoch_models)

    @property
    def component_dtypes(self) -> dict[str, Precision]:
        """Kind of network -> precision, for those whose precision is set by name."""
        asked = {
            "unet": self.unet_dtype,
            "text_encoder": self.text_encoder_dtype,
            "vae": self.vae_dtype,
        }
        return {component: dtype for component, dtype in asked.items() if dtype is not None}


class LoggingConfig(Section):
    """What a run logs, and where."""

    every_steps: Positive = 10
    """Optimizer steps between rows of metrics; reading the metrics makes the CPU wait for the GPU
    once."""

    image_losses: bool = False
    """Record the loss of each image each time it is shown, with its timestep, in `image_losses.csv`
    in the run directory."""

    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Trackers that receive the metrics in addition to `metrics.jsonl`: `tensorboard`, in the run
    directory, or `wandb`, which uploads them unless the environment variable WANDB_MODE is
    `offline`."""

    wandb_project: str = "impasto"
    """Name of the Weights & Biases project."""

    wandb_name: str | None = None
    """Name of the run at Weights & Biases; off means that of the run directory."""

    @model_validator(mode="after")
    def _wandb_is_used(self) -> LoggingConfig:
        for name in ("wandb_project", "wandb_name"):
            given = getattr(self, name) != type(self).model_fields[name].default
            if given and "wandb" not in self.trackers:
                raise ValueError(f"{name} has no effect without wandb in trackers")
        return self
