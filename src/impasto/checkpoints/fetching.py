"""Downloads a copy of a model from the Hugging Face Hub into a folder of the user's choice."""

from __future__ import annotations

import functools
import glob
import hashlib
import shutil
from collections.abc import Collection, Mapping
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
    """Download a Diffusers model, a VAE or one file into a folder, without replacing anything.

    The `.yaml` beside a checkpoint is downloaded too. An interrupted download is continued the next
    time.

    Args:
        hub_id: `owner/name`, or with a revision, `owner/name@revision`.
        folder: Folder that the model's folder or file is put into, under its own name.
        layouts: Folders of the known families.
        progress: Shows the download.
        variant: Set of weights to use if there are several, such as `fp16`; not with `file`.
        file: File of the repository to download instead of its model.

    Returns:
        The folder or file.

    Raises:
        ModelError: There is no network, no such model or file, or no permission.
        RunError: Something with that name exists.
        StorageError: The folder cannot be written.
    """
    repo_id, _, revision = hub_id.partition("@")
    with hub_faults(functools.partial(_download_fault, hub_id)):
        listed = list_files(repo_id, revision, progress)
        if file is None:
            chosen = select_files(hub_id, listed, layouts, WeightChoice(variant=variant))
        elif file in listed:
            chosen = Selection.of_file(file, listed)
        else:
            raise ModelError(f"{hub_id} has no file {file}. {listing(hub_id, listed)}")
        target = folder / Path(chosen.file or repo_id).name
        targets = {chosen.file or ".": target}
        files.require_absent(target)
        files.require_writable(folder)
        partial = folder / _partial_name(target.name, hub_id, chosen.patterns)
        wanted = {"repo_id": repo_id, "revision": revision or None, "local_dir": partial}
        with locks.FolderLock(folder, "downloading", _refuse, f"{partial.name}.lock"):
            if chosen.sidecar is not None:
                beside = folder / Path(chosen.sidecar).name
                pattern = [glob.escape(chosen.sidecar)]  # small: compared before the model comes
                download_snapshot(hub_id, progress, **wanted, allow_patterns=pattern)
                if not _is_there(beside, partial, chosen.sidecar):
                    targets = {chosen.sidecar: beside, **targets}
            download_snapshot(hub_id, progress, **wanted, allow_patterns=chosen.patterns)
            _give_names(partial, targets)
    return target


def _is_there(beside: Path, partial: Path, sidecar: str) -> bool:
    """Return whether the `.yaml` of a checkpoint already exists, with the same content.

    Raises:
        RunError: It exists with another content.
    """
    if not beside.exists():
        return False
    if beside.is_file() and beside.read_bytes() == (partial / sidecar).read_bytes():
        return True
    shutil.rmtree(partial, ignore_errors=True)
    raise RunError(
        f"{beside} already exists and differs from the model's own, so the model would be read "
        f"wrongly; nothing was changed. Move it away, or choose another folder."
    )


def _partial_name(name: str, hub_id: str, wanted: Collection[str]) -> str:
    """Return the folder name of an unfinished download, one per model and set of files."""
    mark = hashlib.sha256("\n".join([hub_id, *sorted(wanted)]).encode()).hexdigest()[:12]
    return f".{name}.{mark}.download"


def _give_names(partial: Path, targets: Mapping[str, Path]) -> None:
    """Move downloaded files to their final names, unless one of these has been taken meanwhile.

    Args:
        partial: Folder that they were downloaded into.
        targets: Name in that folder -> final path, in this order.

    Raises:
        RunError: A final path exists.
        StorageError: A file cannot be moved.
    """
    for target in targets.values():
        files.require_absent(target)
    shutil.rmtree(
        partial / ".cache", ignore_errors=True
    )  # huggingface_hub's records of the download
    for name, target in targets.items():
        with storage_errors.reported(target):
            (partial / name).rename(target)
    shutil.rmtree(partial, ignore_errors=True)


def _refuse(holder: LockHolder) -> None:
    raise RunError(
        f"It is being downloaded already, by {holder.description}. Wait until that has finished."
    )


def _download_fault(hub_id: str, reason: str) -> str:
    return (
        f"{hub_id} could not be downloaded from the Hugging Face Hub ({reason}). Check the "
        f"spelling and the network, and log in with `hf auth login` if the model is gated. The "
        f"files downloaded so far are kept for the next try."
    )
