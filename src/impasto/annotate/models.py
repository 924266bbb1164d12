"""Which taggers and captioners there are by short names, and where their files are."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from impasto.checkpoints.downloads import download_snapshot
from impasto.errors import ConfigError, ModelError
from impasto.progress import Progress

_FILES = ("*.onnx", "*.csv", "*.txt", "*.json")


@dataclass(frozen=True)
class KnownTagger:
    """A tagger on the Hub.

    Attributes:
        hub_id: `owner/name`, or `owner/name/folder`.
        balance: The threshold at which precision equals recall, as its card says; None where it
            does not.
    """

    hub_id: str
    balance: float | None = None


TAGGERS: Mapping[str, KnownTagger] = {
    "wd-swinv2-v3": KnownTagger("SmilingWolf/wd-swinv2-tagger-v3", 0.2653),
    "wd-vit-v3": KnownTagger("SmilingWolf/wd-vit-tagger-v3", 0.2614),
    "wd-convnext-v3": KnownTagger("SmilingWolf/wd-convnext-tagger-v3"),
    "wd-vit-large-v3": KnownTagger("SmilingWolf/wd-vit-large-tagger-v3"),
    "wd-eva02-large-v3": KnownTagger("SmilingWolf/wd-eva02-large-tagger-v3", 0.5296),
    "wd-v1-4-convnext-v2": KnownTagger("SmilingWolf/wd-v1-4-convnext-tagger-v2", 0.3685),
    "wd-v1-4-convnextv2-v2": KnownTagger("SmilingWolf/wd-v1-4-convnextv2-tagger-v2", 0.3710),
    "wd-v1-4-swinv2-v2": KnownTagger("SmilingWolf/wd-v1-4-swinv2-tagger-v2", 0.3771),
    "wd-v1-4-vit-v2": KnownTagger("SmilingWolf/wd-v1-4-vit-tagger-v2", 0.3537),
    "wd-v1-4-moat-v2": KnownTagger("SmilingWolf/wd-v1-4-moat-tagger-v2"),
    "cl-tagger": KnownTagger("cella110n/cl_tagger/cl_tagger_1_02"),
    "pixai-v0.9": KnownTagger("deepghs/pixai-tagger-v0.9-onnx"),
    "camie": KnownTagger("deepghs/camie_tagger_onnx/refined"),
    "joytag": KnownTagger("fancyfeast/joytag"),
    "deepdanbooru": KnownTagger("skytnt/deepdanbooru_onnx"),
}
CAPTIONERS: Mapping[str, str] = {
    "blip-base": "Salesforce/blip-image-captioning-base",
    "blip-large": "Salesforce/blip-image-captioning-large",
    "blip2": "Salesforce/blip2-opt-2.7b",
    "git-large": "microsoft/git-large-textcaps",
    "florence2-large": "florence-community/Florence-2-large",
    "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen3-vl-4b": "Qwen/Qwen3-VL-4B-Instruct",
    "joycaption": "fancyfeast/llama-joycaption-beta-one-hf-llava",
}


def locate_tagger(name: str, progress: Progress) -> Path:
    """The folder of a tagger, or its file; downloaded if it is not here yet.

    Args:
        name: A path, a short name of `TAGGERS`, or a Hub id, perhaps with a folder in it.
        progress: Is told of a download.

    Raises:
        ConfigError: There is no such name; with the nearest.
        ModelError: It could not be downloaded.
    """
    path = Path(name)
    if path.exists():
        return path
    hub_id = TAGGERS[name].hub_id if name in TAGGERS else name
    owner, _, rest = hub_id.partition("/")
    repository, _, folder = rest.partition("/")
    if not repository or path.suffix:
        raise ConfigError(_unknown(name, TAGGERS))
    return _downloaded(f"{owner}/{repository}", folder, progress) / folder


def locate_captioner(name: str) -> str:
    """Find a captioner: a folder, or its id on the Hub.

    Raises:
        ConfigError: There is no such name; with the nearest.
    """
    if Path(name).exists():
        return name
    if name in CAPTIONERS:
        return CAPTIONERS[name]
    if name.count("/") != 1 or Path(name).suffix:
        raise ConfigError(_unknown(name, CAPTIONERS))
    return name


def _unknown(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
    return (
        f"There is no model {name!r}: neither a path that exists, nor a known name, nor a Hub id "
        f"(owner/name). The nearest names are {', '.join(near) or 'none'}; known are "
        f"{', '.join(known)}."
    )


def _downloaded(hub_id: str, folder: str, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = [f"{folder}/{p}" if folder else p for p in _FILES]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass  # it is not here yet
    try:
        return download_snapshot(hub_id, progress, repo_id=hub_id, allow_patterns=patterns)
    except (OSError, ValueError, HTTPError, OfflineModeIsEnabled) as error:
        reason = str(error).strip().split("\n")[0][:120]
        raise ModelError(
            f"{hub_id} is not a folder here and could not be had from the Hugging Face Hub "
            f"({type(error).__name__}: {reason}). Check the spelling and the network, or give the "
            f"path of a local copy: the folder with the .onnx and its tags."
        ) from error
