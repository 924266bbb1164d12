"""Downloads a run, or a model, from a store: to resume it, or to read it."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

from impasto import files, locks, presence
from impasto.errors import ModelError, RunError
from impasto.parsing import parse_toml, read_object
from impasto.progress import Progress, SilentProgress, in_mib
from impasto.remote_paths import shown
from impasto.runs.remote.contents import (
    FOLDER_MARK,
    OWNERS,
    SETTINGS,
    is_of_models,
    is_safe,
    items_in,
    state_of_key,
    whole_states,
)
from impasto.runs.remote.local_folders import home_of, reading_folder, working_folder
from impasto.runs.remote.ownership import Owner, Ownership, newest_owner
from impasto.runs.remote.record import SentRecord, signature_of
from impasto.runs.remote.sending import Sender, has_dropped_states
from impasto.runs.steps import step_in, step_name
from impasto.storage import copies, objects
from impasto.storage.objects import Stored

_FETCHED = "fetched.json"
Listed = Mapping[str, Stored]


def list_run(location: Path) -> dict[str, Stored]:
    """Return all objects of a run, except those that record who writes it.

    Raises:
        StorageError: The store cannot be used.
    """
    found = objects.find(location).objects
    return {k: stored for k, stored in found.items() if not k.startswith((f"{OWNERS}/", "."))}


def fetch_to_resume(location: Path, owner: Ownership, progress: Progress) -> SentRecord:
    """Update the working folder of a run from the store, or use what this machine left there.

    If this machine had the newest turn, its files are kept, and those not yet uploaded are uploaded
    later; if its states were deleted here, the newest is fetched from the store. Otherwise
    everything is fetched except older states and what training does not need: models, unless some
    are to be removed (`saving.keep_models` and the like), and stored averages.

    Args:
        location: The run.
        owner: This process's turn at it.
        progress: Shows progress.

    Raises:
        OSError: An object was downloaded only in part.
        RunError: There is no run.
        StorageError: The store cannot be used, or the disk is full.
    """
    folder, record = working_folder(location), SentRecord.read(location)
    is_here = presence.is_file(folder / SETTINGS)
    is_newest = is_here and _is_newest(record, owner.before)
    if is_newest:  # at once, so that the run stays this machine's if anything fails below
        record.owner = owner.number
        record.write()
    listed = list_run(location)
    if is_newest:
        _take_settings(folder, record, listed)
        here = {key for thing in items_in(folder) for key in thing.files}
        record.compare(listed, here)
        if not whole_states(here) and not has_dropped_states(folder):
            fetch_older_state(record, progress)
        return record
    if SETTINGS not in listed:
        raise RunError(
            f"{shown(location)} is not a run directory (no {SETTINGS} in it). Give the URL that a "
            f"training run had as its output_dir."
        )
    if is_here:
        _keep_unsent(folder, record, progress)
    shutil.rmtree(folder, ignore_errors=True)
    steps = whole_states(listed)
    keeps_models = _keeps_models(objects.read(location / SETTINGS))
    wanted = {
        key: stored
        for key, stored in listed.items()
        if _is_needed(key, steps[-1] if steps else 0, keeps_models=keeps_models)
    }
    fresh = SentRecord(location)
    _fetch(location, folder, wanted, progress, fresh)
    fresh.left = [key for key in listed if key not in wanted]
    return fresh


def _take_settings(folder: Path, record: SentRecord, listed: Listed) -> None:
    """Fetch settings that were changed in the store since they were sent, and not here."""
    there = listed.get(SETTINGS)
    if there is not None and are_settings_newer(folder, record, there):
        came = copies.fetch_newest(record.location / SETTINGS, folder / SETTINGS, there)
        record.sent[SETTINGS] = (signature_of(folder / SETTINGS), came.identity)


def are_settings_newer(folder: Path, record: SentRecord, there: Stored) -> bool:
    """Return whether the settings were changed in the store since they were sent, and not here."""
    sent = record.sent.get(SETTINGS)
    if sent is None or there.identity == sent[1]:
        return False
    return signature_of(folder / SETTINGS) == sent[0]


def fetch_older_state(record: SentRecord, progress: Progress) -> list[int]:
    """Fetch the newest state that was left in the store, for runs whose later ones are damaged.

    Returns:
        Its step in a list; empty if there is none.

    Raises:
        OSError: An object was downloaded only in part.
        StorageError: The store cannot be used, or the disk is full.
    """
    with record.lock:
        step = max(whole_states(record.left), default=0)
        own = {key for key in record.left if state_of_key(key) == step}
        if not step or not own:
            return []
        listed = {key: stored for key, stored in list_run(record.location).items() if key in own}
        _fetch(record.location, working_folder(record.location), listed, progress, record)
        record.left = [key for key in record.left if key not in own]
        record.write()
    return [step]


def is_here(location: Path) -> bool:
    """Return whether this machine was the last to write a run, and still has it.

    Raises:
        StorageError: The store cannot be used.
    """
    if not presence.is_file(working_folder(location) / SETTINGS):
        return False
    return _is_newest(SentRecord.read(location), newest_owner(location))


def _is_newest(record: SentRecord, owner: Owner | None) -> bool:
    """Return whether this machine had the newest turn at writing a run."""
    return record.is_of(0, "") if owner is None else record.is_of(owner.number, owner.text)


def _keep_unsent(folder: Path, record: SentRecord, progress: Progress) -> None:
    """Keep the working folder of a run that continued elsewhere, if not all of it was sent."""
    if not Sender(folder, record).unsent():
        return
    target = presence.free_path(home_of(record.location) / "kept" / folder.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    files.rename(folder, target)
    progress.note(
        f"{shown(record.location)} was continued elsewhere since this machine last had it. Files "
        f"that were not sent from here are kept in {target}."
    )


def _is_needed(key: str, newest: int, *, keeps_models: bool) -> bool:
    if not is_safe(key):
        return False
    if key.startswith("states/"):
        return state_of_key(key) == newest
    return keeps_models if is_of_models(key) else not key.startswith("averages")


def _keeps_models(settings: bytes) -> bool:
    """Return whether the run removes models that it has exported before."""
    try:
        saving = parse_toml(settings.decode("utf-8")).get("saving", {})
        return any(saving.get(f"keep_{of}models") for of in ("", "step_", "epoch_"))
    except (ValueError, AttributeError):
        return True


def _fetch(
    location: Path, folder: Path, wanted: Listed, progress: Progress, record: SentRecord
) -> None:
    """Fetch objects; the settings last, so that a folder that has them is complete."""
    size = sum(stored.size for stored in wanted.values())
    with progress.stage(f"Fetching {shown(location)}", size >> 20 or 1, "MiB") as advance:
        count = in_mib(advance)
        for key in sorted(wanted, key=lambda key: (key == SETTINGS, key)):
            stored = copies.fetch_newest(location / key, folder / key, wanted[key])
            record.sent[key] = (signature_of(folder / key), stored.identity)
            count(stored.size)


def fetch_to_read(
    location: Path,
    is_wanted: Callable[[str], bool],
    progress: Progress | None = None,
    listed: Listed | None = None,
    own: Path | None = None,
) -> Path:
    """Fetch files of a folder in a store for reading, and return their folder; present ones stay.

    Each file is complete, and so is each Diffusers folder: one that a run replaces meanwhile is
    fetched again.

    Args:
        location: A run, or a model that is a folder.
        is_wanted: Returns whether a key below it is fetched.
        progress: Shows progress.
        listed: All its objects, if they were listed already.
        own: The location under which it is stored, if not `location`.

    Raises:
        OSError: An object was downloaded only in part, or a Diffusers folder is being replaced.
        StorageError: The store cannot be used, or the disk is full.
    """
    folder, home = reading_folder(own or location), home_of(own or location)
    home.mkdir(parents=True, exist_ok=True)
    progress = progress or SilentProgress()
    waiter = locks.LockWaiter(progress.note, f"fetching {shown(location)}")
    with locks.FolderLock(home, f"fetching {shown(location)}", waiter, ".fetch.lock"):
        listed = list_run(location) if listed is None else listed
        for _ in range(_TRIES):
            wanted = {k: s for k, s in listed.items() if is_safe(k) and is_wanted(k)}
            fetched = _fetch_stale(location, folder, listed, wanted, progress)
            in_folders = _folder_models(wanted)
            if own is not None or not any(_is_below(key, in_folders) for key in fetched):
                break
            listed = list_run(location)
            if in_folders - _folder_models(listed):
                raise OSError(errno.EAGAIN, "a model in it is just being replaced", shown(location))
        else:
            raise OSError(errno.EAGAIN, "is being replaced again and again", shown(location))
        _name_states(folder / "states", whole_states(listed))
    return folder


_TRIES = 4
"""How often a folder that is replaced meanwhile is fetched."""


def _fetch_stale(
    location: Path, folder: Path, listed: Listed, wanted: Listed, progress: Progress
) -> set[str]:
    """Fetch files that are missing or outdated, and remove those that are gone in the store.

    Returns:
        The keys that were fetched.
    """
    file = folder.parents[1] / _FETCHED
    had = read_object(file) or {}
    stale = {
        key: stored
        for key, stored in wanted.items()
        if had.get(key) != stored.identity or not _is_whole(folder / key, stored)
    }
    for key in had:
        if key not in listed and is_safe(key):
            (folder / key).unlink(missing_ok=True)
    if stale:
        record = SentRecord(location)
        _fetch(location, folder, stale, progress, record)
        kept = {key: identity for key, identity in had.items() if key in listed}
        fetched = {key: identity for key, (_, identity) in record.sent.items()}
        files.write_json(file, {**kept, **fetched}, durable=False)
    return set(stale)


def _folder_models(keys: Iterable[str]) -> set[PurePosixPath]:
    """Return the Diffusers folders that are complete in a listing."""
    paths = (PurePosixPath(key) for key in keys)
    return {path.parent for path in paths if path.name == FOLDER_MARK}


def _is_below(key: str, folders: set[PurePosixPath]) -> bool:
    return not folders.isdisjoint(PurePosixPath(key).parents)


def _is_whole(file: Path, stored: Stored) -> bool:
    return presence.is_file(file) and file.stat().st_size == stored.size


def _name_states(folder: Path, steps: list[int]) -> None:
    """Create empty folders with the names of states, which is all that readers need of them."""
    for step in steps:
        (folder / step_name(step)).mkdir(parents=True, exist_ok=True)
    if folder.is_dir():
        for entry in folder.iterdir():
            if entry.is_dir() and step_in(entry.name) not in steps:
                shutil.rmtree(entry, ignore_errors=True)


def fetch_model(location: Path, progress: Progress | None = None) -> Path:
    """Return a copy of a model in a store: a file, a Diffusers folder, or a run with its model.

    Raises:
        ModelError: There is nothing, or it was downloaded only in part.
        StorageError: The store cannot be used, or the disk is full.
    """
    try:
        stored = objects.look_up(location)
        if stored is not None and is_safe(location.name):
            only = {location.name: stored}
            return fetch_to_read(location.parent, is_safe, progress, only, location) / location.name
        listed = list_run(location)
        if not listed:
            raise ModelError(
                f"The model {shown(location)} does not exist. Give the URL of a .safetensors or "
                f".ckpt file, of a Diffusers folder (the one with model_index.json in it), or of a "
                f"run."
            )
        if SETTINGS not in listed:
            return fetch_to_read(location, is_safe, progress, listed)
        if is_here(location):
            return working_folder(location)
        return fetch_to_read(location, _is_of_finished_run, progress, listed)
    except OSError as error:
        raise ModelError(
            f"The model {shown(location)} could not be fetched: {error.strerror or error}. Try "
            f"again."
        ) from error


def _is_of_finished_run(key: str) -> bool:
    return "/" not in key or key.startswith("export/")
