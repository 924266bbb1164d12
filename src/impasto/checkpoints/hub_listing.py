"""Selects the files of a Hugging Face Hub repository to download, by their names alone.

A repository is a Diffusers model, a separate VAE, or one checkpoint.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from impasto.checkpoints.weight_files import (
    NOT_AVERAGED,
    FolderLayout,
    Stems,
    WeightChoice,
    weight_sets_in,
)
from impasto.errors import ModelError
from impasto.invocation import command

MODEL_INDEX, CONFIG = "model_index.json", "config.json"
CHECKPOINT_ENDINGS = (".safetensors", ".ckpt")
SIDECAR = ".yaml"
"""Extension of the original programs' configuration file beside a checkpoint."""
_LISTED = 12


@dataclass(frozen=True)
class Selection:
    """The files to download from a repository.

    Attributes:
        patterns: Patterns of the file names.
        file: The one file that is the model; None if the model is a folder.
        sidecar: The `.yaml` beside that file; None if there is none.
    """

    patterns: list[str]
    file: str | None = None
    sidecar: str | None = None

    @classmethod
    def of_file(cls, name: str, listed: Collection[str]) -> Selection:
        """Select one file; a checkpoint with the `.yaml` beside it, which states its prediction."""
        beside = PurePosixPath(name).with_suffix(SIDECAR).as_posix()
        has_sidecar = name.lower().endswith(CHECKPOINT_ENDINGS) and beside in listed
        names = [beside, name] if has_sidecar else [name]
        return cls([glob.escape(n) for n in names], name, beside if has_sidecar else None)


def select_files(
    hub_id: str, listed: list[str], layouts: Collection[FolderLayout], choice: WeightChoice
) -> Selection:
    """Select the files of a Diffusers model, a VAE's folder, or a checkpoint of a repository.

    Args:
        hub_id: Name of the repository in errors.
        listed: Names of its files.
        layouts: Folders of the known families.
        choice: Set of weights to use if there are several.

    Raises:
        ModelError: It has none of these, several checkpoints, or not the requested weights.
    """
    if MODEL_INDEX in listed:
        vocabulary_files = {f"{name}/*.txt" for layout in layouts for name in layout.tokenizers}
        weights = {name: stems for layout in layouts for name, stems in layout.weights}
        chosen = choose_weights(listed, weights, choice)
        return Selection(["*.json", *sorted(vocabulary_files), *chosen])
    alone = vae_alone(listed, layouts)
    if alone is not None:
        return Selection([CONFIG, *choose_weights(listed, {"": alone}, choice)])
    name = _only_checkpoint(hub_id, listed)
    if choice.variant is not None:
        raise ModelError(
            f"{hub_id} is one file, {name}, and has no variants; {choice.variant!r} is for "
            f"Diffusers models, which may have several sets of files. Remove "
            f"--variant (model.variant)."
        )
    return Selection.of_file(name, listed)


def vae_alone(names: Collection[str], layouts: Collection[FolderLayout]) -> Stems | None:
    """Return the stems of the weight files of a separate VAE, or None if there is none.

    Args:
        names: Names of the files; those in folders have their path.
        layouts: Folders of the known families.
    """
    if CONFIG not in names or MODEL_INDEX in names:
        return None
    found = (dict(layout.weights)[layout.vae] for layout in layouts)
    return next((stems for stems in found if weight_sets_in(names, stems)), None)


def choose_weights(
    listed: list[str], weights: Mapping[str, Stems], choice: WeightChoice
) -> list[str]:
    """Return the weight files to download: one set per component, with all its shards.

    If averaged weights are requested, the plain ones are included: only they show that the main
    file is an average.

    Args:
        listed: Names of the repository's files.
        weights: Folder -> stems of its weight files; "" for files in no folder.
        choice: Requested set of weights.

    Raises:
        ModelError: No component has files of the requested variant, or a component has only others.
    """
    inside = {folder: _names_in(listed, folder) for folder in weights}
    sets = {folder: weight_sets_in(names, weights[folder]) for folder, names in inside.items()}
    _require_variant(sets, choice.variant)
    chosen = []
    for folder, found in sets.items():
        if not found:
            continue
        taken = choice.of(found)
        if taken is None:
            raise ModelError(
                f"The Hub model has no main files of the {folder or 'VAE'}; it has "
                f"{_called(found)}. Name one of these with --variant (model.variant)."
            )
        names = {taken[0]}
        if choice.weights == "ema" and NOT_AVERAGED in found:
            names.add(NOT_AVERAGED)
        for name in names:
            files = [found[name], *_shards_of(found[name], name, inside[folder])]
            chosen += [f"{folder}/{file}" if folder else file for file in files]
    return chosen


def listing(hub_id: str, listed: list[str]) -> str:
    """Return the end of an error: a repository's files, and the command to download one."""
    models = _checkpoints(listed)
    shown = ", ".join((models or listed)[:_LISTED]) or "nothing"
    more = ", ..." if len(models or listed) > _LISTED else ""
    words = command("download", hub_id, "--out", "models", "--file", "FILE")
    return f"Name one with --file; it has {shown}{more}. For example: {words}"


def _only_checkpoint(hub_id: str, listed: list[str]) -> str:
    found = _checkpoints(listed)
    if len(found) == 1:
        return found[0]
    problem = "is not a Diffusers model and has" if not found else "has"
    raise ModelError(
        f"{hub_id} {problem} {len(found) or 'no'} files with models in them. "
        f"{listing(hub_id, listed)}"
    )


def _checkpoints(listed: list[str]) -> list[str]:
    return [name for name in listed if name.lower().endswith(CHECKPOINT_ENDINGS)]


def _require_variant(sets: Mapping[str, Mapping[str | None, str]], variant: str | None) -> None:
    if variant is None or any(variant in found for found in sets.values()):
        return
    there = _called({name for found in sets.values() for name in found})
    others = f"; it has {there}. Name one of these, or take" if there else ", nor any other. Take"
    raise ModelError(
        f"The Hub model has no files of the variant {variant!r}{others} --variant "
        f"(model.variant) out."
    )


def _called(sets: Collection[str | None]) -> str:
    return ", ".join(sorted(str(name or "the main files") for name in sets))


def _names_in(listed: list[str], folder: str) -> list[str]:
    start = f"{folder}/" if folder else ""
    inside = [file.removeprefix(start) for file in listed if file.startswith(start)]
    return [name for name in inside if "/" not in name]


def _shards_of(file: str, variant: str | None, names: list[str]) -> list[str]:
    """Return the shards of a set of weights whose file is an index; empty if it is a whole file.

    Those of a variant have its name before or after their number: `model.fp16-00001-of-00002.bin`.
    """
    if not file.endswith(".json"):
        return []
    start, _, ending = file.partition(".index")[0].rpartition(".")
    stem = re.escape(start.removesuffix(f".{variant}"))
    marked = re.escape(f".{variant}") if variant else ""
    number = r"-\d+-of-\d+"
    shard = re.compile(rf"{stem}({marked}{number}|{number}{marked})\.{ending}")
    return [name for name in names if shard.fullmatch(name)]
