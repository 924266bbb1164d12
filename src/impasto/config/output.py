"""Settings of what a run leaves: previews, states, models, metrics."""

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
    """Samples during training, beside the base model's."""

    hypernetworks: tuple[str, ...] = ()
    """Hypernetworks that previews are also drawn with: files, each with its strength if that is not
    1, as `style.pt:0.8`. A prompt may change the strength: `a cat <hypernet:style:0.5>`."""

    prompts: tuple[str, ...] = ()
    """One image is drawn for each; none means no previews."""

    prompt_file: Path | None = None
    """More prompts, each perhaps with settings of its own: a `.txt` with one per line and
    sd-scripts' options (`a cat --n dog --w 512 --h 768 --d 1 --l 7 --s 20`), or `.toml` or
    `.json`."""

    every_epochs: Positive | None = None
    """Passes over the data between previews, in place of `every_steps`."""

    at_first: bool = True
    """Also draw with the base model, to compare with."""

    sampler: SamplerName = "ddim"
    """How images are drawn."""

    negative_prompt: str = ""
    """What the images should not show."""

    every_steps: Annotated[int, Field(ge=0)] = 200
    """Optimizer steps between previews, which are drawn at the end in any case; 0 means only
    then."""

    width: Side = 512
    """Width in pixels, a multiple of 8."""

    height: Side = 512
    """Height in pixels, a multiple of 8."""

    steps: Annotated[int, Field(ge=1, le=1000)] = 20
    """Sampler steps."""

    guidance_scale: Annotated[float, Field(ge=0, le=1000)] = 7.0
    """How strongly the words guide; 1 means no guidance."""

    guidance_rescale: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How much of what guidance adds to the contrast is taken back, from 0 (nothing) to 1 (all).
    0.7 suits models whose noise schedule ends in noise alone (zero terminal SNR), whose images
    guidance makes too bright or dark (arXiv:2305.08891, section 3.4)."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    """Seed of the first prompt; each further one adds 1."""

    emphasis: Literal["off", "no_norm", "mean"] = "mean"
    """Whether brackets in prompts are emphasis; `mean` is what A1111 does. A bracket itself is
    written `\\(`."""

    features: str | None = None
    """Network that compares the previews of each step with the held-out images, or with those that
    are trained on where none are held out, as `impasto evaluate --features` does: `demo`, which
    knows flat icons alone, `clip`, `dinov2`, a tagger, a folder or a Hub id. It computes on the
    CPU. The metrics have the kernel distance, and the similarity to the image whose caption a
    prompt is. Off means not to compare."""

    vae_tiling: bool = False
    """Decode images of more than 512 pixels a side in overlapping tiles of 512: takes the memory of
    one tile, and differs a little from an image that is decoded whole. Latents are not touched."""

    @model_validator(mode="after")
    def _sides_fit(self) -> PreviewConfig:
        for name in ("width", "height"):
            if getattr(self, name) % 8:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a multiple of 8")
        return self


class SavingConfig(Section):
    """What is kept during the run and what it leaves in the end."""

    state_every_steps: Annotated[int, Field(ge=0)] = 500
    """Optimizer steps between saved training states, from which a run can be resumed; 0 means
    only when it is stopped and at its end."""

    state_every_minutes: Annotated[float, Field(gt=0)] | None = None
    """Minutes after which a training state is saved in any case; off means by steps alone."""

    keep_states: Positive = 2
    """How many of the newest states are kept."""

    keep_final_state: bool = True
    """Keep states after the end of a run, so that it can be made longer; without it only the model
    is left."""

    model_every_steps: Positive | None = None
    """Optimizer steps between models that are exported on the way, as
    `<name>-step00000500.safetensors`; off means none."""

    model_every_epochs: Positive | None = None
    """Passes over the data between models that are exported on the way, as
    `<name>-000003.safetensors`; off means none."""

    keep_models: Positive | None = None
    """How many of the newest models of each of these kinds are kept, of those that this run wrote;
    off means all."""

    keep_step_models: Positive | None = None
    """How many of the newest models of `model_every_steps` are kept; off means as `keep_models`
    says."""

    keep_epoch_models: Positive | None = None
    """How many of the newest models of `model_every_epochs` are kept; off means as `keep_models`
    says."""

    best_model: bool = True
    """Where images are held out, also export the model each time its validation loss is the lowest
    so far, as `<name>-best.safetensors`, in the place of the one before."""

    average: Literal["instead", "beside", "never"] = "instead"
    """Which weights are exported where `training.ema_decay` keeps an average: the average `instead`
    of the last ones; both, the average `beside` them as `<name>-ema`; or `never` the average."""

    posthoc_every_steps: Positive | None = None
    """Of `training.posthoc_ema`: its averages are stored once every this many optimizer steps; off
    means that they are stored 8 times in the run. More often makes averages of other lengths more
    exact."""

    posthoc_dtype: Literal["fp16", "fp32"] = "fp16"
    """Of `training.posthoc_ema`: the precision that its averages are stored in, as differences from
    the weights at the start, which are kept once in float32 (4 bytes a weight). fp16 takes 4 bytes
    a weight each time for both, fp32 8."""

    merge_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of what was trained in every exported model; the rest is the base model, as in `impasto
    merge BASE RESULT --ratio`. 1 exports what was trained alone. Slightly below 1 the model keeps
    more of what the base model knew, at nearly the same style (WiSE-FT, arXiv:2109.01903); see
    `docs/guide/quality.md`. States, losses, previews and `impasto ema` are of the weights that are
    trained. With `training.weight_dtype = "bf16"` the base model is mixed in as it was trained
    from, rounded to bf16."""

    model_dir: Path | None = None
    """Folder for exported models; off means `export` in the run directory, and `models` for those
    on the way."""

    overwrite: bool = False
    """Replace model files of the same names in `model_dir` that other runs wrote. Off means that a
    run with such a name does not begin."""

    format: Literal["safetensors", "ckpt", "diffusers", "a1111", "portable", "novelai"] | None = (
        None
    )
    """What the trained model is written as: one `.safetensors` (which off means) or `.ckpt` file
    for A1111, Forge and ComfyUI, or a Diffusers folder. A hypernetwork: `a1111` (which off means),
    a `.pt` for A1111; `portable`, that `.pt` as ComfyUI reads it too; `novelai`; or
    `safetensors`. Forge loads hypernetworks but never applies them."""

    name: FileName | None = None
    """Name and title of the exported model, without a folder or an ending; off means the run
    directory's."""

    export_dtype: Precision | None = None
    """Precision of the trained parts in the exported model; off means fp16, and fp32 for a
    hypernetwork. Frozen parts stay as they were, bit for bit, unless one of the next three says
    otherwise."""

    unet_dtype: Precision | None = None
    """Precision of the U-Net in the exported model; off means as `export_dtype` says."""

    text_encoder_dtype: Precision | None = None
    """Precision of the text encoder in the exported model; off means `export_dtype` if it was
    trained, else as it was."""

    vae_dtype: Precision | None = None
    """Precision of the VAE in the exported model; off means as it was."""

    publish: tuple[Publishable, ...] = ()
    """What exported files and the report also contain: `paths`, whole paths of folders and files on
    this machine, of which otherwise only the last part is written; `prompts`, those of previews."""

    metadata: dict[MetadataKey, str] = Field(default_factory=dict)
    """What else the file says of itself: `title`, `author`, `description`, `license`, `tags`,
    `usage_hint`, `trigger_phrase`, `merged_from`, `thumbnail`, by the names of the
    modelspec standard. A hypernetwork has a place for them in `safetensors` alone."""

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
        """How many of the newest models of `model_every_steps` are kept; None means all."""
        return self.keep_step_models or self.keep_models

    @property
    def kept_epoch_models(self) -> int | None:
        """How many of the newest models of `model_every_epochs` are kept; None means all."""
        return self.keep_epoch_models or self.keep_models

    @property
    def keeps_newest(self) -> bool:
        """Whether models on the way are removed as newer ones come."""
        return bool(self.kept_step_models or self.kept_epoch_models)

    @property
    def component_dtypes(self) -> dict[str, Precision]:
        """Kind of network -> precision, where one is asked for by name."""
        asked = {
            "unet": self.unet_dtype,
            "text_encoder": self.text_encoder_dtype,
            "vae": self.vae_dtype,
        }
        return {component: dtype for component, dtype in asked.items() if dtype is not None}


class LoggingConfig(Section):
    """What a run logs, and where."""

    every_steps: Positive = 10
    """Optimizer steps between lines of metrics; reading them makes the device wait once."""

    image_losses: bool = False
    """Write the loss of each image each time it is shown, with its timestep, into
    `image_losses.csv` of the run directory."""

    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where metrics go besides `metrics.jsonl`: `tensorboard`, into the run directory, or `wandb`,
    which uploads them unless WANDB_MODE is offline."""

    wandb_project: str = "impasto"
    """The project of Weights & Biases that the run belongs to."""

    wandb_name: str | None = None
    """What the run is called there; without it as its folder."""

    @model_validator(mode="after")
    def _wandb_is_used(self) -> LoggingConfig:
        for name in ("wandb_project", "wandb_name"):
            given = getattr(self, name) != type(self).model_fields[name].default
            if given and "wandb" not in self.trackers:
                raise ValueError(f"{name} has no effect without wandb in trackers")
        return self
