"""Edits of many captions at once: tags are added, removed, replaced, moved.

Tags are the parts of a line between separators. The lines of a caption are alternatives, of which
`enable_wildcard` chooses one, so each is edited separately; a line that an edit does not change
keeps its spelling, and one that becomes empty is removed. Pure functions of text;
`cli/dataset_edit.py` selects the captions and writes them.
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
    """One edit of captions."""

    def apply(self, texts: Sequence[str], separator: str) -> list[str]:
        """Return the texts after the edit, in the same order."""

    def describe(self) -> str:
        """Return a short description of the edit."""


@final
@dataclass(frozen=True)
class AddTag:
    """Adds a tag to each line that lacks it; an empty caption becomes the tag alone.

    Attributes:
        tag: The tag.
        at: `first`, `last`, or its position in the line, from 1.
    """

    tag: str
    at: str = LAST

    def apply(self, texts: Sequence[str], separator: str) -> list[str]:
        """Return the texts with the tag."""
        return [self._added(text, separator) for text in texts]

    def _added(self, text: str, separator: str) -> str:
        if not text.strip():
            return self.tag
        return _by_line(text, separator, self._to)

    def _to(self, tags: list[str]) -> list[str]:
        return tags if self.tag in tags else _inserted(tags, self.tag, self.at)

    def describe(self) -> str:
        """Return a short description of the edit."""
        return f"add {_quoted(self.tag)} {_at(self.at)}"


@final
@dataclass(frozen=True)
class RemoveTag:
    """Removes every occurrence of a tag."""

    tag: str

    def apply(self, texts: Sequence[str], separator: str) -> list[str]:
        """Return the texts without the tag."""

        def without(tags: list[str]) -> list[str]:
            return [tag for tag in tags if tag != self.tag]

        return [_by_line(text, separator, without) for text in texts]

    def describe(self) -> str:
        """Return a short description of the edit."""
        return f"remove {_quoted(self.tag)}"


@final
@dataclass(frozen=True)
class ReplaceTag:
    """Replaces a tag by another; if a line has both, the first position is kept."""

    tag: str
    by: str

    def apply(self, texts: Sequence[str], separator: str) -> list[str]:
        """Return the texts with the new tag."""

        def replaced(tags: list[str]) -> list[str]:
            if self.tag not in tags or self.tag == self.by:
                return tags
            new = [self.by if tag == self.tag else tag for tag in tags]
            index = new.index(self.by)
            return [tag for n, tag in enumerate(new) if tag != self.by or n == index]

        return [_by_line(text, separator, replaced) for text in texts]

    def describe(self) -> str:
        """Return a short description of the edit."""
        return f"replace {_quoted(self.tag)} by {_quoted(self.by)}"


@final
@dataclass(frozen=True)
class MoveTag:
    """Moves a tag within each line that has it.

    Attributes:
        tag: The tag.
        at: `first`, `last`, or its position in the line, from 1.
    """

    tag: str
    at: str

    def apply(self, texts: Sequence[str], separator: str) -> list[str]:
        """Return the texts with the tag in its new position."""

        def moved(tags: list[str]) -> list[str]:
            if self.tag not in tags:
                return tags
            return _inserted([tag for tag in tags if tag != self.tag], self.tag, self.at)

        return [_by_line(text, separator, moved) for text in texts]

    def describe(self) -> str:
        """Return a short description of the edit."""
        return f"move {_quoted(self.tag)} {_at(self.at)}"


@final
@dataclass(frozen=True)
class ReplacePattern:
    r"""Replaces every match of a regular expression in the whole caption.

    Attributes:
        pattern: A pattern of Python's `re`.
        by: The replacement, with `\1` for groups.
        limit_s: Maximum seconds per caption.
    """

    pattern: str
    by: str
    limit_s: float = LIMIT_S

    def apply(self, texts: Sequence[str], separator: str) -> list[str]:  # noqa: ARG002
        """Return the texts with the matches replaced.

        Raises:
            SubstitutionError: A caption takes too long.
        """
        found = substitute(texts, self.pattern, self.by, self.limit_s)
        return [text.strip() for text in found]

    def describe(self) -> str:
        """Return a short description of the edit."""
        return f"regular expression {_quoted(self.pattern)} by {_quoted(self.by)}"


@final
@dataclass(frozen=True)
class SetText:
    """Replaces the whole caption by a text."""

    text: str

    def apply(self, texts: Sequence[str], separator: str) -> list[str]:  # noqa: ARG002
        """Return the new text for each caption."""
        plain = "\n".join(split_lines(self.text)).strip()
        return [plain] * len(texts)

    def describe(self) -> str:
        """Return a short description of the edit."""
        return f"set {_quoted(self.text)}"


def describe_all(operations: Sequence[Operation]) -> str:
    """Return a short description of several edits."""
    texts = [operation.describe() for operation in operations[:_NAMED]]
    more = len(operations) - len(texts)
    return "; ".join([*texts, *([f"and {more} more"] if more else [])])


def applied(operations: Sequence[Operation], texts: Sequence[str], separator: str) -> list[str]:
    """Return the texts after all edits, in order.

    Raises:
        SubstitutionError: A regular expression takes too long.
    """
    done = list(texts)
    for operation in operations:
        done = operation.apply(done, separator)
    return done


def tags_of(text: str, separator: str) -> set[str]:
    """Return the tags of all lines of a caption."""
    return {tag for line in split_lines(text) for tag in _split(line, separator)}


def operation_of(value: Any) -> Operation:
    """Return an operation from its JSON form: `{"do": "add", "tag": "x", "at": "last"}`.

    Raises:
        ValueError: The value is invalid; with the reason.
    """
    if not isinstance(value, Mapping) or value.get("do") not in list(_FIELDS):
        raise ValueError(f"{value!r:.80} is not an operation; known are {', '.join(_FIELDS)}")
    kind = value["do"]
    make, names = _FIELDS[kind]
    given = {key: text for key, text in value.items() if key != "do"}
    if set(given) - set(names) or not all(isinstance(text, str) for text in given.values()):
        raise ValueError(f"{kind} takes {' and '.join(names)} as texts; found {value!r:.80}")
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
    """Split `TAG@first`, `TAG@last` or `TAG@3` into tag and position, which is last by default."""
    tag, _, at = text.rpartition("@")
    return (tag, at) if tag and is_position(at) else (text, LAST)


def split_replacement(text: str) -> tuple[str, str]:
    """Split `OLD=NEW` into two tags; an equals sign at the very start belongs to the old one.

    Raises:
        ValueError: There is no equals sign between two tags.
    """
    index = text.find("=", 1)
    if index < 0:
        raise ValueError(f"{text!r} is not OLD=NEW")
    return text[:index], text[index + 1 :]


def is_position(text: str) -> bool:
    """Return whether a text is a position of a tag."""
    return text in (FIRST, LAST) or _POSITION.fullmatch(text) is not None


def _fault(given: Mapping[str, str]) -> str:
    """Return why the texts of an operation are refused; empty if they are valid."""
    for name, text in given.items():
        if not is_text(text) or "\0" in text:
            return "it contains a lone surrogate or a zero byte, which captions cannot contain"
        if name == "at" and not is_position(text):
            return f"the position is {text!r}; expected first, last or a number from 1"
    for name in ("tag", "by"):
        if name in given and "pattern" not in given:
            tag = given[name]
            if not tag.strip() or tag != tag.strip() or len(split_lines(tag)) > 1:
                return f"{tag!r} is not a tag: it is empty, or has space around it or several lines"
    if given.get("pattern") == "":
        return "the pattern is empty"
    return ""


def separator_fault(operations: Sequence[Operation], separator: str) -> str:
    """Return why a separator cannot be used with some operations; empty if it can."""
    if not separator.strip() or len(split_lines(separator)) > 1:
        return "it is empty or a line end"
    for operation in operations:
        for name in ("tag", "by"):
            tag = "" if isinstance(operation, ReplacePattern) else getattr(operation, name, "")
            if separator.strip() in tag:
                return f"the tag {_quoted(tag)} contains it; give two tags, or another separator"
    return ""


def _split(line: str, separator: str) -> list[str]:
    return [tag for piece in line.split(separator.strip()) if (tag := piece.strip())]


def _by_line(text: str, separator: str, change: Callable[[list[str]], list[str]]) -> str:
    """Return a caption after a change to the tags of each line; unchanged lines stay verbatim."""
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
    return at if at in (FIRST, LAST) else f"at position {at}"


def _quoted(text: str) -> str:
    plain = " ".join(text.split())
    return repr(plain if len(plain) <= _SHOWN else f"{plain[:_SHOWN]}...")
