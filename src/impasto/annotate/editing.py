"""Changes that a person makes to many captions at once: tags added, removed, replaced, moved.

Tags are the parts of a line between separators. The lines of a caption are alternatives, of which
`enable_wildcard` takes one, so each is changed by itself; a line that a change does not concern
stays as it is spelt, and one of which nothing is left is gone. Pure functions of text; what is
edited and where it is written is `cli/dataset_edit.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, final

from impasto.annotate.substitution import LIMIT_S, substitute, why_not_a_pattern
from impasto.parsing import is_text, split_lines

FIRST: Final = "first"
LAST: Final = "last"
_POSITION = re.compile(r"[1-9]\d{0,8}", re.ASCII)
_NAMED = 5  # operations that are described
_SHOWN = 60  # characters of a text in the description of an operation


class Operation(Protocol):
    """One change to captions."""

    def apply(self, texts: Sequence[str], separator: str) -> list[str]:
        """The texts after the change, in the same order."""

    def describe(self) -> str:
        """The change in a few words."""


@final
@dataclass(frozen=True)
class AddTag:
    """Adds a tag to each line that does not have it; a caption without lines gets one.

    Attributes:
        tag: The tag.
        at: `first`, `last`, or the number that it will have, from 1.
    """

    tag: str
    at: str = LAST

    def apply(self, texts: Sequence[str], separator: str) -> list[str]:
        """The texts with the tag."""
        return [self._added(text, separator) for text in texts]

    def _added(self, text: str, separator: str) -> str:
        if not text.strip():
            return self.tag
        return _by_line(text, separator, self._to)

    def _to(self, tags: list[str]) -> list[str]:
        return tags if self.tag in tags else _inserted(tags, self.tag, self.at)

    def describe(self) -> str:
        """The change in a few words."""
        return f"add {_quoted(self.tag)} {_at(self.at)}"


@final
@dataclass(frozen=True)
class RemoveTag:
    """Removes a tag, however often it is there."""

    tag: str

    def apply(self, texts: Sequence[str], separator: str) -> list[str]:
        """The texts without the tag."""

        def without(tags: list[str]) -> list[str]:
            return [tag for tag in tags if tag != self.tag]

        return [_by_line(text, separator, without) for text in texts]

    def describe(self) -> str:
        """The change in a few words."""
        return f"remove {_quoted(self.tag)}"


@final
@dataclass(frozen=True)
class ReplaceTag:
    """Writes one tag for another; where both are in a line, the first position is kept."""

    tag: str
    by: str

    def apply(self, texts: Sequence[str], separator: str) -> list[str]:
        """The texts with the new tag."""

        def replaced(tags: list[str]) -> list[str]:
            if self.tag not in tags or self.tag == self.by:
                return tags
            new = [self.by if tag == self.tag else tag for tag in tags]
            index = new.index(self.by)
            return [tag for n, tag in enumerate(new) if tag != self.by or n == index]

        return [_by_line(text, separator, replaced) for text in texts]

    def describe(self) -> str:
        """The change in a few words."""
        return f"replace {_quoted(self.tag)} by {_quoted(self.by)}"


@final
@dataclass(frozen=True)
class MoveTag:
    """Moves a tag within each line that has it.

    Attributes:
        tag: The tag.
        at: `first`, `last`, or the number that it will have, from 1.
    """

    tag: str
    at: str

    def apply(self, texts: Sequence[str], separator: str) -> list[str]:
        """The texts with the tag in its new position."""

        def moved(tags: list[str]) -> list[str]:
            if self.tag not in tags:
                return tags
            return _inserted([tag for tag in tags if tag != self.tag], self.tag, self.at)

        return [_by_line(text, separator, moved) for text in texts]

    def describe(self) -> str:
        """The change in a few words."""
        return f"move {_quoted(self.tag)} {_at(self.at)}"


@final
@dataclass(frozen=True)
class ReplacePattern:
    r"""Replaces every match of a regular expression in the whole caption.

    Attributes:
        pattern: As Python's `re` has it.
        by: The replacement, with `\1` for groups.
        limit_s: Seconds that one caption may take.
    """

    pattern: str
    by: str
    limit_s: float = LIMIT_S

    def apply(self, texts: Sequence[str], separator: str) -> list[str]:  # noqa: ARG002
        """The texts with the matches replaced.

        Raises:
            SubstitutionError: One takes too long.
        """
        found = substitute(texts, self.pattern, self.by, self.limit_s)
        return [text.strip() for text in found]

    def describe(self) -> str:
        """The change in a few words."""
        return f"regular expression {_quoted(self.pattern)} by {_quoted(self.by)}"


@final
@dataclass(frozen=True)
class SetText:
    """Writes a text as the whole caption."""

    text: str

    def apply(self, texts: Sequence[str], separator: str) -> list[str]:  # noqa: ARG002
        """The new text for each."""
        plain = "\n".join(split_lines(self.text)).strip()
        return [plain] * len(texts)

    def describe(self) -> str:
        """The change in a few words."""
        return f"set {_quoted(self.text)}"


def describe_all(operations: Sequence[Operation]) -> str:
    """What several operations do, in a few words."""
    texts = [operation.describe() for operation in operations[:_NAMED]]
    more = len(operations) - len(texts)
    return "; ".join([*texts, *([f"and {more} more"] if more else [])])


def applied(operations: Sequence[Operation], texts: Sequence[str], separator: str) -> list[str]:
    """The texts after all changes, one after the other.

    Raises:
        SubstitutionError: A regular expression takes too long.
    """
    done = list(texts)
    for operation in operations:
        done = operation.apply(done, separator)
    return done


def tags_of(text: str, separator: str) -> set[str]:
    """The tags of all lines of a caption."""
    return {tag for line in split_lines(text) for tag in _split(line, separator)}


def operation_of(value: Any) -> Operation:
    """An operation from the form that JSON has it in: `{"do": "add", "tag": "x", "at": "last"}`.

    Raises:
        ValueError: It does not fit; with the reason.
    """
    if not isinstance(value, Mapping) or value.get("do") not in list(_FIELDS):
        raise ValueError(f"{value!r:.80} is no operation; known are {', '.join(_FIELDS)}")
    kind = value["do"]
    make, names = _FIELDS[kind]
    given = {key: text for key, text in value.items() if key != "do"}
    if set(given) - set(names) or not all(isinstance(text, str) for text in given.values()):
        raise ValueError(f"{kind} takes {' and '.join(names)}, texts; found {value!r:.80}")
    try:
        made = make(**given)
    except TypeError:
        raise ValueError(f"{kind} needs {' and '.join(names)}; found {value!r:.80}") from None
    if reason := _fault(given):
        raise ValueError(f"{kind}: {reason}")
    if isinstance(made, ReplacePattern) and (reason := why_not_a_pattern(made.pattern, made.by)):
        raise ValueError(f"the regular expression {_quoted(made.pattern)}: {reason}")
    return made


_FIELDS: Mapping[str, tuple[Callable[..., Operation], tuple[str, ...]]] = {
    "add": (AddTag, ("tag", "at")),
    "remove": (RemoveTag, ("tag",)),
    "replace": (ReplaceTag, ("tag", "by")),
    "move": (MoveTag, ("tag", "at")),
    "regex": (ReplacePattern, ("pattern", "by")),
    "set": (SetText, ("text",)),
}


def split_position(text: str) -> tuple[str, str]:
    """A tag and where it goes, from `TAG@first`, `TAG@last` or `TAG@3`; alone, it goes last."""
    tag, _, at = text.rpartition("@")
    return (tag, at) if tag and is_position(at) else (text, LAST)


def split_replacement(text: str) -> tuple[str, str]:
    """Two tags from `OLD=NEW`; a sign at the very beginning belongs to the old one.

    Raises:
        ValueError: There is no sign between two tags.
    """
    index = text.find("=", 1)
    if index < 0:
        raise ValueError(f"{text!r} is not OLD=NEW")
    return text[:index], text[index + 1 :]


def is_position(text: str) -> bool:
    """Whether a text says where a tag goes."""
    return text in (FIRST, LAST) or _POSITION.fullmatch(text) is not None


def _fault(given: Mapping[str, str]) -> str:
    """Why the texts of an operation are refused; empty where they are not."""
    for name, text in given.items():
        if not is_text(text) or "\0" in text:
            return "it holds half a character or a zero byte, which no caption has"
        if name == "at" and not is_position(text):
            return f"the place is {text!r}; expected first, last or a number from 1"
    for name in ("tag", "by"):
        if name in given and "pattern" not in given:
            tag = given[name]
            if not tag.strip() or tag != tag.strip() or len(split_lines(tag)) > 1:
                return f"{tag!r} is no tag: it is empty, or has space around it or several lines"
    if given.get("pattern") == "":
        return "the pattern is empty"
    return ""


def separator_fault(operations: Sequence[Operation], separator: str) -> str:
    """Why a separator does not go with some operations; empty where it does."""
    if not separator.strip() or len(split_lines(separator)) > 1:
        return "it is empty or a line end"
    for operation in operations:
        for name in ("tag", "by"):
            tag = "" if isinstance(operation, ReplacePattern) else getattr(operation, name, "")
            if separator.strip() in tag:
                return f"the tag {_quoted(tag)} holds it; give two tags, or another separator"
    return ""


def _split(line: str, separator: str) -> list[str]:
    return [tag for piece in line.split(separator.strip()) if (tag := piece.strip())]


def _by_line(text: str, separator: str, change: Callable[[list[str]], list[str]]) -> str:
    """A caption after a change to the tags of each line; lines without a change stay."""
    bare = separator.strip()
    joiner = separator if separator != bare else f"{bare} "
    lines = []
    for line in split_lines(text):
        tags = _split(line, bare)
        new = change(tags) if tags else tags
        if new == tags:
            lines.append(line)
        elif new:
            lines.append(joiner.join(new))
    return "\n".join(lines).strip()


def _inserted(tags: list[str], tag: str, at: str) -> list[str]:
    index = 0 if at == FIRST else len(tags) if at == LAST else min(int(at) - 1, len(tags))
    return [*tags[:index], tag, *tags[index:]]


def _at(at: str) -> str:
    return at if at in (FIRST, LAST) else f"at place {at}"


def _quoted(text: str) -> str:
    plain = " ".join(text.split())
    return repr(plain if len(plain) <= _SHOWN else f"{plain[:_SHOWN]}...")
