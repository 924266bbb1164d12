"""Generates images with diffusers' schedulers and Impasto's own conditioning.

The loop is written out instead of using diffusers' pipeline, so that a sample reads text exactly as
training does (clip skip included) and leaves the random state of training unchanged.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, PngImagePlugin
from torch import Tensor

from impasto import files
from impasto.data.records import CELL, CHANNELS, Geometry, Size
from impasto.diffusion.conditioning import Conditioning
from impasto.diffusion.schedule import BETA_END, BETA_START
from impasto.errors import ConfigError
from impasto.models.networks import vae as vae_module
from impasto.models.networks.hypernetwork import HypernetworkStack
from impasto.models.networks.loading import BaseModel
from impasto.models.networks.offload import on_device
from impasto.models.networks.schedules import schedule_of
from impasto.models.networks.tokenizers import build_tokens
from impasto.models.reading.recorded import trained_clip_skip
from impasto.models.text.conditioning import without_text
from impasto.models.text.text_conditioner import ClipTextConditioner, TextConditioner
from impasto.models.text.text_states import TextStates
from impasto.models.tokenization.text_metadata import prompt_layout
from impasto.models.tokenization.tokens import TextLayout
from impasto.progress import Advance
from impasto.sampler_table import SAMPLERS
from impasto.sampling.prompts import Prompt, require_drawable, require_sampler, text_settings
from impasto.sampling.whole_steps import set_timesteps


def _unheard(_: int) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class Sampler:
    """A model that is ready to generate images.

    Attributes:
        unet: diffusers' UNet2DConditionModel; images are generated on its device.
        vae: diffusers' AutoencoderKL; brought to that device for decoding and back.
        conditioner: Turns text into cross-attention inputs.
        scheduler_config: The model's scheduler configuration.
        scaling_factor: Factor by which the VAE's latents are multiplied to get scaled latents.
        hypernetworks: Hypernetworks attached to the U-Net.
        cell: Pixels per side of a latent.
        tiled: Whether large images are decoded in tiles, even if the VAE does not encode in tiles.
        zeroes_empty_text: Whether an empty negative prompt is zeros instead of the encoded empty
            text; diffusers' `force_zeros_for_empty_prompt`.
        text_settings: Settings for reading text that are not A1111's defaults, by A1111's names.
    """

    unet: Any
    vae: Any
    conditioner: TextConditioner
    scheduler_config: Mapping[str, Any]
    scaling_factor: float
    hypernetworks: HypernetworkStack = field(default_factory=HypernetworkStack)
    cell: int = CELL
    tiled: bool = False
    zeroes_empty_text: bool = False
    text_settings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: BaseModel, clip_skip: int | None = None, layout: TextLayout | None = None
    ) -> Sampler:
        """Build a sampler for a loaded model.

        Args:
            model: The model.
            clip_skip: CLIP layer, counted from the end; None means that stated in the file, or the
                last.
            layout: Layout of prompts; None means that stated in the file, or A1111's.
        """
        metadata = model.contents.metadata
        layer = trained_clip_skip(model.contents) if clip_skip is None else clip_skip
        layout = layout or prompt_layout(metadata)
        tokens = build_tokens(model, layout)
        states = TextStates.of(model, layer)
        return cls(
            model.unet,
            model.vae,
            ClipTextConditioner(tokens, states, states.shape, sizes=model.family.sizes),
            model.scheduler_config,
            model.scaling_factor,
            cell=model.family.cell,
            zeroes_empty_text=model.contents.zeroes_empty_text,
            text_settings=text_settings(layer, layout.emphasis),
        )

    @torch.no_grad()
    def draw(self, prompt: Prompt, stepped: Advance = _unheard) -> Image.Image:
        """Generate one image; the same prompt gives the same image.

        Args:
            prompt: Prompt and settings.
            stepped: Called after each sampler step; an exception that it raises ends the sampling.

        Raises:
            ConfigError: A number of the prompt is out of its range, or it names a hypernetwork that
                is not loaded.
        """
        with self.hypernetworks.at(prompt.strengths):
            return self._to_images([self._latents(prompt, stepped)])[0]

    @torch.no_grad()
    def generate_all(self, prompts: Sequence[Prompt], drawn: Advance) -> list[Image.Image]:
        """Generate several images; the VAE is brought to the device once, after all are sampled.

        Args:
            prompts: Prompts and settings.
            drawn: Called for each image that only remains to be decoded.

        Raises:
            ConfigError: A number of a prompt is out of its range, or one names a hypernetwork that
                is not loaded.
        """
        latents = []
        for prompt in prompts:
            with self.hypernetworks.at(prompt.strengths):
                latents.append(self._latents(prompt))
            drawn(1)
        return self._to_images(latents)

    def _latents(self, prompt: Prompt, stepped: Advance = _unheard) -> Tensor:
        """Return the latents at the end of the sampler's steps."""
        require_drawable(prompt, self.cell)
        scheduler = build_scheduler(prompt.sampler, self.scheduler_config, prompt.steps)
        set_timesteps(scheduler, prompt.steps, self.unet.device)
        whole = Geometry.whole(Size(prompt.width, prompt.height))
        conditioning = self.conditioner([prompt.plain_text, prompt.negative], [whole, whole])
        if self.zeroes_empty_text:
            conditioning = without_text(conditioning, [False, not prompt.negative.strip()])
        conditioning = conditioning.to(self.unet.device)
        if prompt.guidance_scale == 1:
            conditioning = conditioning[:1]
        generator = torch.Generator().manual_seed(prompt.seed)
        shape = (1, CHANNELS, prompt.height // self.cell, prompt.width // self.cell)
        latents = torch.randn(shape, generator=generator).to(self.unet.device)
        latents = latents * scheduler.init_noise_sigma
        takes = inspect.signature(scheduler.step).parameters
        options = {"generator": generator} if "generator" in takes else {}
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, t)
            output = self._guided(scaled, t, conditioning, prompt)
            latents = scheduler.step(output, t, latents, **options).prev_sample
            stepped(1)
        return latents  # type: ignore[no-any-return]

    def _guided(
        self, latents: Tensor, t: Tensor, conditioning: Conditioning, prompt: Prompt
    ) -> Tensor:
        """Return the output with classifier-free guidance.

        Ho and Salimans 2022 (arXiv:2207.12598), eq. 6. The scale is 1 + w of the paper, as
        everywhere in Stable Diffusion.
        """
        scale = prompt.guidance_scale
        if scale == 1:
            return self.unet(latents, t, **conditioning.arguments).sample.float()  # type: ignore[no-any-return]
        both = self.unet(latents.repeat(2, 1, 1, 1), t, **conditioning.arguments).sample
        wanted, unwanted = both.float().chunk(2)
        guided = unwanted + scale * (wanted - unwanted)
        return rescaled(guided, wanted, prompt.guidance_rescale)

    def _to_images(self, drawn: Sequence[Tensor]) -> list[Image.Image]:
        device = self.unet.device
        plain = torch.autocast(device.type, enabled=False)  # float16 overflows in this VAE
        images = []
        tiles = vae_module.tiling(self.vae, tiled=self.tiled)
        with on_device(self.vae, device), plain, tiles:
            for latents in drawn:
                pixels = vae_module.decode(self.vae, latents, self.scaling_factor)[0]
                array = (pixels.permute(1, 2, 0).cpu().numpy() * 255 + 0.5).astype(np.uint8)
                images.append(Image.fromarray(array))
        return images


