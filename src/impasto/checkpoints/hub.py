"""Models given by their id on the Hugging Face Hub, downloaded once into its cache."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from pathlib import Path

from impasto import presence
from impasto.checkpoints.downloads import download_snapshot
from impasto.checkpoints.hub_answers import HubAnswers, Question
from impasto.checkpoints.hub_copies import local_copy
from impasto.checkpoints.hub_faults import hub_faults, is_unreachable
from impasto.checkpoints.hub_listing import select_files
from impasto.checkpoints.weight_files import FolderLayout, WeightChoice
from impasto.errors import ModelError
from impasto.progress import Progress, SilentProgress
from impasto.remote_paths import is_remote, location_fault

FILE_ENDINGS = {".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin"}
"""Extensions of names that are files and no Hub ids."""

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w.-]+)?$")
TIMEOUT_S = 20
ANSWERS = HubAnswers()


def looks_like_hub_id(text: str) -> bool:
    """Return whether a text has the form `owner/name` or `owner/name@revision`."""
    return HUB_ID.match(text) is not None


def require_source(source: str) -> None:
    """Check, before heavy imports, that a model exists or may be on the Hub or in a store.

    Raises:
        ModelError: It is neither an existing path nor of the form of a Hub id or a URL.
    """
    if is_remote(source):
        fault = location_fault(Path(source))
        if fault:
            raise ModelError(f"The model {source!r}: {fault}.")
        return  # fetching it shows whether it exists
    path = Path(source).expanduser()
    if presence.exists(path) or (looks_like_hub_id(source) and path.suffix not in FILE_ENDINGS):
        return
    raise ModelError(
        f"The model {source} does not exist. Give the path of a .safetensors or .ckpt file, of a "
        f"Diffusers folder (the one with model_index.json in it), or a Hub id such as owner/name."
    )


def download(
    hub_id: str,
    layouts: Collection[FolderLayout],
    progress: Progress | None = None,
    choice: WeightChoice | None = None,
) -> Path:
    """Return the local folder or file of a Hub model, downloading missing files.

    Only the needed components are downloaded, as safetensors if the repository has them. Without a
    network a copy is used if it can be opened, even if the Hub may have a file for some component
    that fits the choice better; opening it notes which files were used. The answer is cached for
    the whole process, and a Hub that did not answer is not tried again for a while.

    Args:
        hub_id: `owner/name`, or with a revision, `owner/name@revision`.
        layouts: Folders of the known families.
        progress: Shows the download.
        choice: Set of weights to use if there are several.

    Raises:
        ModelError: There is no network, no such model, or no permission, and no downloaded copy; or
            the repository has nothing that can be opened.
    """
    choice, progress = choice or WeightChoice(), progress or SilentProgress()
    question = Question.about(hub_id, choice)
    known = ANSWERS.path_of(question)
    if known is not None:
        return known
    name, _, revision = hub_id.partition("@")
    wanted = {"repo_id": name, "revision": revision or None}
    copy = local_copy(wanted, layouts)
    if copy is not None and copy.has_all(choice):
        return copy.folder
    found = None if copy is None else copy.usable(choice)
    if found is not None and ANSWERS.is_silent(question):
        return found
    sentence_of = functools.partial(_download_fault, hub_id)
    try:
        with hub_faults(sentence_of):
            listed = list_files(name, revision, progress)
    except ModelError as fault:
        if found is None:
            raise
        if is_unreachable(fault):
            ANSWERS.keep_silence(question)
            progress.note(
                f"The Hugging Face Hub cannot be reached: the local copy of {hub_id} is used."
            )
        return found
    from huggingface_hub.utils import filter_repo_objects

    chosen = select_files(hub_id, listed, layouts, choice)
    with hub_faults(sentence_of):
        folder = download_snapshot(hub_id, progress, **wanted, allow_patterns=chosen.patterns)
    found = folder if chosen.file is None else folder / chosen.file
    names = filter_repo_objects(listed, allow_patterns=chosen.patterns)
    ANSWERS.keep(question, found, [folder / name for name in names])
    return found


def list_files(name: str, revision: str, progress: Progress) -> list[str]:
    """Return the names of the files of a repository, at a revision or on the main branch.

    Args:
        name: Owner and name of the repository.
        revision: Revision; empty for the main branch.
        progress: Shows the request.

    Raises:
        OSError, ValueError, HTTPError, OfflineModeIsEnabled: As for `huggingface_hub`.
    """
    from huggingface_hub import HfApi

    with progress.stage(f"Asking the Hugging Face Hub for {name}", None, "answers"):
        info = HfApi().model_info(name, revision=revision or None, timeout=TIMEOUT_S)
    return [file.rfilename for file in info.siblings or ()]


def _download_fault(hub_id: str, reason: str) -> str:
    return (
        f"{hub_id} is not a file or folder on this machine, and could not be downloaded from the "
        f"Hugging Face Hub ({reason}). Check the spelling and the network, log in with `hf auth "
        f"login` if the model is gated, or give the path of a local copy."
    )
