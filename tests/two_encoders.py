"""A family with two text encoders, three levels and another scaling factor: a row, no code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from impasto.checkpoints.keymap import ComponentKind, clip_naming, open_clip_naming, unet_naming
from impasto.diffusion.prediction import EPSILON
from impasto.models.families import FAMILIES, SD1
from impasto.models.family import Component, Family, Pipeline, Reading, SizeConditioning
from impasto.models.writing.architectures import Architecture, write_random_model

FIRST = SD1.text_encoders[0]
SECOND = Component(
    name="text_encoder_2",
    kind=ComponentKind.TEXT,
    naming=open_clip_naming("conditioner.embedders.1.", projects=True),
    folder="text_encoder_2",
    stems=FIRST.stems,
    library="transformers",
    class_name="CLIPTextModelWithProjection",
    reading=Reading(1280, "gelu", "tokenizer_2", "!", 0, layer=2, final_norm=False, pooled=True),
)
TWO = Family(
    key="two",
    name="Two encoders",
    generation="Two encoders",
    components=(
        replace(
            SD1.unet,
            naming=unet_naming("model.diffusion_model.", takes_pooled=True),
            channels=(320, 640, 1280),
        ),
        SD1.vae,
        replace(
            FIRST,
            naming=clip_naming("conditioner.embedders.0."),
            reading=replace(FIRST.text, layer=2, final_norm=False),
        ),
        SECOND,
    ),
    prediction=EPSILON,
    linear_projection=True,
    head_count=None,
    upcast_attention=False,
    takes_any_layer=False,
    architecture="two-encoders",
    resolution=1024,
    pipeline=Pipeline(
        "StableDiffusionXLPipeline",
        {"feature_extractor": [None, None], "image_encoder": [None, None]},
        empty_text_entry="force_zeros_for_empty_prompt",
    ),
    scaling_factor=0.13025,
    sizes=SizeConditioning(8),
)


OTHERS = tuple(family for family in FAMILIES if family.generation != "SDXL")
"""The table without the rows that this one resembles."""


def with_row(monkeypatch) -> None:
    """Replace the rows that resemble this one by this one, for a test."""
    from impasto.models import families

    monkeypatch.setattr(families, "FAMILIES", (*OTHERS, TWO))


def without_row(monkeypatch) -> None:
    """Remove the rows that resemble this one, for a test."""
    from impasto.models import families

    monkeypatch.setattr(families, "FAMILIES", OTHERS)


def architecture(nano: Architecture, family: Family = TWO) -> Architecture:
    """Return SD 1's nano architecture, changed as such a family needs."""
    unet, vae, text_encoder = nano.configs
    second = {
        **text_encoder,
        "hidden_size": 24,
        "intermediate_size": 48,
        "projection_dim": 20,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    }
    assert family.sizes is not None
    return Architecture(
        family,
        (
            {
                **unet,
                "block_out_channels": [8, 16, 16],
                "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
                "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
                "cross_attention_dim": 16 + 24,
                "attention_head_dim": [1, 2, 2],
                "use_linear_projection": True,
                "transformer_layers_per_block": [1, 1, 2],
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": family.sizes.width,
                "projection_class_embeddings_input_dim": 20 + 6 * family.sizes.width,
            },
            {**vae, "scaling_factor": family.scaling_factor},
            text_encoder,
            second,
        ),
    )


def write_model(nano: Architecture, folder: Path, family: Family = TWO) -> Path:
    """Write a Diffusers folder with random weights."""
    write_random_model(architecture(nano, family), folder, seed=0, dtype=torch.float32)
    return folder
