"""Models by their id on the Hugging Face Hub, downloaded once into its own cache."""

from __future__ import annotations

import re
from pathlib import Path

from impasto.checkpoints.downloads import download_snapshot
from impasto.errors import ModelError
from impasto.progress import Progress, SilentProgress

FILE_ENDINGS = {".safetensors", ".ckpt", ".pt", ".pth", ".bin"}
"""A name with one of these is a file and no Hub id."""

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w.-]+)?$")
_SMALL_FILES = ("*.json", "tokenizer/*.txt")
TIMEOUT_S = 20
_WEIGHTS = ("unet", "vae", "text_encoder")


def looks_like_hub_id(text: str) -> bool:
    """Whether a text has the form `owner/name` or `owner/name@revision`."""
    return HUB_ID.match(text) is not None


def require_source(source: str) -> None:
    """Make sure that a model is there, or may be on the Hub, before anything heavy is imported.

    Raises:
        ModelError: It is neither a path that exists nor of the form of a Hub id.
    """
    path = Path(source).expanduser()
    if path.exists() or (looks_like_hub_id(source) and path.suffix not in FILE_ENDINGS):
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
    local = _local_copy(wanted)
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
    """The weight files to take from a repository's list: one for each part.

    safetensors before `.bin`; the variant asked for, else the plain file, else any.
    """
    chosen = []
    for part in _WEIGHTS:
        for suffix in (".safetensors", ".bin"):
            here = [f for f in listed if re.match(rf"{part}/[^/]+{re.escape(suffix)}$", f)]
            plain = [f for f in here if f.count(".") == 1]
            asked = [f for f in here if variant and f.endswith(f".{variant}{suffix}")]
            if found := asked or plain or here:
                chosen.append(found[0])
                break
    return chosen


def _local_copy(wanted: dict[str, str | None]) -> Path | None:
    """What an earlier download left, if it is whole enough to be opened."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(**wanted, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    has_weights = all(any((folder / part).glob("*model*")) for part in _WEIGHTS)
    return folder if has_weights else None
