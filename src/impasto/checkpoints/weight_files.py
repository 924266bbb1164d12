"""Finds and reads the weight files of one component of a Diffusers folder, whole or in shards.

A component has one or more sets of files: the main one, and variants such as `fp16` or `non_ema`. A
set is one file, or shards with an index (`diffusion_pytorch_model.safetensors.index.json`) that
maps tensors to shards. Names: diffusers `utils/constants.py` and `models/modeling_utils.py`,
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

if TYPE_CHECKING:  # imports torch, which inspecting names and files does not need
    from impasto.checkpoints.tensors import LazyTensor, Tensors

T = TypeVar("T")

NOT_AVERAGED = "non_ema"
"""The set of plain weights of a component whose main set is their average, as in SD 1.5."""

HALF = "fp16"
"""The set of half-precision weights, used if there is no main set."""

_NETWORK = re.compile("UNet|Transformer|Text|EncoderModel")
"""Parts of the class names of networks that denoise, or encode the conditioning."""

_VARIANT = r"(?:\.((?!.*-\d+-of-)[A-Za-z0-9_-]+))?"


@dataclass(frozen=True)
class Stems:
    """File names of a network's weights, without variant and suffix.

    Attributes:
        name: Current name.
        former: Earlier names.
    """

    name: str
    former: tuple[str, ...] = ()


@dataclass(frozen=True)
class FolderLayout:
    """The folders of a family's Diffusers folder: plain data of `models/families.py`.

    Attributes:
        weights: Folder of each network, and the stems of its files.
        tokenizers: Folders of the tokenizers.
        vae: Folder of the VAE, which is also published separately.
        averaged: Folders of the networks that may have averaged weights in addition.
    """

    weights: tuple[tuple[str, Stems], ...]
    tokenizers: tuple[str, ...]
    vae: str
    averaged: tuple[str, ...]

    @property
    def folders(self) -> set[str]:
        """The folders that contain networks."""
        return {folder for folder, _ in self.weights}


@dataclass(frozen=True)
class WeightChoice:
    """Which set of weights to use if a component has several.

    Attributes:
        weights: `plain` prefers the set `non_ema`; `ema` and `auto` prefer the main one.
        variant: Set to prefer to all others, such as `fp16`.
    """

    weights: str = "auto"
    variant: str | None = None

    def of(self, sets: Mapping[str | None, T]) -> tuple[str | None, T] | None:
        """Return the chosen set with its name, or None if the sets can be used only by name.

        Args:
            sets: Sets by variant, the main one under None; see `weight_sets_in`.
        """
        asked = (self.variant,) if self.variant else ()
        plain = (NOT_AVERAGED,) if self.weights == "plain" else ()
        order = (*asked, *plain, None, HALF)
        return next(((name, sets[name]) for name in order if name in sets), None)

    def lacking(self, taken: str | None) -> str:
        """Return the name of the missing set that another one replaces; empty if none is missing.

        Args:
            taken: Name of the set that is used.
        """
        if self.variant is not None:
            return "" if taken == self.variant else self.variant
        return "main" if taken == HALF else ""


def networks_in(index: Mapping[str, Any]) -> set[str]:
    """Return the folders in a `model_index.json` of the networks that generate the image."""
    return {
        folder
        for folder, named in index.items()
        if isinstance(named, (list, tuple)) and len(named) == 2
        and isinstance(named[1], str) and _NETWORK.search(named[1])
    }  # fmt: skip


def folder_layout_of(
    index: Mapping[str, Any], layouts: Collection[FolderLayout]
) -> FolderLayout | None:
    """Return the smallest layout that has all networks of a `model_index.json`, or None."""
    networks = networks_in(index)
    fitting = [layout for layout in layouts if networks <= layout.folders]
    return min(fitting, key=lambda layout: len(layout.weights), default=None)


def find_weights(folder: Path, stems: Stems) -> dict[str | None, Path]:
    """Return the sets of weights in the folder of a network; see `weight_sets_in`."""
    if not presence.is_dir(folder):
        return {}
    names = [path.name for path in folder.iterdir() if presence.is_file(path)]
    return {variant: folder / name for variant, name in weight_sets_in(names, stems).items()}


def weight_sets_in(names: Iterable[str], stems: Stems) -> dict[str | None, str]:
    """Return the sets of weights among a network's file names: variant, or None -> its file.

    safetensors take precedence over `.bin`, and whole files over shards, whose file is their index.
    """
    found: dict[str | None, str] = {}
    for pattern, name in product(_patterns(stems), sorted(names)):
        match = pattern.fullmatch(name)
        if match:
            variant = next((variant_name for variant_name in match.groups() if variant_name), None)
            found.setdefault(variant, name)
    return found


def is_whole(file: Path) -> bool:
    """Return whether all shards of a set of weights exist; true for a set of one file.

    Raises:
        ModelError: It is an index that cannot be read.
    """
    shards = set(_read_index(file).values()) if file.suffix == ".json" else set()
    return all(presence.is_file(file.parent / shard) for shard in shards)


def read_weights(file: Path) -> tuple[Tensors, Mapping[str, str]]:
    """Return the tensors of a set of weights, and the metadata of its file.

    Raises:
        ModelError: A file of it is missing or damaged, or the index names a path outside the
            folder.
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
    # formerly `model.fp16.safetensors.index.json`, now `model.safetensors.index.fp16.json`
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
