"""Measures whether a tagger finds the tags of the prompt in an image."""

from __future__ import annotations

import re
from collections.abc import Sequence

from impasto.annotate.tags import ONE_OF, TagTable

_LONGEST = 6  # maximum number of words of a tag that is searched for within a sentence
_WORD = re.compile(r"[^\s.;:!?\"]+")


class PromptTags:
    """Finds the tags of a tagger in prompts.

    A prompt is split at commas. A part that equals a tag is that tag; in any other part, such as
    `a tomato and a frog`, the longest runs of words that are tags are found. Tags of one letter,
    ratings and qualities are skipped.

    Args:
        table: The tags that the tagger knows.
    """

    def __init__(self, table: TagTable) -> None:
        self._numbers = {
            _plain(name): number
            for number, (name, kind) in enumerate(zip(table.names, table.categories, strict=True))
            if kind not in ONE_OF and len(name) > 1
        }

    def of(self, prompt: str) -> frozenset[int]:
        """Return the numbers of the tags in a prompt."""
        found: set[int] = set()
        for piece in prompt.split(","):
            whole = self._numbers.get(_plain(piece))
            found.update([whole] if whole is not None else self._within(piece))
        return frozenset(found)

    def _within(self, piece: str) -> list[int]:
        words, at, found = _WORD.findall(_plain(piece)), 0, []
        while at < len(words):
            length = next(
                (
                    size
                    for size in range(min(_LONGEST, len(words) - at), 0, -1)
                    if " ".join(words[at : at + size]) in self._numbers
                ),
                0,
            )
            if length:
                found.append(self._numbers[" ".join(words[at : at + length])])
            at += max(1, length)
        return found


def seen_fractions(
    wanted: Sequence[frozenset[int]], seen: Sequence[frozenset[int]]
) -> list[float | None]:
    """Return the fraction of each prompt's tags found in its image; None if it has no tags."""
    return [
        len(tags & found) / len(tags) if tags else None
        for tags, found in zip(wanted, seen, strict=True)
    ]


def _plain(text: str) -> str:
    """Normalise a tag or text: lower case, spaces for underscores, no backslashes."""
    return " ".join(text.replace("\\", "").replace("_", " ").casefold().split())
