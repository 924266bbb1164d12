"""From the scores of a tagger to the tags that are written: thresholds, order, spelling."""

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
ONE_OF = frozenset({RATING, QUALITY})  # categories of which one tag is taken, the likeliest

KAOMOJI = frozenset({
    "0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o",
    "@_@", "^_^", "o_o", "u_u", "x_x", "|_|", "||_||",
})  # fmt: skip
"""Faces, in which an underscore is a mouth; SmilingWolf's list (spaces/SmilingWolf/wd-tagger)."""

CHARACTER_FLOOR = 0.15  # below, MCut's threshold for characters is not believed; the same Space
LONG = 3  # sd-scripts keeps underscores in tags up to so many characters

_BRACKETS = re.compile(r"([\\()])")
_SERIES = re.compile(r"^(?P<name>.+?)[ _]?\((?P<series>[^()]+)\)$")


@dataclass(frozen=True)
class TagTable:
    """What the rows of a tagger's output mean.

    Attributes:
        names: The tags, as the model's file spells them.
        categories: One of `CATEGORIES` for each.
        rows: The row of the output that each is at.
        thresholds: The model's own thresholds, by tag; empty where it has none.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]
    rows: tuple[int, ...]
    thresholds: Mapping[str, float] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """How many rows the output has to have at least."""
        return max(self.rows, default=-1) + 1

    @cached_property
    def row_array(self) -> np.ndarray:
        """`rows`, to gather scores with."""
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
    """Which tags of a tagger are taken, by score and kind.

    Attributes:
        threshold: The least probability.
        by_category: Others for categories.
        own_thresholds: Whether the model's own thresholds by tag come first, where it has them.
        mcut: Whether the threshold of general tags and of characters is found in each image, at
            the widest gap between neighbouring scores (MCut; Largeron et al. 2012).
        categories: Those that are taken at all; ratings and qualities by `Spelling` besides.
        by_score: Whether the likeliest come first; else the order is the model's.
    """

    threshold: float = 0.35
    by_category: Mapping[str, float] = field(default_factory=dict)
    own_thresholds: bool = False
    mcut: bool = False
    categories: frozenset[str] = frozenset(CATEGORIES)
    by_score: bool = False

    def of(self, scores: np.ndarray, table: TagTable) -> list[Tag]:
        """The tags of one image; of ratings and qualities the likeliest one.

        Args:
            scores: [rows] probabilities.
            table: What the rows mean.
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
    """The middle of the widest gap between neighbours in descending order; 1 for less than two.

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
        underscores: `keep`; `kaomoji` makes spaces of them but in faces; `long` makes spaces in
            tags of over three characters, as sd-scripts does.
        undesired: Left out, spelt as written.
        replacements: Tag -> what is written for it, after underscores.
        rating: Where the rating goes.
        quality: Where the quality goes.
        characters_first: Whether characters come before other tags.
        expand_characters: Whether `name (series)` becomes `name, series`.
        always_first: These come first, in this order, where they are there.
        escape_brackets: Whether brackets get backslashes, as prompts want them.
        separator: Between tags.
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
        """The texts of one image, each once."""
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
        """Names that are left out, replaced or put first, and that are no tag of a model."""
        rows = zip(table.names, table.categories, strict=True)
        texts = {text for row in rows for text in self._texts(Tag(*row, 1.0))}
        originals = set(map(UNDERSCORES[self.underscores], table.names))
        unused = [
            name for name in (*sorted(self.undesired), *self.always_first) if name not in texts
        ]
        unused += [name for name in self.replacements if name not in originals]
        return list(dict.fromkeys(unused))

    def joined(self, texts: Sequence[str], before: str = "") -> str:
        """One line, after what is there already, without doubles."""
        bare = self.separator.strip() or self.separator
        known = [text.strip() for text in before.split(bare)] if before.strip() else []
        return self.separator.join(dict.fromkeys([*filter(None, known), *texts]))

    def joined_to(self, before: str, line: str) -> str:
        """A line of tags after what is there already, without doubles."""
        return self.joined(line.split(self.separator), before)

    def _in_order(self, tags: Sequence[Tag]) -> Sequence[Tag]:
        if not self.characters_first:
            return tags
        return sorted(tags, key=lambda tag: tag.category != CHARACTER)

    def _texts(self, tag: Tag) -> list[str]:
        """What one tag becomes: usually one text."""
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
    r"""`a,b;c,d` -> {a: b, c: d}; `\,` and `\;` stand for themselves, as in sd-scripts.

    Raises:
        ValueError: A rule has not two sides.
    """
    hidden = text.replace(r"\,", "\ue000").replace(r"\;", "\ue001")
    rules = {}
    for rule in filter(None, hidden.split(";")):
        sides = [_shown(side).strip() for side in rule.split(",")]
        if len(sides) != 2 or not sides[0]:
            raise ValueError(f"the rule {_shown(rule)!r} has not two sides; expected old,new")
        rules[sides[0]] = sides[1]
    return rules


def _shown(text: str) -> str:
    return text.replace("\ue000", ",").replace("\ue001", ";")
