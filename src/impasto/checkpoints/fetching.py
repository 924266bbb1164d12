"""A copy of a model of the Hugging Face Hub in a folder of one's own."""

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
    """Download a Diffusers model, a VAE or one file into a folder; nothing there is replaced.

    The `.yaml` beside a checkpoint comes with it. What has come of an interrupted download is used
    the next time.

    Args:
        hub_id: `owner/name`, or with a revision, `owner/name@revision`.
        folder: Where the model's folder or file is put, under its own name.
        layouts: The folders of the families that are known.
        progress: Is told what is downloaded.
        variant: Which set of weights where there are several, such as `fp16`; not with `file`.
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
                pattern = [glob.escape(chosen.sidecar)]  # small, and so known before the model
                download_snapshot(hub_id, progress, **wanted, allow_patterns=pattern)
                if not _is_there(beside, partial, chosen.sidecar):
                    targets = {chosen.sidecar: beside, **targets}
            download_snapshot(hub_id, progress, **wanted, allow_patterns=chosen.patterns)
            _give_names(partial, targets)
    return target


def _is_there(beside: Path, partial: Path, sidecar: str) -> bool:
    """Whether the `.yaml` of a checkpoint is there already, of another one of its name.

    Raises:
        RunError: One of that name says something else.
    """
    if not beside.exists():
        return False
    if beside.is_file() and beside.read_bytes() == (partial / sidecar).read_bytes():
        return True
    shutil.rmtree(partial, ignore_errors=True)
    raise RunError(
        f"{beside} is already there and says something else than that of the model, which would be "
        f"read by it; nothing was changed. Move it away, or choose another folder."
    )


def _partial_name(name: str, hub_id: str, wanted: Collection[str]) -> str:
    """Where a download is kept until it is whole: another place for another model or files."""
    mark = hashlib.sha256("\n".join([hub_id, *sorted(wanted)]).encode()).hexdigest()[:12]
    return f".{name}.{mark}.download"


def _give_names(partial: Path, targets: Mapping[str, Path]) -> None:
    """Give what was downloaded its names, unless something has got one of them meanwhile.

    Args:
        partial: The folder that it was downloaded into.
        targets: What is whole in there -> where it goes, in this order.

    Raises:
        RunError: Something has.
        StorageError: It cannot be moved.
    """
    for target in targets.values():
        files.require_absent(target)
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # notes of the download
    for name, target in targets.items():
        with storage_errors.reported(target):
            (partial / name).rename(target)
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
