"""Edits of captions against a slow, plain implementation of each.

If one failed, hundreds of a user's captions would differ from the preview.
"""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from impasto.annotate.editing import (
    AddTag,
    MoveTag,
    RemoveTag,
    ReplacePattern,
    ReplaceTag,
    SetText,
    applied,
    operation_of,
    separator_fault,
    split_position,
    split_replacement,
    tags_of,
)

TAG = st.sampled_from(["a", "b", "a b", "ä", "<script>", "^_^", "@_@", "=_=", "長"])
PLACE = st.sampled_from(["first", "last", "1", "2", "9"])
SPACE = st.sampled_from(["", " ", "  ", "\t"])
PART = st.tuples(SPACE, st.one_of(TAG, st.just("")), SPACE).map("".join)
LINE = st.lists(PART, max_size=6).map(",".join)
CAPTION = st.lists(LINE, max_size=4).map("\n".join).map(str.strip)

OPERATION = st.one_of(
    st.builds(AddTag, TAG, PLACE),
    st.builds(RemoveTag, TAG),
    st.builds(ReplaceTag, TAG, TAG),
    st.builds(MoveTag, TAG, PLACE),
    st.builds(SetText, CAPTION),
)


def plain_tags(line):
    found = []
    for part in line.split(","):
        word = part
        while word[:1].isspace():
            word = word[1:]
        while word[-1:].isspace():
            word = word[:-1]
        if word:
            found.append(word)
    return found


def put(tags, tag, at):
    """Count positions up to the selected one."""
    if at == "last":
        return [*tags, tag]
    found, wanted = [], 1 if at == "first" else int(at)
    for number, other in enumerate(tags, start=1):
        if number == wanted:
            found.append(tag)
        found.append(other)
    return found if len(tags) >= wanted else [*tags, tag]


def plain_line(operation, tags):
    name = type(operation).__name__
    if name == "AddTag":
        return tags if tags.count(operation.tag) else put(tags, operation.tag, operation.at)
    if name == "RemoveTag":
        return [tag for tag in tags if tag != operation.tag]
    if name == "MoveTag":
        others = [tag for tag in tags if tag != operation.tag]
        return put(others, operation.tag, operation.at) if len(others) < len(tags) else tags
    if operation.tag not in tags or operation.tag == operation.by:
        return tags
    found = []
    for tag in tags:
        new = operation.by if tag == operation.tag else tag
        if new != operation.by or new not in found:
            found.append(new)
    return found


def plain(operation, text):
    if isinstance(operation, SetText):
        return operation.text.strip()
    if isinstance(operation, AddTag) and not text:
        return operation.tag
    lines = []
    for line in text.split("\n"):
        tags = plain_tags(line)
        new = plain_line(operation, tags) if tags else tags
        if new == tags:
            lines.append(line)
        elif new:
            lines.append(", ".join(new))
    return "\n".join(lines).strip()


@settings(max_examples=400, deadline=None)
@given(st.lists(OPERATION, min_size=1, max_size=4), st.lists(CAPTION, max_size=4))
def test_edits_do_what_a_plain_account_says(operations, texts):
    expected = []
    for text in texts:
        for operation in operations:
            text = plain(operation, text)
        expected.append(text)
    assert applied(operations, texts, ",") == expected


@settings(max_examples=200, deadline=None)
@given(OPERATION, CAPTION)
def test_doing_it_again_changes_nothing(operation, text):
    once = applied([operation], [text], ",")
    assert applied([operation], once, ",") == once


@settings(max_examples=200, deadline=None)
@given(CAPTION, TAG)
def test_a_tag_that_is_not_there_leaves_every_letter(text, tag):
    if tag not in tags_of(text, ","):
        for operation in (RemoveTag(tag), ReplaceTag(tag, "x"), MoveTag(tag, "first")):
            assert applied([operation], [text], ",") == [text]


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([r"a", r"(?i)A+", r"^\s*(\S)", r"b|ä", r"(?m)^", r"$"]),
    st.sampled_from(["", "x", r"<\g<0>>", "\\\\", "長"]),
    st.lists(CAPTION, max_size=20),
)
def test_regular_expressions_are_pythons(pattern, by, texts):
    expected = [re.sub(pattern, by, text).strip() for text in texts]
    assert applied([ReplacePattern(pattern, by)], texts, ",") == expected


@given(TAG, PLACE)
def test_places_and_replacements_are_read_back(tag, at):
    assert split_position(f"{tag}@{at}") == (tag, at)
    assert split_position(tag) == (tag, "last")
    if "=" not in tag:
        assert split_replacement(f"{tag}={at}") == (tag, at)


FIELD = st.sampled_from(["do", "tag", "by", "at", "text", "pattern"])
KIND = st.sampled_from(["add", "remove", "replace", "move", "regex", "set"])
JSON = st.recursive(
    st.none() | st.text() | st.integers() | KIND,
    lambda inner: st.lists(inner) | st.dictionaries(FIELD, inner),
)


@given(JSON)
def test_whatever_json_holds_it_is_an_operation_or_a_sentence(value):
    try:
        words = operation_of(value).describe()
    except ValueError as error:
        words = str(error)
    assert words


def test_a_separator_that_is_in_a_tag_is_refused():
    assert "contains it" in separator_fault([AddTag("a, b")], ",")
    assert separator_fault([ReplacePattern("a, b", "c, d")], ",") == ""
    assert separator_fault([AddTag("a, b")], ";") == ""
    assert applied([AddTag("c"), RemoveTag("a")], ["a;b"], ";") == ["b; c"]
    assert separator_fault([], " ")
