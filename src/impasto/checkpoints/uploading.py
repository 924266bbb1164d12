"""Uploads models to the Hugging Face Hub: selects the files and sends them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from impasto import files, presence
from impasto.errors import ConfigError, ModelError, StorageError
from impasto.progress import Progress, in_mib

_FILE_ENDINGS = frozenset({".safetensors", ".sft", ".ckpt", ".pt"})
_FOLDER_FILES = re.compile(
    r"(model_index|config|tokenizer_config|special_tokens_map|added_tokens|vocab|tokenizer"
    r"|scheduler_config|preprocessor_config|generation_config)\.json"
    r"|merges\.txt|(diffusion_pytorch_model|model|pytorch_model)[\w.-]*"
    r"(\.safetensors|\.bin|\.index\.json)|impasto\.json|ldm_only\.safetensors",
    re.ASCII,
)
"""Files of a Diffusers folder that diffusers, transformers and this program write; any other file
in it, such as notes or a token, is not published."""

_NO_TOKEN = (
    "There is no token for the Hugging Face Hub. Create one with write permission at "
    "https://huggingface.co/settings/tokens; then give it with `hf auth login`, or in the "
    "environment variable HF_TOKEN. Nothing was sent."
)

Content = Path | bytes


def require_repo_id(repo_id: str) -> None:
    """Check that a text is the name of a Hub repository, with its owner.

    Raises:
        ConfigError: It is not.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(f"{repo_id!r} is not a repository name: {error}") from error
    if "/" not in repo_id:
        raise ConfigError(
            f"{repo_id!r} has no owner. Give owner/name, where owner is your account or your "
            f"organisation on the Hugging Face Hub."
        )


def model_files(model: Path) -> tuple[dict[str, Path], list[str]]:
    """Return a model's files by their names in a repository, and the names of those left out.

    The folder may come from an untrusted source: links that lead out of it are not followed.

    Raises:
        ModelError: It is neither a model's file nor a Diffusers folder.
    """
    if presence.is_file(model) and model.suffix.lower() in _FILE_ENDINGS:
        return {model.name: model}, []
    if not presence.is_file(model / "model_index.json"):
        raise ModelError(
            f"{model} is not a model to publish. Give a run directory, a .safetensors, .ckpt or "
            f".pt file, or a Diffusers folder (the one with model_index.json in it)."
        )
    found, left_out = {}, []
    for folder, folders, names in os.walk(model):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(folder) / name
            inside = file.relative_to(model).as_posix()
            is_ours = _FOLDER_FILES.fullmatch(name) is not None
            if is_ours and file.is_file() and files.is_inside(file, model):
                found[inside] = file
            else:
                left_out.append(inside)
    return found, left_out


def size_of(content: Content) -> int:
    """Return the size of a file or of bytes to be sent."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def has_token() -> bool:
    """Return whether a token for the Hub exists, in the environment or from `hf auth login`."""
    from huggingface_hub import get_token

    return bool(get_token())


def upload(
    repo_id: str, contents: Mapping[str, Content], progress: Progress, *, private: bool
) -> str:
    """Upload files to a repository as one commit, creating it if necessary; return its address.

    Files that have arrived are stored by the Hub even if the upload is interrupted before the
    commit, so that a second try sends only the others.

    Args:
        repo_id: `owner/name`.
        contents: Name in the repository -> file or bytes.
        progress: Shows the MiB that have arrived.
        private: Whether the repository must be private.

    Raises:
        ConfigError: There is no token, or the repository exists and is not private as requested.
        StorageError: The Hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    token = get_token()
    if not token:
        raise ConfigError(_NO_TOKEN)
    api = HfApi(token=token)
    try:
        address = str(api.create_repo(repo_id, private=private or None, exist_ok=True))
        if private and not api.model_info(repo_id).private:
            raise ConfigError(
                f"{repo_id} already exists and is public, so nothing was sent. Make it private in "
                f"its settings on the Hub, choose another name, or leave --private out."
            )
        operations = [
            CommitOperationAdd(name, str(c) if isinstance(c, Path) else c)
            for name, c in contents.items()
        ]
        _send(api, repo_id, operations, list(contents.values()), progress)
        api.create_commit(repo_id, operations, commit_message="Upload the model with Impasto")
    except (OSError, ValueError, RuntimeError, HTTPError, OfflineModeIsEnabled) as error:
        raise StorageError(
            f"{repo_id} could not be written on the Hugging Face Hub ({_reason(error)}). Check the "
            f"network, the spelling, and that the token has write permission. Run the same command "
            f"again: files that have arrived are not sent again."
        ) from error
    return address


def _send(
    api: Any, repo_id: str, operations: list[Any], contents: list[Content], progress: Progress
) -> None:
    sizes = [size_of(content) for content in contents]
    with progress.stage(f"Uploading to {repo_id}", max(1, sum(sizes) >> 20), "MiB") as advance:
        count = in_mib(advance)
        for operation, size in zip(operations, sizes, strict=True):
            api.preupload_lfs_files(repo_id, additions=[operation])
            count(size)


def _reason(error: BaseException) -> str:
    first = str(error).strip().split("\n")[0][:160]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
