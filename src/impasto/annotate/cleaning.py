"""Cleaning rules for automatic captions and tags: sd-scripts' own, and readable ones in a file."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, get_args, get_origin, get_type_hints

from impasto.annotate.tags import UNDERSCORES
from impasto.errors import ConfigError
from impasto.parsing import parse_toml, read_text, split_lines
from impasto.storage_errors import cause_of

SHIPPED = ("kohya", "plain")


class Cleaner(Protocol):
    """Cleans tags and captions."""

    def tags(self, text: str) -> str:
        """Return a cleaned line of tags."""

    def caption(self, text: str) -> str:
        """Return a cleaned caption in prose."""


_PEOPLE = {
    "female": "girl", "lady": "girl", "character": "girl", "woman": "girl", "women": "girls",
}  # fmt: skip
_KOHYA_CAPTIONS: list[tuple[str, str]] = [
    ("anime anime", "anime"),
    ("young ", ""),
    ("anime girl", "girl"),
    *((f"cartoon {who}", girl) for who, girl in _PEOPLE.items()),
    ("cartoon girl", "girl"),
    *((f"anime {who}", girl) for who, girl in _PEOPLE.items()),
    *((who, girl) for who, girl in _PEOPLE.items() if who != "character"),
    ("people", "girls"),
    ("person", "girl"),
    *((f"a cartoon {thing}", f"a {thing}") for thing in ("figure",)),
    ("a cartoon image", "an image"),
    ("a cartoon image", "an image"),
    ("an anime cartoon image", "an image"),
    ("a cartoon anime drawing", "a drawing"),
    ("a cartoon drawing", "a drawing"),
    ("girl girl", "girl"),
]
_HAIR_LENGTH = re.compile(r"(long|short|medium) hair")
_HAIR = re.compile(r"[\w-]+ hair")
_ONE_WORD = re.compile(r"[\w-]+|hair ornament")
_PLAIN_WORDS = re.compile(r"(\w+ )+")
_OF_ONE_PERSON = [
    _HAIR_LENGTH,
    re.compile(r"(bob|hime) cut"),
    re.compile(r"[\w-]+ eyes"),
    re.compile(r"[\w-]+ sleeves|sleeveless"),
    re.compile(
        r"ponytail|braid|ahoge|twintails|[\w-]+ bun|single hair bun|single side bun|two side up|"
        r"two tails|[\w-]+ braid|sidelocks"
    ),
]


class KohyaCleaner:
    """The unchanged rules of sd-scripts' `finetune/clean_captions_and_tags.py`.

    They were made for anime images and one kind of tagger, and also replace parts of words: a
    ladybug becomes a girlbug.
    """

    def tags(self, text: str) -> str:
        """Replace underscores, and remove ratings, traits of one in a crowd, and repetitions."""
        spaced = "^_^".join(piece.replace("_", " ") for piece in text.split("^_^"))
        found = spaced.partition(", rating")[0].split(", ")
        if any(crowd in tag for tag in found for crowd in ("girls", "boys")):
            for pattern in _OF_ONE_PERSON:
                found = _unless_one(found, pattern.fullmatch)
            found = _unless_one(
                found, lambda tag: _HAIR.fullmatch(tag) and not _HAIR_LENGTH.fullmatch(tag)
            )
        kept = ", ".join(tag for tag in found if not _is_last_word_of_another(tag, found))
        return kept if any(found) else kept[2:]  # sd-scripts drops one of a text of commas alone

    def caption(self, text: str) -> str:
        """Apply one replacement after the other, each as long as it matches."""
        for old, new in _KOHYA_CAPTIONS:
            while old in text:
                text = text.replace(old, new)
        return text


def _is_last_word_of_another(tag: str, others: Sequence[str]) -> bool:
    """Return whether another tag ends in this one after plain words, and is more specific."""
    if not _ONE_WORD.fullmatch(tag):
        return False
    before = (other.removesuffix(tag) for other in others if other.endswith(f" {tag}"))
    return any(_PLAIN_WORDS.fullmatch(start) for start in before)


def _unless_one(tags: Sequence[str], matches: Callable[[str], object]) -> list[str]:
    """Return the tags without those that match, if more than one does."""
    if sum(bool(matches(tag)) for tag in tags) < 2:
        return list(tags)
    return [tag for tag in tags if not matches(tag)]


@dataclass(frozen=True)
class CleaningRules:
    """Rules on whole tags and whole words, from a file that users edit.

    Attributes:
        separator: The separator between tags.
        underscores: Whether underscores become spaces, except in faces such as `^_^`.
        lower_case: Whether tags are converted to lower case.
        drop_tags: Tags to remove; `*` matches anything.
        replace_tags: Tag -> its replacement; this merges aliases.
        implications: Tag -> less specific tags that are removed beside it.
        drop_implied: Whether a tag is removed if another ends in it (`shirt` with `white shirt`).
        keep_implied: Tags that are kept even so.
        several: Patterns of tags that indicate several people.
        once_if_several: Patterns of which, with several people, tags are removed unless exactly one
            matches.
        least_count: Tags in fewer images are removed.
        most_share: Tags in a larger fraction of the images are removed.
        drop_words: Words to remove from captions, with the space before them.
        replace_words: Words in captions -> their replacements; an initial capital is preserved.
    """

    separator: str = ", "
    underscores: bool = True
    lower_case: bool = False
    drop_tags: tuple[str, ...] = ()
    replace_tags: Mapping[str, str] = field(default_factory=dict)
    implications: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    drop_implied: bool = True
    keep_implied: tuple[str, ...] = ()
    several: tuple[str, ...] = ()
    once_if_several: tuple[tuple[str, ...], ...] = ()
    least_count: int = 1
    most_share: float = 1.0
    drop_words: tuple[str, ...] = ()
    replace_words: Mapping[str, str] = field(default_factory=dict)

    def tags(self, text: str) -> str:
        """Return a cleaned line of tags, each once, in their order."""
        found = [self._spelt(piece.strip()) for piece in text.split(self._bare)]
        found = [self.replace_tags.get(tag, tag) for tag in dict.fromkeys(filter(None, found))]
        found = [tag for tag in dict.fromkeys(found) if tag and not _is_any(tag, self.drop_tags)]
        if any(_is_any(tag, self.several) for tag in found):
            for patterns in self.once_if_several:
                found = _unless_one(found, partial(_is_any, patterns=patterns))
        return self.separator.join(tag for tag in found if not self._is_implied(tag, found))

    def caption(self, text: str) -> str:
        """Return prose with whole words removed and replaced."""
        for word in self.drop_words:
            text = re.sub(rf"\s*\b{re.escape(word)}\b", "", text, flags=re.IGNORECASE)
        for old, new in self.replace_words.items():
            text = re.sub(rf"\b{re.escape(old)}\b", _with_capital(new), text, flags=re.IGNORECASE)
        return " ".join(text.split())

    def _spelt(self, tag: str) -> str:
        spelt = UNDERSCORES["kaomoji"](tag) if self.underscores else tag
        return spelt.lower() if self.lower_case else spelt

    def _is_implied(self, tag: str, others: Sequence[str]) -> bool:
        if tag in self.keep_implied:
            return False
        if any(tag in self.implications.get(other, ()) for other in others):
            return True
        return self.drop_implied and any(o.endswith((f" {tag}", f"_{tag}")) for o in others)

    def frequent(self, texts: Collection[str]) -> Callable[[str], str]:
        """Return a further step that removes tags by how often they occur in all texts."""
        if self.least_count <= 1 and self.most_share >= 1:
            return str
        counts = count_tags(texts, self._bare)
        low, high = self.least_count, self.most_share * len(texts)

        def kept(text: str) -> str:
            tags = filter(None, (piece.strip() for piece in text.split(self._bare)))
            return self.separator.join(tag for tag in tags if low <= counts[tag] <= high)

        return kept

    @property
    def _bare(self) -> str:
        """The separator without spaces, at which tags are split."""
        return self.separator.strip() or self.separator


def load_rules(name: str) -> Cleaner:
    """Return the rules of a built-in set by name, or of a file.

    Raises:
        ConfigError: There is neither, or the file is invalid; with key and reason.
    """
    if name == "kohya":
        return KohyaCleaner()
    if name in SHIPPED:
        text = (resources.files("impasto.annotate") / "rules" / f"{name}.toml").read_text("utf-8")
        return parse_rules(text, name)
    path = Path(name)
    if not path.is_file():
        raise ConfigError(
            f"There is no rule set {name!r}: expected a file, or one of {', '.join(SHIPPED)}."
        )
    try:
        return parse_rules(read_text(path), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The rules {name} cannot be read ({cause_of(error)}). Give a file, or one of "
            f"{', '.join(SHIPPED)}."
        ) from error


def parse_rules(text: str, where: str) -> CleaningRules:
    """Parse cleaning rules from the text of a TOML file.

    Raises:
        ConfigError: It is not TOML, or a key is unknown or of the wrong type.
    """
    try:
        values = parse_toml(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not valid TOML: {error}.") from error
    known = get_type_hints(CleaningRules)
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key}; known keys are {', '.join(known)}.")
        if not _fits(value, known[key]) or (key == "separator" and not value):
            empty = ", and not an empty one" if value == "" else ""
            raise ConfigError(
                f"{where}: {key} is {value!r}; expected {_expected(known[key])}{empty}."
            )
    return CleaningRules(**{key: _frozen(value) for key, value in values.items()})


_TYPES: Mapping[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "text"),
}
"""Type of a rule -> the Python types that TOML yields for it, and its description."""


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value of TOML has the type of a rule, including its contents."""
    if kind in _TYPES:
        return isinstance(value, _TYPES[kind][0]) and (kind is bool) == isinstance(value, bool)
    if get_origin(kind) is tuple:
        return isinstance(value, list) and all(_fits(item, get_args(kind)[0]) for item in value)
    return isinstance(value, dict) and all(_fits(v, get_args(kind)[1]) for v in value.values())