ZERO_SNR_RESCALE = 0.7
"""The guidance rescale that suits models with zero terminal SNR: without it, guidance makes their
images too bright or dark. Lin et al. 2023 (arXiv:2305.08891), section 3.4, found 0.7 for a guidance
of 7.5."""


def rescale_advice(
    scheduler_config: Mapping[str, Any], prompts: Iterable[Prompt], setting: str
) -> str:
    """Return advice for models whose images guidance makes too bright or dark; empty for others.

    Args:
        scheduler_config: The model's scheduler configuration.
        prompts: Prompts and settings of the images.
        setting: Setting of the rescale, as the user writes it.
    """
    plain = any(p.guidance_scale > 1 and not p.guidance_rescale for p in prompts)
    if not (plain and scheduler_config.get(_RESCALED)):
        return ""
    return (
        f"The model's noise schedule ends in pure noise (zero terminal SNR), and guidance can make "
        f"its images too bright or dark. If it does, set {setting}: {ZERO_SNR_RESCALE} is the "
        f"value of arXiv:2305.08891, section 3.4."
    )


def rescaled(
    guided: Float[Tensor, "b c h w"], wanted: Float[Tensor, "b c h w"], fraction: float
) -> Float[Tensor, "b c h w"]:
    """Rescale guided output towards the standard deviation of the output for the prompt alone.

    Lin et al. 2023 (arXiv:2305.08891), eq. 15 and 16; the deviation is that of each sample over all
    of its values.

    Args:
        guided: The U-Net's output with guidance.
        wanted: Its output for the prompt, without guidance.
        fraction: Fraction of the rescaled output in the result, from 0 (unchanged) to 1.
    """
    if fraction == 0:
        return guided
    over = (1, 2, 3)
    before, after = guided.std(over, keepdim=True), wanted.std(over, keepdim=True)
    return fraction * guided * (after / before) + (1 - fraction) * guided


