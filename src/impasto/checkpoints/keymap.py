"""The map between the names of LDM files and those of diffusers, one table for both directions.

This module knows how each kind of network is named, by the rows of `key_rows.py`. The networks of a
family and their prefixes are in the table of `models/families.py`, which passes a `FileLayout`
here.
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
    """Role of a network in a model; the value is its name for users."""

    UNET = "U-Net"
    VAE = "VAE"
    TEXT = "text encoder"


@dataclass(frozen=True)
class Tail:
    """Tensors of a text encoder in a file beyond those that are used; some programs require them.

    Attributes:
        used: Number of layers used of a full-size file; None means all.
        spare: Number of layers that a file has after those.
        ones: Name -> number of dimensions, each of the encoder's width; a missing one is written as
            all 1.
    """

    used: int | None = None
    spare: int = 0
    ones: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Naming:
    """How single files name one network.

    Attributes:
        dialect: The origin of the names, in one word for users.
        root: Prefix of the names of all tensors that belong to it, used or not.
        prefix: Prefix of the names of its own tensors.
        rows_of_file: Names of a file, without the prefix -> pairs of module names.
        rows_of_ours: diffusers' names -> the same pairs.
        entry: A tensor that every such network has, without the prefix; empty if none is certain.
        claims: Starts of names, after the prefix, that otherwise indicate a file of another kind.
        former: Earlier prefixes, which old files have.
        fuses_attention: Whether query, key and value are one tensor.
        convolved: Linear layers that are 1x1 convolutions in the file.
        turned: Matrices that the file stores transposed, without the prefix.
        beside: Names that the format has and the network does not use, without the prefix.
        counted: The name among these of the tensor that holds the integers 0, 1, 2 and so on.
        stale: Starts of names, after the root, that are never written again.
        layers: Part of a name before the number of a layer, if the file may have more layers than
            are used.
        tail: Tensors after those that are used.
        is_averaged: Whether a file may also hold its averaged weights.
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
        """Return the current form of a name."""
        return name if self.former is None else self.former.sub(self.prefix, name)

    def map_of_file(self, names: ParameterNames) -> ComponentMap:
        """Return the map for the names of a file; names of other networks are ignored."""
        own = {n.removeprefix(self.prefix) for n in names if n.startswith(self.prefix)}
        return ComponentMap(self, self.rows_of_file(own))

    def map_of_ours(self, names: ParameterNames) -> ComponentMap:
        """Return the map for a network with these diffusers names."""
        return ComponentMap(self, self.rows_of_ours(names))

    def layers_in(self, names: ParameterNames) -> int:
        """Return the number of layers in a file; 0 if the naming does not count layers."""
        counted = "" if self.layers is None else self.layers.removesuffix(".")
        return len(indices_of(names, self.prefix + counted)) if counted else 0

    def layers_used(self, names: ParameterNames, stated: int | None = None) -> int:
        """Return the number of layers of the text encoder that are used."""
        found = self.layers_in(names)
        return stated or (found if self.tail.used is None else min(found, self.tail.used))

    def is_beside(self, name: str, used: int) -> bool:
        """Return whether a file's tensor belongs to the format but not to the network."""
        inner = name.removeprefix(self.prefix)
        if inner == name:
            return False
        if self.layers is not None and inner.startswith(self.layers):
            number = inner.removeprefix(self.layers).partition(".")[0]
            return number.isdigit() and int(number) >= used
        return inner in self.beside


@dataclass(frozen=True)
class NamedComponent:
    """A network of a family in single files.

    Attributes:
        name: Name of the network in the table.
        kind: Role of the network.
        naming: How files name its tensors.
    """

    name: str
    kind: ComponentKind
    naming: Naming


@dataclass(frozen=True)
class FileLayout:
    """The networks of a family in single files, in the order of the table."""

    components: tuple[NamedComponent, ...]

    def of_kind(self, kind: ComponentKind) -> tuple[NamedComponent, ...]:
        """Return the networks of a kind."""
        return tuple(component for component in self.components if component.kind is kind)

    def modern(self, name: str) -> str:
        """Return the current form of a name."""
        for component in self.components:
            name = component.naming.modern(name)
        return name

    def fit(self, names: ParameterNames) -> int:
        """Return how many of its networks the names of a file belong to."""
        modern = [self.modern(name) for name in names]
        return sum(any(n.startswith(p.naming.prefix) for n in modern) for p in self.components)


def layout_of(names: ParameterNames, layouts: Collection[FileLayout]) -> FileLayout:
    """Return the layout that finds most networks in a file; of equal ones, the first."""
    return max(layouts, key=lambda layout: layout.fit(names))


class ComponentMap:
    """Maps the names of one network in both directions.

    Args:
        naming: How files name it.
        rows: Pairs of module names, the file's first. A name that no row covers is the same on both
            sides.
    """

    def __init__(self, naming: Naming, rows: Iterable[Row]) -> None:
        self.naming, self.prefix = naming, naming.prefix
        rows = tuple(rows)
        self._to_ours = dict(rows)
        self._to_ldm = {ours: ldm for ldm, ours in rows}

    def to_diffusers(self, name: str) -> tuple[str, ...]:
        """Return our names for a file's full name: one, or three for fused query, key and value."""
        inner = name.removeprefix(self.prefix)
        if self.naming.fuses_attention and (match := FUSED.match(inner)):
            layer = f"encoder.layers.{match[1]}.self_attn"
            return tuple(f"{layer}.{letter}_proj.{match[2]}" for letter in "qkv")
        return (_replaced(inner, self._to_ours),)

    def to_ldm(self, name: str) -> str:
        """Return the file's full name for one of our names."""
        if self.naming.fuses_attention and (match := SEPARATE.match(name)):
            return f"{self.prefix}{OPEN_CLIP_LAYERS}{match[1]}.attn.in_proj_{match[3]}"
        return self.prefix + _replaced(name, self._to_ldm)


def unet_naming(prefix: str, *, takes_pooled: bool = False) -> Naming:
    """Return a U-Net's naming; with `takes_pooled`, for one that takes more than text states."""
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
    """Return how a VAE is named in single files."""
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
    """Return the naming of an OpenAI CLIP text encoder, which is the same on both sides.

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
    """Return the naming of an OpenCLIP text encoder.

    Args:
        root: Prefix of its names.
        used: Number of layers used of a full-size encoder, if its last is not; None means all.
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
    """Return LDM's name for the averaged copy of a U-Net tensor; CompVis' `ldm/modules/ema.py`."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def _replaced(name: str, table: dict[str, str]) -> str:
    """Replace the longest module name that starts `name` and is in the table."""
    names = name.split(".")
    for cut in range(len(names), 0, -1):
        found = table.get(".".join(names[:cut]))
        if found is not None:
            return ".".join([found, *names[cut:]])
    return name
