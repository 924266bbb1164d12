"""Uploads complete items of a run's working folder to its store: each as a whole or not at all.

Files are sent from hard links, so that training can replace and remove them meanwhile, and even a
slow store completes each upload. On a disk without hard links, they are copied.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from impasto import temporary_names
from impasto.errors import StorageError
from impasto.parsing import parse_toml, read_object, read_text
from impasto.progress import Advance, counted, size_text
from impasto.remote_paths import shown
from impasto.runs.remote.contents import (
    FOLDER_MARK,
    MODELS_RECORD,
    SETTINGS,
    STATE_MARK,
    TURNS,
    UploadItem,
    is_of_models,
    items_in,
    state_of_key,
    whole_states,
)
from impasto.runs.remote.local_folders import home_of
from impasto.runs.remote.record import SentRecord, Signature, signature_of
from impasto.storage import copies, objects

LOGS_EVERY_S = 60.0
"""Minimum seconds between two uploads of logs and status while a run is in progress."""

_SHARE_OF_TIME = 10
"""Logs may take up to a tenth of the time: each upload sends them whole, however long they are."""


Held = dict[str, tuple[Path, Signature]]
"""Key -> the path at which its content is held, and the signature of the original file."""

_TURN_OF_STATES, _TURN_OF_MODELS = TURNS["states"], TURNS["models"]


class SendingStopped(Exception):  # noqa: N818 - not an error, but a requested stop
    """Sending was told to stop between two files."""


class Sender:
    """Brings a run in a store up to date with its working folder, on request.

    Args:
        folder: The working folder.
        record: The record of what is in the store; kept up to date.
        require_own: Called before anything is uploaded or removed; raises if that is not allowed.
        should_stop: Returns whether to stop between two files.

    Attributes:
        advance: Called with the bytes that have been sent.
    """

    def __init__(
        self,
        folder: Path,
        record: SentRecord,
        require_own: Callable[[], None] = lambda: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._folder, self._record = folder, record
        self._location = record.location
        self._require_own, self._should_stop = require_own, should_stop
        self._logs_due = 0.0
        self._began_with = max(whole_states([*record.sent, *record.left]), default=0)
        self.advance: Advance = lambda _: None
        temporary_names.remove_leftovers(home_of(self._location))

    def unsent(self) -> dict[str, int]:
        """Return the files that are missing or outdated in the store: key -> bytes.

        Raises:
            OSError: The working folder cannot be read.
        """
        found = {}
        for thing in items_in(self._folder):
            for key in thing.files:
                with contextlib.suppress(FileNotFoundError):
                    signature = signature_of(self._folder / key)
                    if not self._has(key, signature):
                        found[key] = signature[0]
        return found

    def send(self, *, all_of_it: bool = False) -> None:
        """Upload new and changed items, then remove from the store what is gone here.

        Args:
            all_of_it: Whether to upload logs and status too, which otherwise wait for their time or
                for a state.

        Raises:
            OSError: A file cannot be read, or was sent only in part.
            RunError: Another process has taken over the run.
            SendingStopped: It was told to stop.
            StorageError: The store cannot be used.
        """
        with self._record.lock:
            self._send(all_of_it=all_of_it)

    def _send(self, *, all_of_it: bool) -> None:
        changed = [thing for thing in items_in(self._folder) if self._is_changed(thing)]
        is_due = all_of_it or not all(thing.grows for thing in changed)
        if not is_due and (not changed or time.monotonic() < self._logs_due):
            return
        began = time.monotonic()
        sent = self._record.sent.copy()
        try:
            with contextlib.ExitStack() as held, copies.scratch(home_of(self._location)) as scratch:
                self._put_all(held, scratch)
            self._remove_gone()
        finally:
            if self._record.sent != sent:
                self._record.write()
        now = time.monotonic()
        self._logs_due = now + max(LOGS_EVERY_S, _SHARE_OF_TIME * (now - began))

    def _put_all(self, held: contextlib.ExitStack, scratch: Path) -> None:
        """Upload changed items in their order.

        Files are held in the opposite order: whatever a record, status or state refers to was
        written before it, so a later listing finds it.
        """
        last = self._hold_all(held, scratch / "last", lambda turn: turn > _TURN_OF_MODELS)
        states = self._hold_all(held, scratch / "states", lambda turn: turn == _TURN_OF_STATES)
        number = 0
        for thing in items_in(self._folder):
            if thing.turn == _TURN_OF_STATES or thing.turn > _TURN_OF_MODELS:
                continue
            if thing.turn > _TURN_OF_STATES and states:
                self._put_held(states)
            if self._is_changed(thing):
                number += 1
                with self._held(thing, scratch / str(number)) as files_of:
                    self._put(thing, files_of)
        self._put_held(states)
        self._put_held(last)

    def _hold_all(
        self, held: contextlib.ExitStack, scratch: Path, is_meant: Callable[[int], bool]
    ) -> dict[UploadItem, Held]:
        """Hold the changed items of the selected turns, until the stack is closed."""
        scratch.mkdir()
        changed = [t for t in items_in(self._folder) if is_meant(t.turn) and self._is_changed(t)]
        return {
            thing: held.enter_context(self._held(thing, scratch / str(number)))
            for number, thing in enumerate(changed)
        }

    def _put_held(self, things: dict[UploadItem, Held]) -> None:
        while things:
            thing = next(iter(things))
            self._put(thing, things.pop(thing))

    def _is_changed(self, thing: UploadItem) -> bool:
        try:
            return not all(self._has(k, signature_of(self._folder / k)) for k in thing.files)
        except FileNotFoundError:
            return False  # it is being replaced, or gone: the next check will show

    def _has(self, key: str, signature: Signature) -> bool:
        return key in self._record.sent and self._record.sent[key][0] == signature

    @contextlib.contextmanager
    def _held(self, thing: UploadItem, scratch: Path) -> Iterator[Held]:
        """Hold the present files of an item, whatever happens to them later; none if it is gone."""
        found: Held = {}
        # Windows cannot replace a file while a link to it is open
        as_copy = thing.grows or (thing.turn == _TURN_OF_MODELS and os.name == "nt")
        try:
            scratch.mkdir()
            for number, key in enumerate(thing.files):
                own = scratch / str(number)
                found[key] = (own, _hold(self._folder / key, own, as_copy=as_copy))
            if not thing.grows and any(
                signature_of(self._folder / k) != found[k][1] for k in thing.files
            ):
                found = {}  # it was replaced meanwhile
        except FileNotFoundError:
            found = {}
        try:
            yield found
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _put(self, thing: UploadItem, held: Held) -> None:
        """Upload the files of an item, its mark last, after removing any earlier mark."""
        changed = [key for key in held if not self._has(key, held[key][1])]
        if not changed:
            return
        if thing.turn == _TURN_OF_MODELS and any(key in self._record.sent for key in changed):
            self._remove(MODELS_RECORD)  # records the step of the best model
        if thing.mark is not None:
            self._remove(thing.mark)
            changed = [*(key for key in changed if key != thing.mark), thing.mark]
            for key in self._below(thing.key):
                if key not in held:
                    self._remove(key)
        for key in changed:
            self._require()
            file, signature = held[key]
            stored = objects.upload(file, self._location / key, self.advance)
            self._record.sent[key] = (signature, stored.identity)

    def _remove_gone(self) -> None:
        """Remove uploaded files that are gone here, marks first; states only once newer ones exist.

        If the working folder itself is gone, nothing is removed. Nor are states of a finished run,
        unless its settings say so: they may have been deleted here by hand.
        """
        local = {key for thing in items_in(self._folder) for key in thing.files}
        if SETTINGS not in local:
            return
        kept = {step for step in map(state_of_key, local) if step is not None}
        newest = max((s for s in whole_states(self._record.sent) if s in kept), default=0)
        has_dropped = not kept and has_dropped_states(self._folder)
        gone = [key for key in self._record.sent if key not in local]
        if newest > self._began_with or has_dropped:
            gone += [key for key in self._record.left if state_of_key(key) is not None]
        gone = [key for key in gone if key not in local]
        gone = [key for key in gone if has_dropped or (state_of_key(key) or 0) <= newest]
        for key in sorted(gone, key=lambda key: (not _is_mark(key), key)):
            self._remove(key)
        self._record.left = [key for key in self._record.left if key not in gone]

    def _below(self, folder: str) -> list[str]:
        keys = [*self._record.sent, *self._record.left]
        return [key for key in keys if key.startswith(f"{folder}/")]

    def _remove(self, key: str) -> None:
        self._require()
        objects.remove(self._location / key)
        self._record.sent.pop(key, None)
        self._record.left = [other for other in self._record.left if other != key]

    def _require(self) -> None:
        if self._should_stop():
            raise SendingStopped
        self._require_own()


def has_dropped_states(folder: Path) -> bool:
    """Return whether a run is finished and has removed its states (`saving.keep_final_state`)."""
    if (read_object(folder / "status.json") or {}).get("phase") != "finished":
        return False
    try:
        saving = parse_toml(read_text(folder / SETTINGS)).get("saving", {})
        return saving.get("keep_final_state") is False
    except (OSError, ValueError, AttributeError):
        return False


def unsent_text(unsent: dict[str, int], location: Path) -> str:
    """Return a short description of the files that are not in the store."""
    size = size_text(sum(unsent.values()))
    return f"{counted(len(unsent), 'files')} ({size}) of the run are not in {shown(location)}"


def _hold(file: Path, own: Path, *, as_copy: bool) -> Signature:
    """Hold the content of a file under another name, by a link if it is never modified in place.

    Returns:
        The signature of the held content. For a copy, it has the modification time from before, so
            that a file which grew meanwhile counts as changed.

    Raises:
        FileNotFoundError: The file is gone.
        StorageError: There is no room for a copy.
    """
    if not as_copy:
        try:
            os.link(file, own)
        except FileNotFoundError:
            raise
        except OSError:  # a disk without hard links, such as exFAT
            pass
        else:
            return signature_of(own)
    _, changed = signature_of(file)
    try:
        shutil.copyfile(file, own)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"{file} could not be copied to be sent: {error.strerror}.") from error
    return own.stat().st_size, changed


def _is_mark(key: str) -> bool:
    return is_of_models(key) or key.endswith((f"/{STATE_MARK}", f"/{FOLDER_MARK}"))
