"""Pairs of LDM's and diffusers' module names, in rows that follow from a network's layout.

LDM names are CompVis' (`ldm/modules/diffusionmodules/openaimodel.py`, `model.py`) and open_clip's;
the others are those of diffusers' UNet2DConditionModel and AutoencoderKL and transformers'
CLIPTextModel without its former prefix `text_model.`. A row pairs two modules; the rest of a name
after the module is the same on both sides. The layout of a network is derived from its names, so
the rows fit any size.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

Row = tuple[str, str]
ParameterNames = Collection[str]

RESNET: tuple[Row, ...] = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)
UNET_ENDS: tuple[Row, ...] = (
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("middle_block.1", "mid_block.attentions.0"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
)
VAE_MIDDLE: tuple[Row, ...] = (
    ("norm_out", "conv_norm_out"),
    ("mid.block_1", "mid_block.resnets.0"),
    ("mid.block_2", "mid_block.resnets.1"),
    ("mid.attn_1.norm", "mid_block.attentions.0.group_norm"),
    ("mid.attn_1.q", "mid_block.attentions.0.to_q"),
    ("mid.attn_1.k", "mid_block.attentions.0.to_k"),
    ("mid.attn_1.v", "mid_block.attentions.0.to_v"),
    ("mid.attn_1.proj_out", "mid_block.attentions.0.to_out.0"),
)
OPEN_CLIP_ENDS: tuple[Row, ...] = (
    ("token_embedding", "embeddings.token_embedding"),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("ln_final", "final_layer_norm"),
    ("text_projection", "text_projection.weight"),
)
UPRIGHT_PROJECTION: Row = ("text_projection.weight", "text_projection.weight")
"""The projection stored like a linear layer's weight, not transposed; ComfyUI's `comfy/utils.py`
reads it if there is no `text_projection`."""
OPEN_CLIP_LAYERS = "transformer.resblocks."
OPEN_CLIP_LAYER: tuple[Row, ...] = (
    ("ln_1", "layer_norm1"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)
_NUMBER = re.compile("[0-9]{1,3}")  # a block 100000 is a damaged name, not a large network


@dataclass(frozen=True)
class UNetLayout:
    """A U-Net's levels, with and without attention, and its residual blocks per level."""

    attention: tuple[bool, ...]
    layers: int

    @classmethod
    def of_ldm(cls, names: Collection[str]) -> UNetLayout:
        """Derive the layout of a U-Net from LDM names of its tensors without their prefix."""
        blocks = indices_of(names, "input_blocks")
        downs = sum(f"input_blocks.{n}.0.op.weight" in names for n in blocks)
        levels = downs + 1
        layers = max((max(blocks, default=0) - downs) // levels, 1)
        firsts = (1 + level * (layers + 1) for level in range(levels))
        return cls(tuple(f"input_blocks.{n}.1.norm.weight" in names for n in firsts), layers)

    @classmethod
    def of_diffusers(cls, names: Collection[str]) -> UNetLayout:
        """Derive the layout of a U-Net from diffusers' names of its tensors."""
        levels = indices_of(names, "down_blocks")
        attention = (f"down_blocks.{n}.attentions.0.norm.weight" in names for n in levels)
        return cls(tuple(attention), max(len(indices_of(names, "down_blocks.0.resnets")), 1))


@dataclass(frozen=True)
class VaeLayout:
    """The number of levels of a VAE, and of residual blocks per level of the encoder."""

    levels: int
    layers: int

    @classmethod
    def of_ldm(cls, names: Collection[str]) -> VaeLayout:
        """Derive the layout of a VAE from LDM names of its tensors without their prefix."""
        levels = len(indices_of(names, "encoder.down"))
        return cls(levels, len(indices_of(names, "encoder.down.0.block")))

    @classmethod
    def of_diffusers(cls, names: Collection[str]) -> VaeLayout:
        """Derive the layout of a VAE from diffusers' names of its tensors."""
        levels = len(indices_of(names, "encoder.down_blocks"))
        return cls(levels, len(indices_of(names, "encoder.down_blocks.0.resnets")))


def no_rows(_: ParameterNames) -> Iterable[Row]:
    """Return no rows, for a network whose tensors have the same names in files and in diffusers."""
    return ()


def unet_rows_of_file(names: ParameterNames) -> Iterable[Row]:
    """Return the rows of a U-Net with these LDM names."""
    return _unet_rows(UNetLayout.of_ldm(names))


def unet_rows_of_ours(names: ParameterNames) -> Iterable[Row]:
    """Return the rows of a U-Net with these diffusers names."""
    return _unet_rows(UNetLayout.of_diffusers(names))


def vae_rows_of_file(names: ParameterNames) -> Iterable[Row]:
    """Return the rows of a VAE with these LDM names."""
    return _vae_rows(VaeLayout.of_ldm(names))


def vae_rows_of_ours(names: ParameterNames) -> Iterable[Row]:
    """Return the rows of a VAE with these diffusers names."""
    return _vae_rows(VaeLayout.of_diffusers(names))


def open_clip_rows_of_file(names: ParameterNames) -> Iterable[Row]:
    """Yield the rows of an OpenCLIP text encoder with these names in a single file."""
    yield from _open_clip_rows(len(indices_of(names, OPEN_CLIP_LAYERS.removesuffix("."))))
    if "text_projection" not in names:
        yield UPRIGHT_PROJECTION


def open_clip_rows_of_ours(names: ParameterNames) -> Iterable[Row]:
    """Return the rows of an OpenCLIP text encoder with these transformers names."""
    return _open_clip_rows(len(indices_of(names, "encoder.layers")))


def _unet_rows(layout: UNetLayout) -> Iterator[Row]:
    yield from UNET_ENDS
    yield from _under("middle_block.0", "mid_block.resnets.0", RESNET)
    yield from _under("middle_block.2", "mid_block.resnets.1", RESNET)
    levels, layers = len(layout.attention), layout.layers
    for level in range(levels):
        first = 1 + level * (layers + 1)
        for number in range(layers):
            block = f"input_blocks.{first + number}"
            yield from _under(f"{block}.0", f"down_blocks.{level}.resnets.{number}", RESNET)
            yield f"{block}.1", f"down_blocks.{level}.attentions.{number}"
        down = f"down_blocks.{level}.downsamplers.0.conv"
        yield f"input_blocks.{first + layers}.0.op", down
    for level, attention in enumerate(reversed(layout.attention)):
        first = level * (layers + 1)
        for number in range(layers + 1):
            block = f"output_blocks.{first + number}"
            yield from _under(f"{block}.0", f"up_blocks.{level}.resnets.{number}", RESNET)
            if attention:
                yield f"{block}.1", f"up_blocks.{level}.attentions.{number}"
        index = 2 if attention else 1
        up = f"up_blocks.{level}.upsamplers.0.conv"
        yield f"output_blocks.{first + layers}.{index}.conv", up


def _vae_rows(layout: VaeLayout) -> Iterator[Row]:
    for half in ("encoder", "decoder"):
        yield from _under(half, half, VAE_MIDDLE)
    for level in range(layout.levels):
        mirrored = layout.levels - 1 - level
        yield from _vae_level("encoder.down", level, "encoder.down_blocks", level, layout.layers)
        yield from _vae_level("decoder.up", mirrored, "decoder.up_blocks", level, layout.layers + 1)
        down, up = f"encoder.down.{level}.downsample", f"decoder.up.{mirrored}.upsample"
        yield f"{down}.conv", f"encoder.down_blocks.{level}.downsamplers.0.conv"
        yield f"{up}.conv", f"decoder.up_blocks.{level}.upsamplers.0.conv"


def _vae_level(ldm: str, theirs: int, ours: str, level: int, layers: int) -> Iterator[Row]:
    for number in range(layers):
        block, resnet = f"{ldm}.{theirs}.block.{number}", f"{ours}.{level}.resnets.{number}"
        yield f"{block}.nin_shortcut", f"{resnet}.conv_shortcut"
        yield block, resnet


def _open_clip_rows(layers: int) -> Iterator[Row]:
    yield from OPEN_CLIP_ENDS
    for n in range(layers):
        yield from _under(f"transformer.resblocks.{n}", f"encoder.layers.{n}", OPEN_CLIP_LAYER)


def _under(ldm: str, ours: str, rows: Iterable[Row]) -> Iterator[Row]:
    return ((f"{ldm}.{theirs}", f"{ours}.{own}") for theirs, own in rows)


def indices_of(names: Iterable[str], module: str) -> list[int]:
    """Return the numbers that follow `module.` in the names, in ascending order."""
    start = f"{module}."
    found = {name[len(start) :].partition(".")[0] for name in names if name.startswith(start)}
    return sorted(int(number) for number in found if _NUMBER.fullmatch(number))
