"""Models by their id on the Hugging Face Hub, downloaded once into its own cache."""

from __future__ import annotations

import re
from pathlib import Path

from impasto import presence
from impasto.checkpoints.downloads import download_snapshot
from impasto.checkpoints.keymap import PARTS
from impasto.checkpoints.weight_files import find_weights, sets_among
from impasto.errors import ModelError
from impasto.progress import Progress, SilentProgress

FILE_ENDINGS = {".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin"}
"""A name with one of these is a file and no Hub id."""

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w.-]+)?$")
_SMALL_FILES = ("*.json", "tokenizer/*.txt")
TIMEOUT_S = 20


def looks_like_hub_id(text: str) -> bool:
    """Whether a text has the form `owner/name` or `owner/name@revision`."""
    return HUB_ID.match(text) is not None


def require_source(source: str) -> None:
    """Make sure that a model is there, or may be on the Hub, before anything heavy is imported.

    Raises:
        ModelError: It is neither a path that exists nor of the form of a Hub id.
    """
    path = Path(source).expanduser()
    if presence.exists(path) or (looks_like_hub_id(source) and path.suffix not in FILE_ENDINGS):
        return
    raise ModelError(
        f"The model {source} is not there. Give the path of a .safetensors or .ckpt file, of a "
        f"Diffusers folder (the one with model_index.json in it), or a Hub id such as owner/name."
    )


def download(hub_id: str, progress: Progress | None = None, *, variant: str | None = None) -> Path:
    """The local folder of a Hub model, downloading what is not there yet.

    Only the parts that are used come, as safetensors where the repository has them.

    Args:
        hub_id: `owner/name`, or with a revision, `owner/name@revision`.
        progress: Is told what is downloaded.
        variant: Which set of weights where there are several, such as `fp16`.

    Raises:
        ModelError: There is no network, no such model, or no permission, and no downloaded copy.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    name, _, revision = hub_id.partition("@")
    wanted = {"repo_id": name, "revision": revision or None}
    local = _local_copy(wanted, variant)
    if local is not None:
        return local
    try:
        info = HfApi().model_info(name, revision=revision or None, timeout=TIMEOUT_S)
        listed = [file.rfilename for file in info.siblings or ()]
        patterns = [*_SMALL_FILES, *choose_weights(listed, variant)]
        return download_snapshot(
            hub_id, progress or SilentProgress(), **wanted, allow_patterns=patterns
        )
    except (OSError, ValueError, HTTPError, OfflineModeIsEnabled) as error:
        reason = str(error).strip().split("\n")[0][:120]
        raise ModelError(
            f"{hub_id} is not a file or folder here, and could not be had from the Hugging Face "
            f"Hub ({type(error).__name__}: {reason}). Check the spelling and the network, log in "
            f"with `hf auth login` if the model is gated, or give the path of a local copy."
        ) from error


def choose_weights(listed: list[str], variant: str | None) -> list[str]:
    """The weight files to take from a repository's list: one set for each part, shards and all.

    safetensors before `.bin`; the variant asked for, else the main files, else any.

    Raises:
        ModelError: No part has files of the variant asked for.
    """
    inside = {part: _names_in(listed, part) for part in PARTS}
    sets = {part: sets_among(names, part) for part, names in inside.items()}
    if variant is not None and not any(variant in found for found in sets.values()):
        there = sorted({str(name or "the main files") for found in sets.values() for name in found})
        raise ModelError(
            f"The Hub model has no files of the variant {variant!r}; it has {', '.join(there)}. "
            f"Name one of these, or take --variant (model.variant) out."
        )
    chosen = []
    for part, found in sets.items():
        name = found.get(variant) or found.get(None) or next(iter(found.values()), None)
        if name is not None:
            chosen += [f"{part}/{file}" for file in (name, *_shards_of(name, inside[part]))]
    return chosen


def _names_in(listed: list[str], part: str) -> list[str]:
    folder = f"{part}/"
    inside = [file.removeprefix(folder) for file in listed if file.startswith(folder)]
    return [name for name in inside if "/" not in name]


def _shards_of(index: str, names: list[str]) -> list[str]:
    """The files that belong to an index of shards; none where it is a whole file."""
    if not index.endswith(".json"):
        return []
    stem, _, ending = index.partition(".index")[0].rpartition(".")
    return [name for name in names if name.startswith(stem) and name.endswith(f".{ending}")]


def _local_copy(wanted: dict[str, str | None], variant: str | None) -> Path | None:
    """What an earlier download left, if it is whole enough to be opened."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(**wanted, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    sets = [find_weights(folder / part, part) for part in PARTS]
    has_asked = variant is None or any(variant in found for found in sets)
    return folder if all(sets) and has_asked else None