EXTRA: dict[str, dict[str, Any]] = {
    "pndm": {"skip_prk_steps": True},
    "dpmsolver": {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
}
"""Additional options of samplers."""
UNSTATED = {
    "beta_schedule": "scaled_linear",
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""Stable Diffusion's values for settings that a configuration, such as that of PNDM or Euler, does
not state: the noise schedule that models are trained with then (`schedule_of`), and the values of
diffusers' StableDiffusionPipeline and of its configurations. The defaults of diffusers' classes
differ."""


def build_scheduler(name: str, config: Mapping[str, Any], steps: int | None = None) -> Any:
    """Return one of diffusers' schedulers with the model's noise schedule and prediction type.

    Latents are never clipped to [-1, 1], whatever the configuration states: they exceed that range
    (diffusers' StableDiffusionPipeline does the same).

    Args:
        name: Name of the sampler.
        config: The model's scheduler configuration.
        steps: Number of steps that it will take. Stable Diffusion's are one timestep later than
            even ones (`steps_offset`), which for as many steps as there are timesteps would be one
            too late.

    Raises:
        ConfigError: No sampler has that name, or the configuration needs a package that is not
            installed.
    """
    require_sampler(name)
    kept = {k: v for k, v in config.items() if not k.startswith("_") and k != "skip_prk_steps"}
    if kept.get("use_beta_sigmas") and find_spec("scipy") is None:
        raise ConfigError(
            "The model's scheduler configuration spaces its steps by the beta distribution "
            "(use_beta_sigmas), which needs SciPy: install it beside Impasto, or set this to false."
        )
    kept = {**UNSTATED, **kept, "clip_sample": False}
    factory = _factory(name)
    if steps is not None:
        kept |= _for_all_timesteps(SAMPLERS[name], steps, kept.get("num_train_timesteps", 1000))
    takes = inspect.signature(factory.__init__).parameters
    if kept.get(_RESCALED) and _RESCALED not in takes:
        kept["trained_betas"] = _rescaled_betas(kept)
    return factory.from_config({**kept, **EXTRA.get(name, {})})


def _for_all_timesteps(scheduler: str, steps: int, timesteps: int) -> dict[str, Any]:
    """Return further options if a sampler takes nearly as many steps as there are timesteps.

    DPMSolverMultistepScheduler spaces one step more than it takes. "leading" and "linspace" then
    give it the same timestep twice, and it divides by their difference; "trailing" does not.
    """
    found: dict[str, Any] = {"steps_offset": 0} if steps >= timesteps else {}
    if scheduler == "DPMSolverMultistepScheduler" and steps + 1 >= timesteps:
        found["timestep_spacing"] = "trailing"
    return found


def _factory(name: str) -> Any:
    """Return the class of a sampler by its name."""
    if name == "lms":
        from impasto.sampling.multistep import LinearMultistepScheduler

        return LinearMultistepScheduler
    import diffusers

    return getattr(diffusers, SAMPLERS[name])


_RESCALED = "rescale_betas_zero_snr"
LEAST_SIGNAL = 2.0**-24
"""The fraction of the image's power at the last step of a rescaled schedule, where samplers would
otherwise divide by zero; diffusers' own schedulers with that setting use the same value."""


def _rescaled_betas(config: Mapping[str, Any]) -> list[float]:
    """Return betas rescaled to zero terminal SNR, for diffusers' samplers that cannot rescale."""
    kept = schedule_of(config).alphas_cumprod.double().clamp(min=LEAST_SIGNAL)
    before = torch.cat([torch.ones(1, dtype=kept.dtype), kept[:-1]])
    betas: list[float] = (1 - kept / before).tolist()
    return betas


def save_png(
    image: Image.Image, path: Path, prompt: Prompt, more: Mapping[str, str] | None = None
) -> None:
    """Write a PNG with the prompt, its settings, and the settings `more`, as `parameters` text."""
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", prompt.parameters(more or {}))
    with files.replace_file(path) as partial, partial.open("wb") as file:
        image.save(file, format="PNG", pnginfo=info)


def make_grid(images: list[Image.Image], columns: int, gap: int = 4) -> Image.Image:
    """Lay images out in rows on white; cells are as large as the largest image."""
    width, height = max(i.width for i in images), max(i.height for i in images)
    rows = -(-len(images) // columns)
    grid = Image.new(
        "RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), (255, 255, 255)
    )
    for index, image in enumerate(images):
        grid.paste(image, (index % columns * (width + gap), index // columns * (height + gap)))
    return grid
