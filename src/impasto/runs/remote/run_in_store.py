"""A run in a store, for training: claims it, fetches it, uploads it meanwhile, and cleans up."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from impasto import presence
from impasto.errors import ConfigError, ImpastoError, RunError
from impasto.invocation import command
from impasto.progress import Progress
from impasto.remote_paths import READ_ONLY, location_fault, scheme_of, shown
from impasto.runs.directory import RunDirectory
from impasto.runs.remote.contents import SETTINGS, is_among
from impasto.runs.remote.fetching import fetch_older_state, fetch_to_resume, list_run
from impasto.runs.remote.local_folders import working_folder
from impasto.runs.remote.mirror import Mirror
from impasto.runs.remote.ownership import Owner, Ownership, is_alive, newest_owner
from impasto.runs.remote.record import SentRecord
from impasto.runs.remote.sending import Sender
from impasto.storage import objects


class RunInStore:
    """This process's right to write a run in a store, while the context is open.

    Closing it uploads the remaining files. If the work ended with an error, that error is raised,
    and a note reports what was not sent.

    Args:
        location: The run.
        progress: Shows progress and notes.
        is_new: Whether the run is new; else it is resumed, and is fetched.

    Attributes:
        folder: The local folder of the run.
    """

    def __init__(self, location: Path, progress: Progress, *, is_new: bool) -> None:
        self._location, self._progress, self._is_new = location, progress, is_new
        self.folder = working_folder(location)
        self._held = contextlib.ExitStack()
        self._mirror: Mirror | None = None

    def __enter__(self) -> RunInStore:
        """Claim the run, and fetch it if it is resumed.

        Raises:
            ConfigError: The location cannot be written.
            OSError: An object was downloaded only in part.
            RunError: A run already exists, or there is none to resume; or another process has it.
            StorageError: The store cannot be used.
        """
        require_location(self._location)
        if self._is_new:
            require_free(self._location)
            objects.require_writable(self._location)
        with contextlib.ExitStack() as held:
            self._owner = held.enter_context(Ownership(self._location, self._note_claim))
            if self._is_new:
                self._record = SentRecord(self._location)
            else:
                self._record = fetch_to_resume(self._location, self._owner, self._progress)
            self._record.owner, self._record.is_all_there = self._owner.number, False
            self._record.claim = None
            self._record.write()
            self._held = held.pop_all()
        return self

    def _note_claim(self, before: Owner | None, number: int, random: str) -> None:
        """Record which turn is requested, if the one before was this machine's.

        Otherwise, after a lost answer or an end right after the request, the turn would be taken
        for another machine's, and the run would continue without local files that are not in the
        store yet.
        """
        record = SentRecord.read(self._location)
        if self._is_new or before is None or not record.is_of(before.number, before.text):
            return
        record.owner, record.claim = before.number, (number, random)
        record.write()

    def attach(self, run: RunDirectory) -> RunDirectory:
        """Return the run directory with its location in the store."""
        return replace(
            run,
            location=self._location,
            taken_over=self._owner.taken_over,
            in_store=lambda key: is_among(key, self._record.left),
            older=lambda: fetch_older_state(self._record, self._progress),
        )

    def start(self) -> None:
        """Start to upload: from now on there is a run to keep."""
        self._mirror = Mirror(self.folder, self._location, self._sender, self._progress.note)
        self._mirror.start()

    def _sender(self, should_stop: Callable[[], bool]) -> Sender:
        return Sender(self.folder, self._record, self._require_own, should_stop)

    def _require_own(self) -> None:
        self._owner.require_fresh()
        if who := self._owner.taken_over():
            raise RunError(
                f"{shown(self._location)} has been taken over by {who}. Nothing more is sent "
                f"there. The results of this process are in {self.folder}."
            )

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._held:
            if self._mirror is None:
                return
            try:
                self._mirror.finish(self._progress)
            except ImpastoError as fault:
                if error is None:
                    raise
                self._progress.note(str(fault))
            else:
                self._record.is_all_there = True
                self._record.write()


def require_location(location: Path) -> None:
    """Check that a URL can be that of a run.

    Raises:
        ConfigError: It contains credentials, or its store is read-only.
    """
    fault = location_fault(location)
    if not fault and scheme_of(location) in READ_ONLY:
        fault = "that is a read-only store; expected a URL of s3:// or gs://"
    if fault:
        raise ConfigError(f"{shown(location)}: {fault}.")


def require_free(location: Path) -> None:
    """Check that a new run can use a location and its local folder.

    Raises:
        RunError: Something exists there, another process has it, or an earlier run was not sent.
        StorageError: The store cannot be used.
    """
    owner = newest_owner(location)
    if owner is not None and is_alive(location, owner):
        raise RunError(
            f"{shown(location)} is being written by {owner.description}. Nothing was changed."
        )
    if list_run(location):
        raise RunError(
            f"{shown(location)} already exists and is not empty; nothing in it was changed. Choose "
            f"another output_dir, delete it, or continue it with: "
            f"{command('resume', shown(location))}"
        )
    folder = working_folder(location)
    if presence.is_file(folder / SETTINGS):
        raise RunError(
            f"{shown(location)} is empty, and this machine has a run of that URL in {folder}, "
            f"which was never sent, or was deleted in the store. Send it with: "
            f"{command('send', shown(location))} - or delete that folder."
        )
    shutil.rmtree(folder, ignore_errors=True)  # leftovers of a killed start


def send_again(location: Path, progress: Progress) -> None:
    """Upload the local files of a run that the store lacks.

    Raises:
        NotSentError: Not everything could be sent.
        RunError: There is nothing of it here, it was continued elsewhere, or is being written.
        StorageError: The store cannot be used.
    """
    folder, record = working_folder(location), SentRecord.read(location)
    if not presence.is_file(folder / SETTINGS):
        raise RunError(f"This machine has nothing of {shown(location)} that could be sent.")
    owner = newest_owner(location)
    if owner is not None and not record.is_of(owner.number, owner.text):
        raise RunError(
            f"{shown(location)} was continued elsewhere since this machine last had it, so nothing "
            f"is sent. The files of this machine are in {folder}."
        )
    with RunInStore(location, progress, is_new=False) as kept:
        kept.start()


def remove_working_folder(run: RunDirectory) -> bool:
    """Remove the working folder of a run that is finished and completely in its store.

    The settings are removed first: a folder without them is not a run, so if the removal is
    interrupted, the remaining files are not mistaken for the run's content.

    Returns:
        Whether it was removed.
    """
    if run.location is None or run.status().get("phase") != "finished":
        return False
    if not SentRecord.read(run.location).is_all_there:
        return False
    try:
        run.config_file.unlink(missing_ok=True)
    except OSError:  # Windows removes no file that is open
        return False
    shutil.rmtree(run.path, ignore_errors=True)
    return True
