"""The small files of a Diffusers folder, as diffusers writes them for Stable Diffusion."""

from __future__ import annotations

from typing import Any

DIFFUSERS_VERSION = "0.42.1"
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}


def model_index() -> dict[str, Any]:
    """`model_index.json`: the classes of the parts; no safety checker."""
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", CLASSES["text_encoder"]],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", CLASSES["unet"]],
        "vae": ["diffusers", CLASSES["vae"]],
    }


def scheduler_config(prediction_type: str) -> dict[str, Any]:
    """`scheduler_config.json`: the schedule of all Stable Diffusion 1.x and 2.x models."""
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": prediction_type,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }


ZERO_TERMINAL_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
"""What a scheduler has to be told of a schedule that ends in noise alone; arXiv:2305.08891."""


def part_config(part: str, config: dict[str, Any]) -> dict[str, Any]:
    """`config.json` of a part, with the names that from_pretrained looks for."""
    if part == "text_encoder":
        named = {"architectures": [CLASSES[part]], "model_type": "clip_text_model"}
    else:
        named = {"_class_name": CLASSES[part], "_diffusers_version": DIFFUSERS_VERSION}
    return {**named, **config}
