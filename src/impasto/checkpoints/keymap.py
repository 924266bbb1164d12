"""The map between the names of LDM files and those of diffusers, one table for both directions.

What is here knows how a sort of network is named. Which networks a family has, under which
prefixes, is the table of `models/families.py`, which hands a `FileLayout` down.

LDM names are CompVis' (`ldm/modules/diffusionmodules/openaimodel.py`, `model.py`) and open_clip's;
the other side is diffusers' UNet2DConditionModel and AutoencoderKL and transformers' CLIPTextModel
without its former prefix `text_model.`. A row pairs two modules; what follows a module's name is
the same on both sides. The layout of a network is read from its names, so the map fits any size.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Collection, Iterable, Iterator
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
"""The projection as a linear layer has it, not transposed; ComfyUI's `comfy/utils.py` reads it if
there is no `text_projection`."""
OPEN_CLIP_LAYERS = "transformer.resblocks."
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
        """The layout of a U-Net, told by diffusers' names of its tensors."""
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
        """The layout of a VAE, told by diffusers' names of its tensors."""
        levels = len(_indices(names, "encoder.down_blocks"))
        return cls(levels, len(_indices(names, "encoder.down_blocks.0.resnets")))


class PartKind(enum.Enum):
    """What a network does in a model; the value is what people call it."""

    UNET = "U-Net"
    VAE = "VAE"
    TEXT = "text encoder"


@dataclass(frozen=True)
class Tail:
    """What a file holds of a text encoder beyond what is used: programs look for it.

    Attributes:
        used: Layers that are used of those of a full-size file; None means all.
        spare: Layers that a file has after those.
        ones: Name -> number of dimensions, each the width; a missing one is written as all 1.
    """

    used: int | None = None
    spare: int = 0
    ones: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Naming:
    """How single files name one network.

    Attributes:
        dialect: Whose names they are, in a word for people.
        root: What the names of all tensors begin with that belong to it, used or not.
        prefix: What stands before the names of its own tensors.
        rows_of_file: Names of a file, without the prefix -> pairs of module names.
        rows_of_ours: diffusers' names -> the same pairs.
        entry: A tensor that every such network has, without the prefix; empty if none is sure.
        claims: Beginnings of names, after the prefix, that a file of another kind would have.
        former: What old files have in the place of the prefix.
        fuses_attention: Whether query, key and value are one tensor.
        convolved: Linear layers that are 1x1 convolutions in the file.
        turned: Matrices that the file holds transposed, without the prefix.
        beside: Names that the format has and the network does not use, without the prefix.
        counted: A tensor of 0, 1, 2 ... among these, in whole numbers.
        stale: Beginnings of names, after the root, that are never written again.
        layers: What is before the number of a layer, where the file may have more than are used.
        tail: What comes after those that are used.
        is_averaged: Whether a file may hold its averaged weights besides.
    """

    dialect: str
    root: str
    prefix: str
    rows_of_file: Callable[[ParameterNames], Iterable[Row]]
    rows_of_ours: Callable[[ParameterNames], Iterable[Row]]
    entry: str = ""
    claims: tuple[str, ...] = ()
    former: re.Pattern[str] | None = None
    fuses_attention: bool = False
    convolved: re.Pattern[str] | None = None
    turned: frozenset[str] = frozenset()
    beside: frozenset[str] = frozenset()
    counted: str | None = None
    stale: tuple[str, ...] = ()
    layers: str | None = None
    tail: Tail = Tail()
    is_averaged: bool = False

    def modern(self, name: str) -> str:
        """A name as today's files have it."""
        return name if self.former is None else self.former.sub(self.prefix, name)

    def map_of_file(self, names: ParameterNames) -> ComponentMap:
        """The map for the names of a file, of which others than this network's are passed over."""
        own = {n.removeprefix(self.prefix) for n in names if n.startswith(self.prefix)}
        return ComponentMap(self, self.rows_of_file(own))

    def map_of_ours(self, names: ParameterNames) -> ComponentMap:
        """The map for a network whose diffusers' names these are."""
        return ComponentMap(self, self.rows_of_ours(names))

    def layers_in(self, names: ParameterNames) -> int:
        """Layers that a file has, where these are counted."""
        counted = "" if self.layers is None else self.layers.removesuffix(".")
        return len(_indices(names, self.prefix + counted)) if counted else 0

    def layers_used(self, names: ParameterNames, stated: int | None = None) -> int:
        """How many layers of the text encoder are used."""
        found = self.layers_in(names)
        return stated or (found if self.tail.used is None else min(found, self.tail.used))

    def is_beside(self, name: str, used: int) -> bool:
        """Whether a file's tensor is of the format and not of the network."""
        inner = name.removeprefix(self.prefix)
        if inner == name:
            return False
        if self.layers is not None and inner.startswith(self.layers):
            number = inner.removeprefix(self.layers).partition(".")[0]
            return number.isdigit() and int(number) >= used
        return inner in self.beside


@dataclass(frozen=True)
class NamedPart:
    """A network of a family, as single files have it.

    Attributes:
        name: Its name in the table.
        kind: What it does.
        naming: How it is named there.
    """

    name: str
    kind: PartKind
    naming: Naming


