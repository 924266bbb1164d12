"""The map between the names of LDM files and those of diffusers, one table for both directions.

LDM names are CompVis' (`ldm/modules/diffusionmodules/openaimodel.py`, `model.py`) and open_clip's;
the other side is diffusers' UNet2DConditionModel and AutoencoderKL and transformers' CLIPTextModel
without its former prefix `text_model.`. A row pairs two modules; what follows a module's name is
the same on both sides. The layout of a network is read from its names, so the map fits any size.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

UNET, VAE, TEXT_ENCODER = "unet", "vae", "text_encoder"
PARTS = (UNET, VAE, TEXT_ENCODER)
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model."
CLIP_PREFIX = "cond_stage_model.transformer.text_model."
OPEN_CLIP_PREFIX = "cond_stage_model.model."

Row = tuple[str, str]

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
)
OPEN_CLIP_LAYER: tuple[Row, ...] = (
    ("ln_1", "layer_norm1"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)
FUSED = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$")
SEPARATE = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)$")
_NUMBER = re.compile("[0-9]{1,3}")  # a block 100000 is a damaged name, not a large network
CONVOLVED = re.compile(r"\.mid\.attn_1\.(q|k|v|proj_out)\.weight$")


@dataclass(frozen=True)
class UNetLayout:
    """How many levels a U-Net has, residual blocks per level, and which levels have attention."""

    attention: tuple[bool, ...]
    layers: int

    @classmethod
    def of_ldm(cls, names: Collection[str]) -> UNetLayout:
        """From LDM names without their prefix."""
        blocks = _indices(names, "input_blocks")
        downs = sum(f"input_blocks.{n}.0.op.weight" in names for n in blocks)
        levels = downs + 1
        layers = max((max(blocks, default=0) - downs) // levels, 1)
        firsts = (1 + level * (layers + 1) for level in range(levels))
        return cls(tuple(f"input_blocks.{n}.1.norm.weight" in names for n in firsts), layers)

    @classmethod
    def of_diffusers(cls, names: Collection[str]) -> UNetLayout:
        """From diffusers' names."""
        levels = _indices(names, "down_blocks")
        attention = (f"down_blocks.{n}.attentions.0.norm.weight" in names for n in levels)
        return cls(tuple(attention), max(len(_indices(names, "down_blocks.0.resnets")), 1))


@dataclass(frozen=True)
class VaeLayout:
    """How many levels a VAE has, and residual blocks per level of the encoder."""

    levels: int
    layers: int

    @classmethod
    def of_ldm(cls, names: Collection[str]) -> VaeLayout:
        """From LDM names without their prefix."""
        levels = len(_indices(names, "encoder.down"))
        return cls(levels, len(_indices(names, "encoder.down.0.block")))

    @classmethod
    def of_diffusers(cls, names: Collection[str]) -> VaeLayout:
        """From diffusers' names."""
        levels = len(_indices(names, "encoder.down_blocks"))
        return cls(levels, len(_indices(names, "encoder.down_blocks.0.resnets")))


class PartMap:
    """The names of one part, both ways.

    Args:
        part: `unet`, `vae` or `text_encoder`.
        prefix: What LDM puts before the part's names.
        rows: Pairs of module names, LDM's first. A name that no row covers is the same on both
            sides.
    """

    def __init__(self, part: str, prefix: str, rows: Iterable[Row]) -> None:
        self.part, self.prefix = part, prefix
        rows = tuple(rows)
        self._to_ours = dict(rows)
        self._to_ldm = {ours: ldm for ldm, ours in rows}

    def to_ours(self, name: str) -> tuple[str, ...]:
        """LDM's full name -> our names: one, or three where LDM fuses query, key and value."""
        inner = name.removeprefix(self.prefix)
        if self.prefix == OPEN_CLIP_PREFIX and (match := FUSED.match(inner)):
            layer = f"encoder.layers.{match[1]}.self_attn"
            return tuple(f"{layer}.{letter}_proj.{match[2]}" for letter in "qkv")
        return (_replaced(inner, self._to_ours),)

    def to_ldm(self, name: str) -> str:
        """Our name -> LDM's full name."""
        if self.prefix == OPEN_CLIP_PREFIX and (match := SEPARATE.match(name)):
            return f"{self.prefix}transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"
        return self.prefix + _replaced(name, self._to_ldm)


def unet_map(layout: UNetLayout) -> PartMap:
    """The U-Net's names."""
    return PartMap(UNET, UNET_PREFIX, _unet_rows(layout))


def vae_map(layout: VaeLayout) -> PartMap:
    """The VAE's names."""
    return PartMap(VAE, VAE_PREFIX, _vae_rows(layout))


def clip_map() -> PartMap:
    """The names of SD 1's text encoder, which are the same on both sides."""
    return PartMap(TEXT_ENCODER, CLIP_PREFIX, ())


def open_clip_map(layers: int) -> PartMap:
    """The names of SD 2's text encoder."""
    return PartMap(TEXT_ENCODER, OPEN_CLIP_PREFIX, _open_clip_rows(layers))


def ema_name(name: str) -> str:
    """Where LDM keeps the averaged copy of a U-Net tensor; CompVis' `ldm/modules/ema.py`."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


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
        place = 2 if attention else 1
        up = f"up_blocks.{level}.upsamplers.0.conv"
        yield f"output_blocks.{first + layers}.{place}.conv", up


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


def _replaced(name: str, table: dict[str, str]) -> str:
    """Replace the longest module name at the beginning that the table has."""
    words = name.split(".")
    for cut in range(len(words), 0, -1):
        found = table.get(".".join(words[:cut]))
        if found is not None:
            return ".".join([found, *words[cut:]])
    return name


def _indices(names: Iterable[str], module: str) -> list[int]:
    """The numbers that follow `module.` in the names, in order."""
    start = f"{module}."
    found = {name[len(start) :].partition(".")[0] for name in names if name.startswith(start)}
    return sorted(int(number) for number in found if _NUMBER.fullmatch(number))
