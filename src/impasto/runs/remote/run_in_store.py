"""A run in a store for whoever trains it: taken, fetched, sent meanwhile, and removed here."""

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
    """This process's right to write a run in a store, while entered as a context.

    Its end sends what is left. Where the work ended with an error of its own, that error is passed
    on, and a note says what was not sent.

    Args:
        location: The run.
        progress: Is told.
        is_new: Whether the run begins; else it goes on, and is fetched.

    Attributes:
        folder: Where the run is on this machine.
    """

    def __init__(self, location: Path, progress: Progress, *, is_new: bool) -> None:
        self._location, self._progress, self._is_new = location, progress, is_new
        self.folder = working_folder(location)
        self._held = contextlib.ExitStack()
        self._mirror: Mirror | None = None

    def __enter__(self) -> RunInStore:
        """Take the run, and fetch it where it goes on.

        Raises:
            ConfigError: The location cannot be written.
            OSError: An object came only in part.
            RunError: There is a run already, or none to go on with; or another process has it.
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
        """Remember which turn is asked for, where the one before was this machine's.

        Else a lost answer, or an end just after it, would make the turn that of somebody else, and
        the run would go on without what is here and not in the store yet.
        """
        record = SentRecord.read(self._location)
        if self._is_new or before is None or not record.is_of(before.number, before.text):
            return
        record.owner, record.claim = before.number, (number, random)
        record.write()

    def attach(self, run: RunDirectory) -> RunDirectory:
        """The run directory with the location where it belongs."""
        return replace(
            run,
            location=self._location,
            taken_over=self._owner.taken_over,
            in_store=lambda key: is_among(key, self._record.left),
            older=lambda: fetch_older_state(self._record, self._progress),
        )

    def start(self) -> None:
        """Begin to send: from now on there is a run to keep."""
        self._mirror = Mirror(self.folder, self._location, self._sender, self._progress.note)
        self._mirror.start()

    def _sender(self, should_stop: Callable[[], bool]) -> Sender:
        return Sender(self.folder, self._record, self._require_own, should_stop)

    def _require_own(self) -> None:
        self._owner.require_fresh()
        if who := self._owner.taken_over():
            raise RunError(
                f"{shown(self._location)} has been taken over by {who}. Nothing more is sent "
                f"there. What this process has done is in {self.folder}."
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
    """Make sure that a URL may be that of a run.

    Raises:
        ConfigError: It has credentials in it, or its store is only read from.
    """
    fault = location_fault(location)
    if not fault and scheme_of(location) in READ_ONLY:
        fault = "that is a store that is only read from; expected a place in s3:// or gs://"
    if fault:
        raise ConfigError(f"{shown(location)}: {fault}.")


def require_free(location: Path) -> None:
    """Make sure that a new run can have a location, and its folder on this machine.

    Raises:
        RunError: Something is there, another process has it, or an earlier run was not sent.
        StorageError: The store cannot be used.
    """
    owner = newest_owner(location)
    if owner is not None and is_alive(location, owner):
        raise RunError(
            f"{shown(location)} is being written just now by {owner.description}. Nothing was "
            f"changed."
        )
    if list_run(location):
        raise RunError(
            f"{shown(location)} is already there and not empty; nothing in it was touched. Choose "
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
    shutil.rmtree(folder, ignore_errors=True)  # what a killed start has left


def send_again(location: Path, progress: Progress) -> None:
    """Put into the store what this machine has of a run and the store has not.

    Raises:
        NotSentError: Not all could be sent.
        RunError: There is nothing of it here, it was continued elsewhere, or is being written.
        StorageError: The store cannot be used.
    """
    folder, record = working_folder(location), SentRecord.read(location)
    if not presence.is_file(folder / SETTINGS):
        raise RunError(f"This machine has nothing of {shown(location)} that could be sent.")
    owner = newest_owner(location)
    if owner is not None and not record.is_of(owner.number, owner.text):
        raise RunError(
            f"{shown(location)} was continued elsewhere since this machine had it last, so nothing "
            f"is sent. What this machine has is in {folder}."
        )
    with RunInStore(location, progress, is_new=False) as kept:
        kept.start()


def remove_working_folder(run: RunDirectory) -> bool:
    """Remove the working folder of a run that is finished and wholly in its store.

    The settings go first: a folder without them is no run, so what is left of it where removing is
    cut short says nothing of what belongs in the store.

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
