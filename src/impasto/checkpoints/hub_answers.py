"""What the Hugging Face Hub has answered, so that a command asks once and waits once."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from impasto.checkpoints.weight_files import WeightChoice

SILENT_FOR_S = 600.0
"""For so long a Hub that could not be reached is not asked where a copy will do."""


@dataclass(frozen=True)
class Question:
    """What is wanted of a Hub.

    Attributes:
        endpoint: The address of the Hub.
        cache: The folder of its copies.
        hub_id: The model's id, perhaps with a revision.
        choice: Which set of weights where there are several.
    """

    endpoint: str
    cache: str
    hub_id: str
    choice: WeightChoice

    @classmethod
    def about(cls, hub_id: str, choice: WeightChoice) -> Question:
        """The question to the Hub that `huggingface_hub` asks now."""
        from huggingface_hub import constants

        return cls(constants.ENDPOINT, constants.HF_HUB_CACHE, hub_id, choice)


@dataclass
class HubAnswers:
    """The files and folders that questions led to, and which Hubs gave no answer.

    Several parts of one command open the same model: they get the same one, whatever happens on
    the Hub meanwhile.
    """

    _found: dict[Question, tuple[Path, tuple[Path, ...]]] = field(default_factory=dict)
    _silent_until: dict[str, float] = field(default_factory=dict)

    def path_of(self, question: Question) -> Path | None:
        """The file or folder that a question led to before, if all of it is still there."""
        path, files = self._found.get(question, (None, ()))
        return path if all(map(Path.is_file, files)) else None

    def keep(self, question: Question, path: Path, files: Iterable[Path]) -> None:
        """Remember the file or folder that a question led to, and the files that it is of."""
        self._found[question] = path, tuple(files)

    def is_silent(self, question: Question) -> bool:
        """Whether its Hub could not be reached a short while ago."""
        return time.monotonic() < self._silent_until.get(question.endpoint, 0.0)

    def keep_silence(self, question: Question) -> None:
        """Remember that its Hub could not be reached."""
        self._silent_until[question.endpoint] = time.monotonic() + SILENT_FOR_S
