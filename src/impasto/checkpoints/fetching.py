"""A copy of a model of the Hugging Face Hub in a folder of one's own."""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Collection
from pathlib import Path

from impasto import files, locks, storage_errors
from impasto.checkpoints.downloads import download_snapshot
from impasto.checkpoints.hub import list_files
from impasto.checkpoints.hub_faults import hub_faults
from impasto.checkpoints.hub_listing import Selection, listing, select_files
from impasto.checkpoints.weight_files import FolderLayout, WeightChoice
from impasto.errors import ModelError, RunError
from impasto.lock_file import LockHolder
from impasto.progress import Progress


def fetch_copy(
    hub_id: str,
    folder: Path,
    layouts: Collection[FolderLayout],
    progress: Progress,
    *,
    variant: str | None = None,
    file: str | None = None,
) -> Path:
    """Download a Diffusers model, a VAE or one file into a folder; nothing there is replaced.

    What has come of an interrupted download is used the next time.

    Args:
        hub_id: `owner/name`, or with a revision, `owner/name@revision`.
        folder: Where the model's folder or file is put, under its own name.
        layouts: The folders of the families that are known.
        progress: Is told what is downloaded.
        variant: Which set of weights where there are several, such as `fp16`.
        file: A file of the repository, instead of what it is as a whole.

    Returns:
        The folder or file.

    Raises:
        ModelError: There is no network, no such model or file, or no permission.
        RunError: There is something of that name.
        StorageError: The folder cannot be written.
    """
    repo_id, _, revision = hub_id.partition("@")
    with hub_faults(functools.partial(_download_fault, hub_id)):
        listed = list_files(repo_id, revision)
        if file is None:
            chosen = select_files(hub_id, listed, layouts, WeightChoice(variant=variant))
        elif file in listed:
            chosen = Selection.of_file(file)
        else:
            raise ModelError(f"{hub_id} has no file {file}. {listing(hub_id, listed)}")
        single, wanted = chosen.file, chosen.patterns
        target = folder / (Path(single or repo_id).name)
        files.require_absent(target)
        files.require_writable(folder)
        partial = folder / _partial_name(target.name, hub_id, wanted)
        with locks.FolderLock(folder, "downloading", _refuse, f"{partial.name}.lock"):
            download_snapshot(
                hub_id,
                progress,
                repo_id=repo_id,
                revision=revision or None,
                local_dir=partial,
                allow_patterns=wanted,
            )
            _give_name(partial, partial / single if single else partial, target)
    return target


def _partial_name(name: str, hub_id: str, wanted: Collection[str]) -> str:
    """Where a download is kept until it is whole: another place for another model or files."""
    mark = hashlib.sha256("\n".join([hub_id, *sorted(wanted)]).encode()).hexdigest()[:12]
    return f".{name}.{mark}.download"


def _give_name(partial: Path, whole: Path, target: Path) -> None:
    """Give what was downloaded its name, unless something has got that name meanwhile.

    Raises:
        RunError: Something has.
        StorageError: It cannot be moved.
    """
    files.require_absent(target)
    with storage_errors.reported(target):
        shutil.rmtree(partial / ".cache", ignore_errors=True)  # notes of the download
        whole.rename(target)
    shutil.rmtree(partial, ignore_errors=True)


def _refuse(holder: LockHolder) -> None:
    raise RunError(
        f"It is being downloaded already, by {holder.description}. Wait until that is done."
    )


def _download_fault(hub_id: str, reason: str) -> str:
    return (
        f"{hub_id} could not be downloaded from the Hugging Face Hub ({reason}). Check the "
        f"spelling and the network, and log in with `hf auth login` if the model is gated. What "
        f"was downloaded is kept for the next try."
    )
