"""Caches the answers of the Hugging Face Hub, so that a command asks once and waits once."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from impasto.checkpoints.weight_files import WeightChoice

SILENT_FOR_S = 600.0
"""Seconds for which a Hub that could not be reached is not tried again if a local copy can be
used."""


@dataclass(frozen=True)
class Question:
    """A request to a Hub.

    Attributes:
        endpoint: Address of the Hub.
        cache: Folder of its local copies.
        hub_id: Id of the model, optionally with a revision.
        choice: Set of weights to use if there are several.
    """

    endpoint: str
    cache: str
    hub_id: str
    choice: WeightChoice

    @classmethod
    def about(cls, hub_id: str, choice: WeightChoice) -> Question:
        """Return the question to the Hub that `huggingface_hub` is configured for."""
        from huggingface_hub import constants

        return cls(constants.ENDPOINT, constants.HF_HUB_CACHE, hub_id, choice)


@dataclass
class HubAnswers:
    """The files and folders that questions led to, and the Hubs that did not answer.

    Several parts of one command open the same model: they get the same copy, even if it changes on
    the Hub meanwhile.
    """

    _found: dict[Question, tuple[Path, tuple[Path, ...]]] = field(default_factory=dict)
    _silent_until: dict[str, float] = field(default_factory=dict)

    def path_of(self, question: Question) -> Path | None:
        """Return the file or folder of an earlier question, or None if a file of it is missing."""
        path, files = self._found.get(question, (None, ()))
        return path if all(map(Path.is_file, files)) else None

    def keep(self, question: Question, path: Path, files: Iterable[Path]) -> None:
        """Store the file or folder that a question led to, and the files that it consists of."""
        self._found[question] = path, tuple(files)

    def is_silent(self, question: Question) -> bool:
        """Return whether the question's Hub could not be reached a short while ago."""
        return time.monotonic() < self._silent_until.get(question.endpoint, 0.0)

    def keep_silence(self, question: Question) -> None:
        """Record that the question's Hub could not be reached."""
        self._silent_until[question.endpoint] = time.monotonic() + SILENT_FOR_S
