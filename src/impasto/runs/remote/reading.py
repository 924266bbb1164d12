"""Opens a run for reading, wherever it is: on a disk, or fetched from a store."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from impasto.errors import RunError, StorageError
from impasto.lock_file import LockHolder
from impasto.progress import Progress
from impasto.remote_paths import is_remote, shown
from impasto.runs.directory import RunDirectory
from impasto.runs.remote.contents import SETTINGS, is_among, is_of_models, is_safe
from impasto.runs.remote.fetching import are_settings_newer, fetch_to_read, is_here, list_run
from impasto.runs.remote.local_folders import location_of, working_folder
from impasto.runs.remote.ownership import Owner, is_alive, newest_owner
from impasto.runs.remote.record import SentRecord
from impasto.runs.remote.run_in_store import require_location
from impasto.storage import objects


def is_of_pages(key: str) -> bool:
    """Return whether a key is needed to show a run: its small files and previews, not weights."""
    return not key.startswith(("states/", "averages", "tensorboard/")) and not is_of_models(key)


def is_not_of_states(key: str) -> bool:
    """Return whether a key is a result of a run; states only serve to resume it."""
    return not key.startswith("states/")


def is_of_pages_and_models(key: str) -> bool:
    """Return whether a key is needed to show a run, or is one of its models."""
    return is_of_models(key) or is_of_pages(key)


def is_of_publishing(key: str) -> bool:
    """Return whether a key is published with a run: its final model, and what shows the run."""
    return key.startswith("export/") or is_of_pages(key)


def open_run(
    path: Path,
    progress: Progress | None = None,
    is_wanted: Callable[[str], bool] = is_of_pages,
) -> RunDirectory:
    """Open a run to read it; one in a store is fetched, unless this machine has its newest state.

    Args:
        path: Its directory, or its URL.
        progress: Shows the progress of fetching.
        is_wanted: Returns whether a key of a run in a store is fetched.

    Raises:
        ConfigError: The URL contains credentials.
        RunError: There is no run.
        StorageError: The store cannot be used, or the disk is full.
    """
    location = location_of(path)
    if location is None:
        return RunDirectory.open(path)
    require_location(location)
    if is_here(location):
        left = SentRecord.read(location).left
        if not any(is_wanted(key) and is_safe(key) for key in left):
            return RunDirectory(
                working_folder(location),
                location=location,
                in_store=lambda key: is_among(key, left),
            )
    listed = list_run(location)
    if SETTINGS not in listed:
        raise RunError(
            f"{shown(location)} is not a run directory (no {SETTINGS} in it). Give the URL that a "
            f"training run had as its output_dir."
        )
    try:
        folder = fetch_to_read(location, is_wanted, progress, listed)
    except OSError as error:
        raise StorageError(
            f"{shown(location)} could not be fetched: {error.strerror or error}. Try again."
        ) from error
    run = RunDirectory(folder, location=location, in_store=lambda key: is_among(key, listed))
    owner = newest_owner(location)
    if owner is None or not is_alive(location, owner):
        return run
    return replace(run, elsewhere=_holder(owner))


def settings_to_go_on(run: RunDirectory) -> Path:
    """Return the file of settings with which a run would be resumed: the store's, if changed there.

    The run's files on this machine are not changed: only resuming it stores the settings among
    them.

    Raises:
        StorageError: The store cannot be used, or the disk is full.
    """
    location = run.location
    if location is None or run.path != working_folder(location):
        return run.config_file
    try:
        there = objects.look_up(location / SETTINGS)
        if there is None or not are_settings_newer(run.path, SentRecord.read(location), there):
            return run.config_file
        return fetch_to_read(location, lambda key: key == SETTINGS) / SETTINGS
    except OSError as error:
        raise StorageError(
            f"{shown(location / SETTINGS)} could not be fetched: {error.strerror or error}. Try "
            f"again."
        ) from error


def settings_file_of(source: str | Path) -> Path:
    """Return the local path of a run's settings, fetched from its store; it may not exist.

    Args:
        source: A run, by its directory or URL, or anything else, such as a model file.

    Raises:
        StorageError: The store cannot be used, or the disk is full.
    """
    if not is_remote(source):
        return RunDirectory(Path(source).expanduser()).config_file
    location = Path(source)
    if objects.look_up(location / SETTINGS) is None:
        return working_folder(location) / SETTINGS
    return open_run(location).config_file


def _holder(owner: Owner) -> LockHolder:
    """Return the process that writes a run in a store in the form of a lock holder."""
    return LockHolder(owner.text, owner.process, owner.host, owner.since, "training", 0.0)


def put_report(run: RunDirectory) -> None:
    """Upload the report of a run, if the run belongs in a store.

    Raises:
        StorageError: The store cannot be used.
    """
    if run.location is not None:
        with contextlib.suppress(FileNotFoundError):
            objects.upload(run.report, run.location / run.report.name)


def require_here(run: RunDirectory) -> None:
    """Check that a run is trained on this machine, as only its own machine can receive commands.

    Raises:
        RunError: It is trained on another.
    """
    if run.elsewhere is not None:
        raise RunError(
            f"{run.address} is trained on {run.elsewhere.host}, and commands to a run work only on "
            f"its own machine. This one is {socket.gethostname()}."
        )