def _expected(kind: Any, number: int = 1) -> str:
    if kind in _TYPES:
        return _TYPES[kind][1] if number == 1 else "texts"
    if get_origin(kind) is tuple:
        return f"{'a list' if number == 1 else 'lists'} of {_expected(get_args(kind)[0], 2)}"
    inner = get_args(kind)[1]
    return f"a table, with {_expected(inner)} for each key"


def by_line(step: Callable[[str], str]) -> Callable[[str], str]:
    """Convert a step for one line into one for texts of several lines.

    The lines of a caption are alternatives (`enable_wildcard` chooses one of them), so each is
    cleaned separately; a line that becomes empty is removed.
    """

    def cleaned(text: str) -> str:
        return "\n".join(filter(None, map(step, lines_of(text))))

    return cleaned


def lines_of(text: str) -> list[str]:
    """Return the lines of a text that are not blank, without surrounding space."""
    return [line.strip() for line in split_lines(text) if line.strip()]


def count_tags(texts: Iterable[str], separator: str = ",") -> Counter[str]:
    """Return the number of texts that contain each tag, on any line."""
    counts: Counter[str] = Counter()
    for text in texts:
        pieces = (piece.strip() for line in split_lines(text) for piece in line.split(separator))
        counts.update(dict.fromkeys(filter(None, pieces)).keys())
    return counts


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return value


def _is_any(tag: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(tag, pattern) for pattern in patterns)


def _with_capital(new: str) -> Callable[[re.Match[str]], str]:
    def write(found: re.Match[str]) -> str:
        is_capital = found[0][:1].isupper() and new
        return new[:1].upper() + new[1:] if is_capital else new

    return write
