"""The table of model families: each difference between them is a column here, not a branch.

A family is a row: its networks (`Component`), and how they are used. The names of networks are
written here, in the settings and in tests, and nowhere else. Lower layers do not see the table;
they are passed the parts that they need as plain data: a `FileLayout`, a `FolderLayout`.

Facts: CompVis/stable-diffusion `configs/stable-diffusion/v1-inference.yaml`, Stability-AI
stablediffusion `configs/stable-diffusion/v2-inference*.yaml`, and the configurations of their
Diffusers folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from impasto.checkpoints.keymap import (
    ComponentKind,
    FileLayout,
    clip_naming,
    open_clip_naming,
    unet_naming,
    vae_naming,
)
from impasto.checkpoints.weight_files import FolderLayout, Stems
from impasto.data.caching.npz import SDXL_ENDINGS
from impasto.diffusion.prediction import EPSILON, VELOCITY
from impasto.models.family import Component, Family, Pipeline, Reading, SizeConditioning

T = TypeVar("T")

STABLE_DIFFUSION = Pipeline(
    "StableDiffusionPipeline",
    {
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
    },
)
STABLE_DIFFUSION_XL = Pipeline(
    "StableDiffusionXLPipeline",
    {"feature_extractor": [None, None], "image_encoder": [None, None]},
    empty_text_entry="force_zeros_for_empty_prompt",
)

_UNET = Component(
    name="unet",
    kind=ComponentKind.UNET,
    naming=unet_naming("model.diffusion_model."),
    folder="unet",
    stems=Stems("diffusion_pytorch_model"),
    library="diffusers",
    class_name="UNet2DConditionModel",
    channels=(320, 640, 1280, 1280),
)
_VAE = Component(
    name="vae",
    kind=ComponentKind.VAE,
    naming=vae_naming("first_stage_model."),
    folder="vae",
    stems=Stems("diffusion_pytorch_model"),
    library="diffusers",
    class_name="AutoencoderKL",
    channels=(128, 256, 512, 512),
)
_CLIP = Component(
    name="text_encoder",
    kind=ComponentKind.TEXT,
    naming=clip_naming("cond_stage_model."),
    folder="text_encoder",
    stems=Stems("model", former=("pytorch_model",)),
    library="transformers",
    class_name="CLIPTextModel",
    reading=Reading(768, "quick_gelu", "tokenizer", pad_token="<|endoftext|>", pad_id=49407),
)
_OPEN_CLIP = replace(  # cut to 23 of 24 layers: stablediffusion's `layer: penultimate`
    _CLIP,
    naming=open_clip_naming("cond_stage_model.", used=23),
    reading=Reading(1024, "gelu", "tokenizer", pad_token="!", pad_id=0, eats_pad=True),
)

SD1 = Family(
    key="sd1",
    name="SD 1.x",
    generation="SD 1.x",
    components=(_UNET, _VAE, _CLIP),
    prediction=EPSILON,
    linear_projection=False,
    head_count=8,
    upcast_attention=False,
    takes_any_layer=True,
    architecture="stable-diffusion-v1",
    resolution=512,
    pipeline=STABLE_DIFFUSION,
    base_version="sd_v1",
)
SD2_BASE = Family(
    key="sd2-base",
    name="SD 2.x base",
    generation="SD 2.x",
    components=(_UNET, _VAE, _OPEN_CLIP),
    prediction=EPSILON,
    linear_projection=True,
    head_count=None,
    upcast_attention=True,
    takes_any_layer=False,
    architecture="stable-diffusion-v2-512",
    resolution=512,
    pipeline=STABLE_DIFFUSION,
    base_version="sd_v2",
)
SD2_V = replace(
    SD2_BASE,
    key="sd2-v",
    name="SD 2.x 768-v",
    prediction=VELOCITY,
    architecture="stable-diffusion-v2-768-v",
    resolution=768,
    base_version="sd_v2_v",
)
_CLIP_L = replace(
    _CLIP,
    naming=clip_naming("conditioner.embedders.0."),
    reading=replace(_CLIP.text, layer=2, final_norm=False),
)
_BIG_G = replace(
    _CLIP,
    name="text_encoder_2",
    naming=open_clip_naming("conditioner.embedders.1.", projects=True),
    folder="text_encoder_2",
    class_name="CLIPTextModelWithProjection",
    reading=Reading(
        1280, "gelu", "tokenizer_2", pad_token="!", pad_id=0, layer=2, final_norm=False, pooled=True
    ),
)
SDXL = Family(
    key="sdxl",
    name="SDXL",
    generation="SDXL",
    components=(
        replace(
            _UNET,
            naming=unet_naming("model.diffusion_model.", takes_pooled=True),
            channels=(320, 640, 1280),
        ),
        _VAE,
        _CLIP_L,
        _BIG_G,
    ),
    prediction=EPSILON,
    linear_projection=True,
    head_count=None,
    upcast_attention=False,
    takes_any_layer=False,
    architecture="stable-diffusion-xl-v1-base",
    resolution=1024,
    pipeline=STABLE_DIFFUSION_XL,
    scaling_factor=0.13025,
    sizes=SizeConditioning(256),
    depths=(0, 2, 10),
    npz_endings=SDXL_ENDINGS,
    text_npz_ending="_te_outputs.npz",
    base_version="sdxl_base_v1-0",
    lora_by_file_names=True,
)
SDXL_V = replace(SDXL, key="sdxl-v", name="SDXL v-pred", prediction=VELOCITY, mark="v_pred")
FAMILIES: tuple[Family, ...] = (SD1, SD2_BASE, SD2_V, SDXL, SDXL_V)

RELATIVES = {
    (0, 2, 4): "SSD-1B", (0, 1, 2): "Segmind Vega", (0, 2, 5): "KOALA 700M", (0, 2, 6): "KOALA 1B",
}  # fmt: skip
"""Smaller models distilled from SDXL, by their depths; ComfyUI `comfy/supported_models.py`."""

BY_SETTING = {
    "unet": ComponentKind.UNET,
    "text_encoder": ComponentKind.TEXT,
    "vae": ComponentKind.VAE,
}
"""Names of the kinds of networks in settings and options, as in `saving.vae_dtype`."""


def by_kind(values: Mapping[str, T]) -> dict[ComponentKind, T]:
    """Return values given per setting name (`unet`, `text_encoder`, `vae`) by kind of network."""
    return {BY_SETTING[setting]: value for setting, value in values.items()}


def file_layouts() -> tuple[FileLayout, ...]:
    """Return how single files of all families name their networks, without duplicates."""
    return tuple(dict.fromkeys(family.layout for family in FAMILIES))


def folder_layouts(pipeline: object = None) -> tuple[FolderLayout, ...]:
    """Return the layouts of the Diffusers folders of all families, or of one pipeline class's.

    Args:
        pipeline: diffusers' name of the class; if no family has it, the layouts of all are
            returned.
    """
    named = [family for family in FAMILIES if family.pipeline.class_name == pipeline]
    return tuple(dict.fromkeys(family.folders for family in named or FAMILIES))


def components_of(layout: FolderLayout) -> tuple[Component, ...]:
    """Return the networks of the first family that has these folders."""
    return next(family.components for family in FAMILIES if family.folders == layout)


def known_as() -> str:
    """Return the names of the families as part of a sentence: `SD 1.x or SD 2.x`."""
    return " or ".join(dict.fromkeys(family.generation for family in FAMILIES))


def dialect_of(name: str, activation: object) -> str | None:
    """Return the dialect of the text encoder with this name and activation, or None."""
    return next(
        (
            component.naming.dialect
            for family in FAMILIES
            for component in family.text_encoders
            if component.name == name and component.text.activation == activation
        ),
        None,
    )