@dataclass(frozen=True)
class FileLayout:
    """The networks of a family in single files, in the order of the table."""

    parts: tuple[NamedPart, ...]

    def of_kind(self, kind: PartKind) -> tuple[NamedPart, ...]:
        """The parts of the layout that are of a kind."""
        return tuple(part for part in self.parts if part.kind is kind)

    def modern(self, name: str) -> str:
        """A name as today's files have it."""
        for part in self.parts:
            name = part.naming.modern(name)
        return name

    def fit(self, names: ParameterNames) -> int:
        """How many of its networks the names of a file are of."""
        modern = [self.modern(name) for name in names]
        return sum(any(n.startswith(p.naming.prefix) for n in modern) for p in self.parts)


def layout_of(names: ParameterNames, layouts: Collection[FileLayout]) -> FileLayout:
    """The layout of a file: the one that finds most networks in it, the first of equals."""
    return max(layouts, key=lambda layout: layout.fit(names))


class ComponentMap:
    """The names of one network, both ways.

    Args:
        naming: How files name it.
        rows: Pairs of module names, the file's first. A name that no row covers is the same on
            both sides.
    """

    def __init__(self, naming: Naming, rows: Iterable[Row]) -> None:
        self.naming, self.prefix = naming, naming.prefix
        rows = tuple(rows)
        self._to_ours = dict(rows)
        self._to_ldm = {ours: ldm for ldm, ours in rows}

    def to_diffusers(self, name: str) -> tuple[str, ...]:
        """A file's full name -> our names: one, or three where it fuses query, key and value."""
        inner = name.removeprefix(self.prefix)
        if self.naming.fuses_attention and (match := FUSED.match(inner)):
            layer = f"encoder.layers.{match[1]}.self_attn"
            return tuple(f"{layer}.{letter}_proj.{match[2]}" for letter in "qkv")
        return (_replaced(inner, self._to_ours),)

    def to_ldm(self, name: str) -> str:
        """Our name -> the file's full name."""
        if self.naming.fuses_attention and (match := SEPARATE.match(name)):
            return f"{self.prefix}{OPEN_CLIP_LAYERS}{match[1]}.attn.in_proj_{match[3]}"
        return self.prefix + _replaced(name, self._to_ldm)


def unet_naming(prefix: str, *, takes_pooled: bool = False) -> Naming:
    """A U-Net's names; with `takes_pooled`, of one that takes more than states of a text."""
    return Naming(
        "LDM",
        prefix,
        prefix,
        _unet_rows_of_file,
        _unet_rows_of_ours,
        entry="input_blocks.0.0.weight",
        claims=("label_emb.",) if takes_pooled else (),
        is_averaged=True,
    )


def vae_naming(prefix: str) -> Naming:
    """How a VAE is named in single files."""
    return Naming(
        "LDM",
        prefix,
        prefix,
        _vae_rows_of_file,
        _vae_rows_of_ours,
        entry="encoder.conv_in.weight",
        convolved=CONVOLVED,
        stale=("loss.",),
    )


def clip_naming(root: str) -> Naming:
    """The names of a text encoder of OpenAI's CLIP, which are the same on both sides.

    Early files lack `text_model.`.
    """
    return Naming(
        "CLIP",
        root,
        f"{root}transformer.text_model.",
        _no_rows,
        _no_rows,
        former=re.compile(
            re.escape(f"{root}transformer.") + "(?=embeddings|encoder|final_layer_norm)"
        ),
        beside=frozenset({"embeddings.position_ids"}),
        counted="embeddings.position_ids",
    )


def open_clip_naming(root: str, *, used: int | None = None, projects: bool = False) -> Naming:
    """The names of a text encoder of OpenCLIP.

    Args:
        root: What they begin with.
        used: Layers that are used of a full-size one, if its last is not; None means all.
        projects: Whether the projection of the pooled text is used.
    """
    spare = 0 if used is None else 1
    ones = (("logit_scale", 0),) if projects else (("text_projection", 2), ("logit_scale", 0))
    return Naming(
        "OpenCLIP",
        root,
        f"{root}model.",
        _open_clip_rows_of_file,
        _open_clip_rows_of_ours,
        fuses_attention=True,
        turned=frozenset({"text_projection"} if projects else ()),
        beside=frozenset({"attn_mask", *(name for name, _ in ones)}),
        layers=OPEN_CLIP_LAYERS,
        tail=Tail(used, spare, ones),
    )


def ema_name(name: str) -> str:
    """Where LDM keeps the averaged copy of a U-Net tensor; CompVis' `ldm/modules/ema.py`."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def _no_rows(_: ParameterNames) -> Iterable[Row]:
    return ()


def _unet_rows_of_file(names: ParameterNames) -> Iterable[Row]:
    return _unet_rows(UNetLayout.of_ldm(names))


def _unet_rows_of_ours(names: ParameterNames) -> Iterable[Row]:
    return _unet_rows(UNetLayout.of_diffusers(names))


def _vae_rows_of_file(names: ParameterNames) -> Iterable[Row]:
    return _vae_rows(VaeLayout.of_ldm(names))


def _vae_rows_of_ours(names: ParameterNames) -> Iterable[Row]:
    return _vae_rows(VaeLayout.of_diffusers(names))


def _open_clip_rows_of_file(names: ParameterNames) -> Iterable[Row]:
    yield from _open_clip_rows(len(_indices(names, OPEN_CLIP_LAYERS.removesuffix("."))))
    if "text_projection" not in names:
        yield UPRIGHT_PROJECTION


def _open_clip_rows_of_ours(names: ParameterNames) -> Iterable[Row]:
    return _open_clip_rows(len(_indices(names, "encoder.layers")))


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
