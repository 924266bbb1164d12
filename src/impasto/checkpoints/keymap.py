"""The map between the names of LDM files and those of diffusers, one table for both directions.

What is here knows how a sort of network is named, by the rows of `key_rows.py`. Which networks a
family has, under which prefixes, is the table of `models/families.py`, which hands a `FileLayout`
down.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from impasto.checkpoints.key_rows import (
    OPEN_CLIP_LAYERS,
    ParameterNames,
    Row,
    indices_of,
    no_rows,
    open_clip_rows_of_file,
    open_clip_rows_of_ours,
    unet_rows_of_file,
    unet_rows_of_ours,
    vae_rows_of_file,
    vae_rows_of_ours,
)

FUSED = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$")
SEPARATE = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)$")
CONVOLVED = re.compile(r"\.mid\.attn_1\.(q|k|v|proj_out)\.weight$")


class ComponentKind(enum.Enum):
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
        """The map for the names of a file, of which others than this network's are skipped."""
        own = {n.removeprefix(self.prefix) for n in names if n.startswith(self.prefix)}
        return ComponentMap(self, self.rows_of_file(own))

    def map_of_ours(self, names: ParameterNames) -> ComponentMap:
        """The map for a network whose diffusers' names these are."""
        return ComponentMap(self, self.rows_of_ours(names))

    def layers_in(self, names: ParameterNames) -> int:
        """Layers that a file has, where these are counted."""
        counted = "" if self.layers is None else self.layers.removesuffix(".")
        return len(indices_of(names, self.prefix + counted)) if counted else 0

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
class NamedComponent:
    """A network of a family, as single files have it.

    Attributes:
        name: Its name in the table.
        kind: What it does.
        naming: How it is named there.
    """

    name: str
    kind: ComponentKind
    naming: Naming


@dataclass(frozen=True)
class FileLayout:
    """The networks of a family in single files, in the order of the table."""

    components: tuple[NamedComponent, ...]

    def of_kind(self, kind: ComponentKind) -> tuple[NamedComponent, ...]:
        """The parts of the layout that are of a kind."""
        return tuple(component for component in self.components if component.kind is kind)

    def modern(self, name: str) -> str:
        """A name as today's files have it."""
        for component in self.components:
            name = component.naming.modern(name)
        return name

    def fit(self, names: ParameterNames) -> int:
        """How many of its networks the names of a file are of."""
        modern = [self.modern(name) for name in names]
        return sum(any(n.startswith(p.naming.prefix) for n in modern) for p in self.components)


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
        unet_rows_of_file,
        unet_rows_of_ours,
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
        vae_rows_of_file,
        vae_rows_of_ours,
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
        no_rows,
        no_rows,
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
        open_clip_rows_of_file,
        open_clip_rows_of_ours,
        fuses_attention=True,
        turned=frozenset({"text_projection"} if projects else ()),
        beside=frozenset({"attn_mask", *(name for name, _ in ones)}),
        layers=OPEN_CLIP_LAYERS,
        tail=Tail(used, spare, ones),
    )


def ema_name(name: str) -> str:
    """Where LDM keeps the averaged copy of a U-Net tensor; CompVis' `ldm/modules/ema.py`."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def _replaced(name: str, table: dict[str, str]) -> str:
    """Replace the longest module name at the beginning that the table has."""
    names = name.split(".")
    for cut in range(len(names), 0, -1):
        found = table.get(".".join(names[:cut]))
        if found is not None:
            return ".".join([found, *names[cut:]])
    return name
