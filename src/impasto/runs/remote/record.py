"""The local record of which files of a run are in the store, so that nothing is sent twice."""

from __future__ import annotations

import threading
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from impasto import files
from impasto.parsing import read_object
from impasto.remote_paths import shown
from impasto.runs.remote.local_folders import RECORD, home_of
from impasto.storage.objects import Stored

Signature = tuple[int, int]
"""Size in bytes and modification time in nanoseconds of a file."""


@dataclass
class SentRecord:
    """The record of this machine about a run in a store.

    Attributes:
        location: The run.
        owner: The number of this machine's turn at writing it (`ownership.py`); 0 without one.
        claim: The number of a turn that was requested as the one after `owner`, and the random text
            in its file: the store may have granted it although its answer was lost.
        sent: Key below the run -> signature of the local file, and the identity of the stored
            object.
        left: Keys that are in the store and were not fetched.
        is_all_there: Whether all final files of the working folder have been sent.
        lock: Held while sending or fetching.
    """

    location: Path
    owner: int = 0
    claim: tuple[int, str] | None = None
    sent: dict[str, tuple[Signature, int]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    is_all_there: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    @classmethod
    def read(cls, location: Path) -> SentRecord:
        """Return the stored record; an empty one if it is missing or damaged."""
        said = read_object(home_of(location) / RECORD) or {}
        try:
            if said.get("place") != shown(location):
                return cls(location)
            sent = {str(k): ((int(s), int(m)), int(i)) for k, (s, m, i) in said["sent"].items()}
            left = [str(key) for key in said["left"]]
            claim = said.get("claim") and (int(said["claim"][0]), str(said["claim"][1]))
            owner, is_all_there = int(said["owner"]), bool(said["is_all_there"])
            return cls(location, owner, claim, sent, left, is_all_there)
        except (KeyError, TypeError, ValueError, AttributeError):
            return cls(location)

    def write(self) -> None:
        """Write the record to a local file.

        Raises:
            StorageError: The disk is full, or the folder cannot be written.
        """
        content: dict[str, Any] = {
            "place": shown(self.location),
            "owner": self.owner,
            "claim": self.claim,
            "is_all_there": self.is_all_there,
            "left": self.left,
            "sent": {key: [*signature, said] for key, (signature, said) in self.sent.items()},
        }
        files.write_json(home_of(self.location) / RECORD, content, durable=False)

    def is_of(self, number: int, text: str) -> bool:
        """Return whether a turn was this machine's, so that its working folder is the newest.

        Args:
            number: The newest turn; 0 if the run was never written.
            text: The content of its file.
        """
        if self.owner == number:
            return True
        return self.claim is not None and self.claim[0] == number and self.claim[1] in text

    def compare(self, listed: dict[str, Stored], here: Container[str]) -> None:
        """Remove entries that differ from the store, and list the keys that only the store has.

        A killed process may have sent more than it has recorded. Files that disappeared here while
        no process had the run were removed by another program or user, so the store may have the
        only copy.

        Args:
            listed: The objects in the store.
            here: The keys in the working folder.
        """
        self.sent = {
            key: (signature, identity)
            for key, (signature, identity) in self.sent.items()
            if key in here and key in listed and listed[key] == Stored(signature[0], identity)
        }
        self.left = [key for key in listed if key not in self.sent]


def signature_of(file: Path) -> Signature:
    """Return the signature by which a change of a file is detected.

    Raises:
        OSError: The file does not exist.
    """
    status = file.stat()
    return status.st_size, status.st_mtime_ns
