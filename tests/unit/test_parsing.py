"""Text of unknown origin: all parse failures are one kind of error; only \\n ends a line."""

import json
import os
import re
import tomllib
from pathlib import Path

import pytest

import impasto
from impasto import parsing
from impasto.config.load import load_dataset_config
from impasto.errors import ConfigError
from impasto.parsing import (
    is_text,
    json_fault,
    json_fault_in,
    parse_json,
    parse_toml,
    printable,
    read_object,
    read_text,
    split_lines,
)

SOURCE = Path(impasto.__file__).parent


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "[" + "9" * 5000 + "]", '{"a": "\\ud83d"}', b"\xff\xfe{}",
     "", "{"],
    ids=["deep list", "deep object", "long number", "half", "not UTF-8", "empty", "cut"],
)  # fmt: skip
def test_all_faults_of_json_are_one_error(text):
    with pytest.raises(json.JSONDecodeError):
        parse_json(text)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "words.json")
    with pytest.raises(OSError, match="pipe or device"):
        read_text(tmp_path / "words.json")
    with pytest.raises(ConfigError, match="pipe or device"):
        load_dataset_config(tmp_path / "words.json", {})


def test_a_fault_of_json_is_a_whole_phrase():
    with pytest.raises(json.JSONDecodeError) as raised:
        parse_json('{"a": "cut')
    assert json_fault(raised.value) == "not valid JSON (Unterminated string)"
    where = f"a.json, line {raised.value.lineno}, column {raised.value.colno}: not valid JSON"
    assert json_fault_in("a.json", raised.value).startswith(where)


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"{", b'{"a": \xff}', b"[" * 100_000, b'{"a": ' * 100_000]
)
def test_a_file_without_a_json_object_is_nothing(tmp_path, content):
    file = tmp_path / "task.json"
    assert read_object(file) is None
    file.write_bytes(content)
    assert read_object(file) is None
    assert read_object(tmp_path) is None


def test_an_object_of_a_file_may_name_files_that_are_no_text(tmp_path, monkeypatch):
    file = tmp_path / "task.json"
    file.write_text('{"words": ["\\udcff"]}', encoding="utf-8")
    assert read_object(file) == {"words": ["\udcff"]}
    monkeypatch.setattr(parsing, "LARGEST_OBJECT", 10)
    assert read_object(file) is None


def test_json_that_is_right(tmp_path):
    value = {"a": [1, 2.5, None, "\u2028 😀"], "b": {}}
    assert parse_json(json.dumps(value)) == value
    assert parse_json(b"\xef\xbb\xbf" + json.dumps(value).encode()) == value
    assert parse_json('["\\ud83d"]', halves=True) == ["\ud83d"]


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 50_000, "a = " + "9" * 5000, "a = ", "a." * 3000 + "b = 1"]
)
def test_all_faults_of_toml_are_one_error(text):
    with pytest.raises(tomllib.TOMLDecodeError):
        parse_toml(text)


def test_lines_end_at_line_feeds_alone():
    assert split_lines("a\u2028b\u0085c\x0bd\r\ne\rf\n") == ["a\u2028b\u0085c\x0bd", "e", "f", ""]


def test_names_that_are_not_utf8_can_be_shown():
    name = b"\x92\xb1a.png".decode("utf-8", "surrogateescape")
    assert not is_text(name)
    assert printable(name) == "\\x92\\xb1a.png"
    assert printable("蝶.png") == "蝶.png"
    assert printable("\ud83d") == "\\ud83d"


@pytest.mark.parametrize("pattern", [r"\bjson\.loads?\(", r"\btomllib\.loads?\("])
def test_nothing_parses_past_this_module(pattern):
    """Python's own parsers raise RecursionError, which no caller catches."""
    users = [
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if re.search(pattern, path.read_text(encoding="utf-8"))
        and path.name != "substitution.py"  # runs as a file without this package (-I -S)
    ]
    assert users == ["parsing.py"]
