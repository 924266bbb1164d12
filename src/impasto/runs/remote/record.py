"""What of a run is in the store: remembered on this machine, so that nothing is sent twice."""

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
"""Bytes and time of change, in nanoseconds, of a file."""


@dataclass
class SentRecord:
    """What this machine knows of a run in a store.

    Attributes:
        location: The run.
        owner: The number of this machine's turn at writing it (`ownership.py`); 0 without one.
        claim: The number of a turn that was asked for as the one after `owner`, and the random text
            in its file: the store may have given it, and the answer may be lost.
        sent: Key below the run -> signature of the file that is there under it, and the identity
            that the store gave it.
        left: Keys that are in the store and were not fetched.
        is_all_there: Whether all that was in the working folder at its end has been sent.
        lock: Held by whoever sends or fetches.
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
        """What was remembered; as good as nothing where that is damaged."""
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
        """Write the record to a file of this machine.

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
        """Whether a turn at writing the run was this machine's, so that its folder is the newest.

        Args:
            number: The newest turn; 0 where nobody ever wrote the run.
            text: Its file.
        """
        if self.owner == number:
            return True
        return self.claim is not None and self.claim[0] == number and self.claim[1] in text

    def compare(self, listed: dict[str, Stored], here: Container[str]) -> None:
        """Forget what the store does not have, or has otherwise; note what only the store has.

        A killed process may have put more than it has remembered. What went missing here while no
        process had the run was removed by somebody else, so the store may have the only copy.

        Args:
            listed: What the store has.
            here: Which keys are in the working folder.
        """
        self.sent = {
            key: (signature, identity)
            for key, (signature, identity) in self.sent.items()
            if key in here and key in listed and listed[key] == Stored(signature[0], identity)
        }
        self.left = [key for key in listed if key not in self.sent]


def signature_of(file: Path) -> Signature:
    """What tells whether a file has changed.

    Raises:
        OSError: It is gone.
    """
    status = file.stat()
    return status.st_size, status.st_mtime_ns
