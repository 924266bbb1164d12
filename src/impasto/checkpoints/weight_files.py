"""Finds and reads the weight files of one part of a Diffusers folder, whole or in shards.

A part has up to several sets of files: the main one, and variants such as `fp16` or `non_ema`. A
set is one file, or shards with an index (`diffusion_pytorch_model.safetensors.index.json`) that
says which tensor is in which. Names: diffusers `utils/constants.py` and `models/modeling_utils.py`,
transformers `modeling_utils.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from impasto import presence
from impasto.errors import ModelError
from impasto.parsing import parse_json, read_text

if TYPE_CHECKING:  # imports torch, which names and files are looked at without
    from impasto.checkpoints.tensors import LazyTensor, Tensors

T = TypeVar("T")

NOT_AVERAGED = "non_ema"
"""The set of plain weights of a part whose main set is their average, as in SD 1.5's folder."""

HALF = "fp16"
"""The set of half precision, which is taken where there is no main set."""

_NETWORK = re.compile("UNet|Transformer|Text|EncoderModel")
"""In the names of classes that take part in denoising, or say what to denoise to."""

_VARIANT = r"(?:\.((?!.*-\d+-of-)[A-Za-z0-9_-]+))?"


@dataclass(frozen=True)
class Stems:
    """What the weight files of a network are called, without variant and ending.

    Attributes:
        name: Today.
        former: What it was.
    """

    name: str
    former: tuple[str, ...] = ()


@dataclass(frozen=True)
class FolderLayout:
    """The folders of a family in diffusers' form: plain data of `models/families.py`.

    Attributes:
        weights: Folder of each network, and what its files are called.
        tokenizers: Folders of the tokenizers.
        vae: The folder of the VAE, which is also published by itself.
        averaged: Folders of the networks whose averaged weights may be there besides.
    """

    weights: tuple[tuple[str, Stems], ...]
    tokenizers: tuple[str, ...]
    vae: str
    averaged: tuple[str, ...]

    @property
    def folders(self) -> set[str]:
        """The folders that networks are in."""
        return {folder for folder, _ in self.weights}


@dataclass(frozen=True)
class WeightChoice:
    """Which set of weights is taken where a part has several.

    Attributes:
        weights: `plain` takes the set `non_ema` first; `ema` and `auto` take the main one.
        variant: A set to take before all others, such as `fp16`.
    """

    weights: str = "auto"
    variant: str | None = None

    def of(self, sets: Mapping[str | None, T]) -> tuple[str | None, T] | None:
        """The set that is taken, with its name; None where each would have to be named.

        Args:
            sets: By variant, the main one by None; see `weight_sets_in`.
        """
        asked = (self.variant,) if self.variant else ()
        plain = (NOT_AVERAGED,) if self.weights == "plain" else ()
        order = (*asked, *plain, None, HALF)
        return next(((name, sets[name]) for name in order if name in sets), None)

    def lacking(self, taken: str | None) -> str:
        """The files that a set stands in for, since they are not there; empty where it does not.

        Args:
            taken: The name of the set that is taken.
        """
        if self.variant is not None:
            return "" if taken == self.variant else self.variant
        return "main" if taken == HALF else ""


def networks_in(index: Mapping[str, Any]) -> set[str]:
    """The folders that a `model_index.json` names of networks which make the image."""
    return {
        folder
        for folder, named in index.items()
        if isinstance(named, (list, tuple)) and len(named) == 2
        and isinstance(named[1], str) and _NETWORK.search(named[1])
    }  # fmt: skip


def folder_layout_of(
    index: Mapping[str, Any], layouts: Collection[FolderLayout]
) -> FolderLayout | None:
    """The layout that has all networks of a `model_index.json` and the fewest besides, or None."""
    networks = networks_in(index)
    fitting = [layout for layout in layouts if networks <= layout.folders]
    return min(fitting, key=lambda layout: len(layout.weights), default=None)


def find_weights(folder: Path, stems: Stems) -> dict[str | None, Path]:
    """The sets of weights in the folder of a network; see `weight_sets_in`."""
    if not presence.is_dir(folder):
        return {}
    names = [path.name for path in folder.iterdir() if presence.is_file(path)]
    return {variant: folder / name for variant, name in weight_sets_in(names, stems).items()}


def weight_sets_in(names: Iterable[str], stems: Stems) -> dict[str | None, str]:
    """The sets of weights among the names of a network's files: variant, or None -> its file.

    safetensors come before `.bin`, and whole files before shards, whose file is their index.
    """
    found: dict[str | None, str] = {}
    for pattern, name in product(_patterns(stems), sorted(names)):
        match = pattern.fullmatch(name)
        if match:
            variant = next((variant_name for variant_name in match.groups() if variant_name), None)
            found.setdefault(variant, name)
    return found


def is_whole(file: Path) -> bool:
    """Whether a set of weights is there; of an index, with every shard that it names.

    Raises:
        ModelError: It is an index that cannot be read.
    """
    shards = set(_read_index(file).values()) if file.suffix == ".json" else set()
    return all(presence.is_file(file.parent / shard) for shard in shards)


def read_weights(file: Path) -> tuple[Tensors, Mapping[str, str]]:
    """The tensors of a set of weights, and the texts in its file.

    Raises:
        ModelError: A file of it is missing or damaged, or the index names another place.
    """
    from impasto.checkpoints.reading import open_tensor_file

    if file.suffix != ".json":
        opened = open_tensor_file(file)
        return opened.tensors, opened.metadata
    shard_of = _read_index(file)
    tensors: dict[str, LazyTensor] = {}
    for shard in sorted(set(shard_of.values())):
        inside = open_tensor_file(file.parent / shard).tensors
        tensors |= {name: inside[name] for name in inside if shard_of.get(name) == shard}
    missing = sorted(shard_of.keys() - tensors.keys())
    if missing:
        raise ModelError(
            f"{file} says that {missing[0]} is in {shard_of[missing[0]]}, but it is not. The model "
            f"is incomplete or mixed from two; download or copy it again."
        )
    return tensors, {}


def _patterns(stems: Stems) -> list[re.Pattern[str]]:
    names = (stems.name, *stems.former)
    whole = [
        re.compile(rf"{stem}{_VARIANT}\.{ending}")
        for ending in ("safetensors", "bin")
        for stem in names
    ]
    # `model.fp16.safetensors.index.json` of old, `model.safetensors.index.fp16.json` of today
    shards = [
        re.compile(rf"{stem}{_VARIANT}\.{ending}\.index{_VARIANT}\.json")
        for ending in ("safetensors", "bin")
        for stem in names
    ]
    return [*whole, *shards]


def _read_index(file: Path) -> dict[str, str]:
    try:
        weight_map = parse_json(read_text(file))["weight_map"]
        named = {str(name): str(shard) for name, shard in weight_map.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{file} cannot be read as an index of shards ({error}). Download or copy it again."
        ) from error
    outside = sorted(shard for shard in named.values() if Path(shard).name != shard)
    if outside:
        raise ModelError(f"{file} names {outside[0]}, which is outside its folder: refused.")
    return named
