"""Models by their id on the Hugging Face Hub, downloaded once into its own cache."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from impasto import presence
from impasto.checkpoints.downloads import download_snapshot
from impasto.checkpoints.hub_faults import hub_faults
from impasto.checkpoints.weight_files import (
    FolderLayout,
    Stems,
    find_weights,
    folder_layout_of,
    weight_sets_in,
)
from impasto.errors import ModelError
from impasto.parsing import parse_json, read_text
from impasto.progress import Progress, SilentProgress
from impasto.remote_paths import is_remote, location_fault

FILE_ENDINGS = {".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin"}
"""A name with one of these is a file and no Hub id."""

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w.-]+)?$")
TIMEOUT_S = 20


def looks_like_hub_id(text: str) -> bool:
    """Whether a text has the form `owner/name` or `owner/name@revision`."""
    return HUB_ID.match(text) is not None


def require_source(source: str) -> None:
    """Make sure that a model is there, or may be on the Hub or in a store, before heavy imports.

    Raises:
        ModelError: It is neither a path that exists nor of the form of a Hub id or a URL.
    """
    if is_remote(source):
        fault = location_fault(Path(source))
        if fault:
            raise ModelError(f"The model {source!r}: {fault}.")
        return  # whether it is there, the store says when it is fetched
    path = Path(source).expanduser()
    if presence.exists(path) or (looks_like_hub_id(source) and path.suffix not in FILE_ENDINGS):
        return
    raise ModelError(
        f"The model {source} is not there. Give the path of a .safetensors or .ckpt file, of a "
        f"Diffusers folder (the one with model_index.json in it), or a Hub id such as owner/name."
    )


def download(
    hub_id: str,
    layouts: Collection[FolderLayout],
    progress: Progress | None = None,
    *,
    variant: str | None = None,
) -> Path:
    """The local folder of a Hub model, downloading what is not there yet.

    Only the parts that are used come, as safetensors where the repository has them.

    Args:
        hub_id: `owner/name`, or with a revision, `owner/name@revision`.
        layouts: The folders of the families that are known.
        progress: Is told what is downloaded.
        variant: Which set of weights where there are several, such as `fp16`.

    Raises:
        ModelError: There is no network, no such model, or no permission, and no downloaded copy.
    """
    from huggingface_hub import HfApi

    name, _, revision = hub_id.partition("@")
    wanted = {"repo_id": name, "revision": revision or None}
    local = _local_copy(wanted, layouts, variant)
    if local is not None:
        return local

    def sentence_of(reason: str) -> str:
        return (
            f"{hub_id} is not a file or folder on this machine, and could not be downloaded from "
            f"the Hugging Face Hub ({reason}). Check the spelling and the network, log in with "
            f"`hf auth login` if the model is gated, or give the path of a local copy."
        )

    with hub_faults(sentence_of):
        info = HfApi().model_info(name, revision=revision or None, timeout=TIMEOUT_S)
        listed = [file.rfilename for file in info.siblings or ()]
        patterns = patterns_of(listed, layouts, variant)
        return download_snapshot(
            hub_id, progress or SilentProgress(), **wanted, allow_patterns=patterns
        )


def patterns_of(
    listed: list[str], layouts: Collection[FolderLayout], variant: str | None
) -> list[str]:
    """Patterns of the files of a Diffusers repository that are used, of those it has.

    Raises:
        ModelError: No part has files of the variant asked for.
    """
    vocabulary_files = {f"{folder}/*.txt" for layout in layouts for folder in layout.tokenizers}
    return [
        "*.json",
        *sorted(vocabulary_files),
        *choose_weights(listed, _weights(layouts), variant),
    ]


def choose_weights(
    listed: list[str], weights: Mapping[str, Stems], variant: str | None
) -> list[str]:
    """The weight files to take from a repository's list: one set for each part, shards and all.

    safetensors before `.bin`; the variant asked for, else the main files, else any.

    Args:
        listed: The names of its files.
        weights: Folder -> what weight files are called there.
        variant: Which set of weights is asked for.

    Raises:
        ModelError: No part has files of the variant asked for.
    """
    inside = {folder: _names_in(listed, folder) for folder in weights}
    sets = {folder: weight_sets_in(names, weights[folder]) for folder, names in inside.items()}
    if variant is not None and not any(variant in found for found in sets.values()):
        there = sorted({str(name or "the main files") for found in sets.values() for name in found})
        raise ModelError(
            f"The Hub model has no files of the variant {variant!r}; it has {', '.join(there)}. "
            f"Name one of these, or take --variant (model.variant) out."
        )
    chosen = []
    for folder, found in sets.items():
        name = found.get(variant) or found.get(None) or next(iter(found.values()), None)
        if name is not None:
            chosen += [f"{folder}/{file}" for file in (name, *_shards_of(name, inside[folder]))]
    return chosen


def _weights(layouts: Collection[FolderLayout]) -> dict[str, Stems]:
    """Of all families: a repository has the folders of one."""
    return {folder: stems for layout in layouts for folder, stems in layout.weights}


def _names_in(listed: list[str], folder: str) -> list[str]:
    start = f"{folder}/"
    inside = [file.removeprefix(start) for file in listed if file.startswith(start)]
    return [name for name in inside if "/" not in name]


def _shards_of(index: str, names: list[str]) -> list[str]:
    """The files that belong to an index of shards; none where it is a whole file."""
    if not index.endswith(".json"):
        return []
    stem, _, ending = index.partition(".index")[0].rpartition(".")
    return [name for name in names if name.startswith(stem) and name.endswith(f".{ending}")]


def _local_copy(
    wanted: dict[str, str | None], layouts: Collection[FolderLayout], variant: str | None
) -> Path | None:
    """What an earlier download left, if it is whole enough to be opened."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(**wanted, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    layout = folder_layout_of(_index_of(folder), layouts)
    if layout is None:
        return folder  # whatever it is: opening it says so
    sets = [find_weights(folder / name, stems) for name, stems in layout.weights]
    has_asked = variant is None or any(variant in found for found in sets)
    return folder if all(sets) and has_asked else None


def _index_of(folder: Path) -> Mapping[str, Any]:
    """What a folder's `model_index.json` says; nothing if it cannot be read."""
    try:
        index = parse_json(read_text(folder / "model_index.json"))
    except (OSError, ValueError, RecursionError):
        return {}
    return index if isinstance(index, dict) else {}
