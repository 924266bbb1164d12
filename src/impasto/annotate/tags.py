"""Converts the scores of a tagger into the tags to write: thresholds, order, spelling."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from impasto.annotator_table import TAG_CATEGORIES

Underscores = Literal["keep", "kaomoji", "long"]
TagPosition = Literal["off", "first", "last"]

GENERAL, CHARACTER, RATING, QUALITY = "general", "character", "rating", "quality"
CATEGORIES = TAG_CATEGORIES
ONE_OF = frozenset({RATING, QUALITY})  # categories of which only the likeliest tag is used

KAOMOJI = frozenset({
    "0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o",
    "@_@", "^_^", "o_o", "u_u", "x_x", "|_|", "||_||",
})  # fmt: skip
"""Faces, in which an underscore is a mouth; SmilingWolf's list (spaces/SmilingWolf/wd-tagger)."""

CHARACTER_FLOOR = 0.15  # minimum of MCut's threshold for characters; the same Space
LONG = 3  # sd-scripts keeps underscores in tags of at most this many characters

_BRACKETS = re.compile(r"([\\()])")
_SERIES = re.compile(r"^(?P<name>.+?)[ _]?\((?P<series>[^()]+)\)$")


@dataclass(frozen=True)
class TagTable:
    """The tags of a tagger's output rows.

    Attributes:
        names: The tags, as the model's file spells them.
        categories: One of `CATEGORIES` per tag.
        rows: The output row of each tag.
        thresholds: The model's own thresholds, by tag; empty if it has none.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]
    rows: tuple[int, ...]
    thresholds: Mapping[str, float] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """The minimum number of rows that the output must have."""
        return max(self.rows, default=-1) + 1

    @cached_property
    def row_array(self) -> np.ndarray:
        """`rows` as an array, to gather scores with."""
        return np.asarray(self.rows, dtype=np.int64)

    @cached_property
    def members(self) -> dict[str, np.ndarray]:
        """Category -> indices of its tags in `names`."""
        found = np.asarray(self.categories)
        there = dict.fromkeys(self.categories)  # a set's order differs from process to process
        return {category: np.flatnonzero(found == category) for category in there}


@dataclass(frozen=True)
class Tag:
    """A tag that a model proposes, with its probability."""

    name: str
    category: str
    score: float


@dataclass(frozen=True)
class Selection:
    """Chooses tags by score and category.

    Attributes:
        threshold: Minimum probability.
        by_category: Thresholds of categories that have their own.
        own_thresholds: Whether the model's own thresholds per tag take precedence, if it has them.
        mcut: Whether the thresholds of general tags and of characters are found for each image, at
            the widest gap between neighbouring scores (MCut; Largeron et al. 2012).
        categories: The categories to choose from; `Spelling` decides about ratings and qualities
            too.
        by_score: Whether the likeliest tags come first; else the order is the model's.
    """

    threshold: float = 0.35
    by_category: Mapping[str, float] = field(default_factory=dict)
    own_thresholds: bool = False
    mcut: bool = False
    categories: frozenset[str] = frozenset(CATEGORIES)
    by_score: bool = False

    def of(self, scores: np.ndarray, table: TagTable) -> list[Tag]:
        """Return the tags of one image; only the likeliest of ratings and of qualities.

        Args:
            scores: [rows] probabilities.
            table: The tags of the rows.
        """
        own = scores[table.row_array]
        floors = np.full(len(own), np.inf)
        for category, indices in table.members.items():
            if category in self.categories and category not in ONE_OF:
                floors[indices] = self._threshold(category, own[indices])
        if self.own_thresholds:
            for index, name in enumerate(table.names):
                if name in table.thresholds and floors[index] < np.inf:
                    floors[index] = table.thresholds[name]
        taken = list(np.flatnonzero(own >= floors))
        for category in sorted(ONE_OF & self.categories & table.members.keys()):
            indices = table.members[category]
            taken.append(indices[int(np.argmax(own[indices]))])
        tags = [Tag(table.names[n], table.categories[n], float(own[n])) for n in taken]
        return sorted(tags, key=lambda tag: -tag.score) if self.by_score else tags

    def _threshold(self, category: str, scores: np.ndarray) -> float:
        if self.mcut and category in (GENERAL, CHARACTER):
            found = mcut_threshold(scores)
            return max(CHARACTER_FLOOR, found) if category == CHARACTER else found
        return self.by_category.get(category, self.threshold)


def mcut_threshold(scores: Sequence[float] | np.ndarray) -> float:
    """Return the middle of the widest gap between sorted scores; 1 for fewer than two scores.

    Largeron, Moulin, Gery 2012, "MCut: A Thresholding Strategy for Multi-label Classification".
    """
    if len(scores) < 2:
        return 1.0
    falling = np.sort(np.asarray(scores))[::-1]
    at = int(np.argmax(falling[:-1] - falling[1:]))
    return float((falling[at] + falling[at + 1]) / 2)


@dataclass(frozen=True)
class Spelling:
    """How tags are written: underscores, brackets, separators.

    Attributes:
        underscores: `keep`; `kaomoji` replaces them by spaces except in faces; `long` replaces them
            in tags of over three characters, as sd-scripts does.
        undesired: Tags to leave out, as spelt in the output.
        replacements: Tag -> its replacement, applied after underscores.
        rating: Position of the rating.
        quality: Position of the quality.
        characters_first: Whether characters come before other tags.
        expand_characters: Whether `name (series)` becomes `name, series`.
        always_first: Tags that come first, in this order, if the image has them.
        escape_brackets: Whether brackets are escaped with backslashes, as in prompts.
        separator: The separator between tags.
    """

    underscores: Underscores = "kaomoji"
    undesired: frozenset[str] = frozenset()
    replacements: Mapping[str, str] = field(default_factory=dict)
    rating: TagPosition = "off"
    quality: TagPosition = "off"
    characters_first: bool = False
    expand_characters: bool = False
    always_first: tuple[str, ...] = ()
    escape_brackets: bool = False
    separator: str = ", "

    def write(self, tags: Sequence[Tag]) -> list[str]:
        """Return the texts of one image's tags, each once."""
        by_position: dict[str, list[str]] = {"first": [], "middle": [], "last": []}
        for tag in self._in_order(tags):
            position = {RATING: self.rating, QUALITY: self.quality}.get(tag.category, "middle")
            if position != "off":
                by_position[position] += self._texts(tag)
        found = list(
            dict.fromkeys(text for texts in by_position.values() for text in texts if text)
        )
        wanted = [text for text in found if text not in self.undesired]
        first = [text for text in self.always_first if text in wanted]
        ordered = [*first, *(text for text in wanted if text not in first)]
        return [self._escaped(text) for text in ordered]

    def unknown(self, table: TagTable) -> list[str]:
        """Return the left-out, replaced or first names that are not tags of a model."""
        rows = zip(table.names, table.categories, strict=True)
        texts = {text for row in rows for text in self._texts(Tag(*row, 1.0))}
        originals = set(map(UNDERSCORES[self.underscores], table.names))
        unused = [
            name for name in (*sorted(self.undesired), *self.always_first) if name not in texts
        ]
        unused += [name for name in self.replacements if name not in originals]
        return list(dict.fromkeys(unused))

    def joined(self, texts: Sequence[str], before: str = "") -> str:
        """Return one line of existing and new tags, without duplicates."""
        bare = self.separator.strip() or self.separator
        known = [text.strip() for text in before.split(bare)] if before.strip() else []
        return self.separator.join(dict.fromkeys([*filter(None, known), *texts]))

    def joined_to(self, before: str, line: str) -> str:
        """Return a line of tags appended to existing ones, without duplicates."""
        return self.joined(line.split(self.separator), before)

    def _in_order(self, tags: Sequence[Tag]) -> Sequence[Tag]:
        if not self.characters_first:
            return tags
        return sorted(tags, key=lambda tag: tag.category != CHARACTER)

    def _texts(self, tag: Tag) -> list[str]:
        """Return the texts for one tag: usually one."""
        text = UNDERSCORES[self.underscores](tag.name)
        text = self.replacements.get(text, text)
        found = _SERIES.match(text) if tag.category == CHARACTER else None
        if not self.expand_characters or found is None:
            return [text]
        return [found["name"], found["series"]]

    def _escaped(self, text: str) -> str:
        return _BRACKETS.sub(r"\\\1", text) if self.escape_brackets else text


UNDERSCORES: dict[Underscores, Callable[[str], str]] = {
    "keep": lambda text: text,
    "kaomoji": lambda text: text if text in KAOMOJI else text.replace("_", " "),
    "long": lambda text: text if len(text) <= LONG else text.replace("_", " "),
}


def parse_replacements(text: str) -> dict[str, str]:
    r"""Parse `a,b;c,d` into {a: b, c: d}; `\,` and `\;` stand for themselves, as in sd-scripts.

    Raises:
        ValueError: A rule does not have two sides.
    """
    hidden = text.replace(r"\,", "\ue000").replace(r"\;", "\ue001")
    rules = {}
    for rule in filter(None, hidden.split(";")):
        sides = [_shown(side).strip() for side in rule.split(",")]
        if len(sides) != 2 or not sides[0]:
            raise ValueError(f"the rule {_shown(rule)!r} does not have two sides; expected old,new")
        rules[sides[0]] = sides[1]
    return rules


def _shown(text: str) -> str:
    return text.replace("\ue000", ",").replace("\ue001", ";")
