"""Whether a tagger sees in an image what its prompt asks for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from impasto.annotate.tags import ONE_OF, TagTable

_LONGEST = 6  # words of a tag that are looked for within a sentence
_WORD = re.compile(r"[^\s.;:!?\"]+")


class PromptTags:
    """Finds the tags of a tagger in prompts.

    A prompt is split at commas, as tags are. A part that is a tag is that tag; in any other part
    the longest runs of words that are tags are looked for, as in `a tomato and a frog`. Tags of one
    letter are skipped, and ratings and qualities.

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
        """The numbers of the tags that a prompt names."""
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


def seen_shares(
    wanted: Sequence[frozenset[int]], seen: Sequence[frozenset[int]]
) -> list[float | None]:
    """The share of the wanted tags that are seen in each image; None where none is wanted."""
    return [
        len(tags & found) / len(tags) if tags else None
        for tags, found in zip(wanted, seen, strict=True)
    ]


def _plain(text: str) -> str:
    """A tag or words in small letters, with spaces for underscores, without backslashes."""
    return " ".join(text.replace("\\", "").replace("_", " ").casefold().split())
