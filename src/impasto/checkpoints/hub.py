"""Models by their id on the Hugging Face Hub, downloaded once into its own cache."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto import presence
from impasto.checkpoints.downloads import download_snapshot
from impasto.checkpoints.hub_faults import hub_faults
from impasto.checkpoints.hub_listing import (
    CHECKPOINT_ENDINGS,
    CONFIG,
    MODEL_INDEX,
    select_files,
    vae_alone,
)
from impasto.checkpoints.weight_files import (
    NOT_AVERAGED,
    FolderLayout,
    WeightChoice,
    find_weights,
    folder_layout_of,
    is_whole,
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
    choice: WeightChoice | None = None,
) -> Path:
    """The local folder or file of a Hub model, downloading what is not there yet.

    Only the parts that are used come, as safetensors where the repository has them. Without a
    network a copy is taken as it is if it can be opened, though the Hub may have a file for some
    part that fits the choice better; opening it notes which were taken.

    Args:
        hub_id: `owner/name`, or with a revision, `owner/name@revision`.
        layouts: The folders of the families that are known.
        progress: Is told what is downloaded.
        choice: Which set of weights where there are several.

    Raises:
        ModelError: There is no network, no such model, or no permission, and no downloaded copy;
            or the repository has nothing that can be opened.
    """
    choice = choice or WeightChoice()
    name, _, revision = hub_id.partition("@")
    wanted = {"repo_id": name, "revision": revision or None}
    copy = _local_copy(wanted)
    parts = None if copy is None else _parts_of(copy, layouts)
    if copy is not None and parts is not None and _has_all(parts, choice):
        return copy

    def sentence_of(reason: str) -> str:
        return (
            f"{hub_id} is not a file or folder on this machine, and could not be downloaded from "
            f"the Hugging Face Hub ({reason}). Check the spelling and the network, log in with "
            f"`hf auth login` if the model is gated, or give the path of a local copy."
        )

    try:
        with hub_faults(sentence_of):
            listed = list_files(name, revision)
    except ModelError:
        found = None if copy is None else _usable(copy, parts, choice)
        if found is None:
            raise
        return found
    chosen = select_files(hub_id, listed, layouts, choice)
    with hub_faults(sentence_of):
        folder = download_snapshot(
            hub_id, progress or SilentProgress(), **wanted, allow_patterns=chosen.patterns
        )
    return folder if chosen.file is None else folder / chosen.file


def list_files(name: str, revision: str) -> list[str]:
    """The names of the files of a repository, of a revision or else of the main branch.

    Raises:
        OSError, ValueError, HTTPError, OfflineModeIsEnabled: As `huggingface_hub`.
    """
    from huggingface_hub import HfApi

    info = HfApi().model_info(name, revision=revision or None, timeout=TIMEOUT_S)
    return [file.rfilename for file in info.siblings or ()]


def _local_copy(wanted: dict[str, str | None]) -> Path | None:
    """What earlier downloads left."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(**wanted, local_files_only=True))
    except IncompleteSnapshotError as error:  # as all of ours are: only what is used comes
        return Path(error.snapshot_path)
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None


@dataclass(frozen=True)
class _Part:
    """A network of a copy.

    Attributes:
        folder: Where it is.
        sets: Its sets of weights, by variant.
        is_averaged: Whether the Hub may have both averaged and plain weights of it.
    """

    folder: Path
    sets: Mapping[str | None, Path]
    is_averaged: bool = False

    def is_whole(self, choice: WeightChoice) -> bool:
        """Whether its configuration and the set of weights that is taken are there, all shards.

        Raises:
            ModelError: An index of shards cannot be read.
        """
        taken = choice.of(self.sets)
        return taken is not None and is_whole(taken[1]) and presence.is_file(self.folder / CONFIG)

    def has_plain(self, choice: WeightChoice) -> bool:
        """Whether the plain weights are there where the choice asks for them."""
        asks = choice.weights == "ema" or (choice.weights == "plain" and choice.variant is None)
        return not (asks and self.is_averaged) or NOT_AVERAGED in self.sets


def _parts_of(folder: Path, layouts: Collection[FolderLayout]) -> list[_Part] | None:
    """The networks of a copy; None where it is neither a Diffusers model nor a VAE."""
    if not presence.is_file(folder / MODEL_INDEX):
        stems = vae_alone([path.name for path in folder.iterdir()], layouts)
        return None if stems is None else [_Part(folder, find_weights(folder, stems))]
    layout = folder_layout_of(_index_of(folder), layouts)
    if layout is None:
        return []  # whatever it is: opening it says so
    return [
        _Part(folder / name, find_weights(folder / name, stems), name in layout.averaged)
        for name, stems in layout.weights
    ]


def _has_all(parts: list[_Part], choice: WeightChoice) -> bool:
    """Whether no download would change which files are opened."""
    return all(
        part.is_whole(choice)
        and part.has_plain(choice)
        and (choice.variant is None or choice.variant in part.sets)
        for part in parts
    )


def _usable(copy: Path, parts: list[_Part] | None, choice: WeightChoice) -> Path | None:
    """What of a copy can be opened where the Hub cannot be asked."""
    if parts is None:
        found = [path for path in copy.rglob("*") if path.suffix.lower() in CHECKPOINT_ENDINGS]
        return found[0] if len(found) == 1 and choice.variant is None else None
    can_be_opened = (
        all(part.is_whole(choice) for part in parts)
        and (choice.variant is None or any(choice.variant in part.sets for part in parts))
        and (choice.weights != "ema" or all(part.has_plain(choice) for part in parts))
    )
    return copy if can_be_opened else None


def _index_of(folder: Path) -> Mapping[str, Any]:
    """What a folder's `model_index.json` says; nothing if it cannot be read."""
    try:
        index = parse_json(read_text(folder / MODEL_INDEX))
    except (OSError, ValueError, RecursionError):
        return {}
    return index if isinstance(index, dict) else {}
