"""Parses JSON, TOML and lines of untrusted files, and reports every fault as one kind of error.

Python's own parsers raise RecursionError for deep nesting and accept half a surrogate pair (which
fails later, when it is written), and `str.splitlines` splits at U+2028, U+0085 and more, which JSON
Lines and captions may contain. All readers of this project use these functions.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

LARGEST_OBJECT = 64 << 20
"""The largest JSON file, in bytes, that `read_object` reads."""

_LINE_END = re.compile(r"\r\n?")
_SURROGATES = re.compile("[\ud800-\udfff]")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_DEEP = "nested too deeply"
_LONG_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){200}""")
"""A TOML key of hundreds of parts: tomllib's memory grows with their square, to gigabytes."""
_MOST_LEVELS = 64


def read_text(path: Path, errors: str = "strict") -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark.

    Args:
        path: The file.
        errors: How bytes that are not UTF-8 are handled, as for `bytes.decode`.

    Raises:
        OSError: The file is missing, cannot be read, or is a pipe or device, which may never end.
        UnicodeDecodeError: The file is not UTF-8.
    """
    _require_end(path)
    return path.read_text(encoding="utf-8-sig", errors=errors)


def read_caption_file(path: Path) -> str:
    """Read a file with captions or tags: UTF-8, or UTF-16 with a byte order mark.

    Raises:
        OSError: As for `read_text`.
        UnicodeDecodeError: The file is in another encoding, such as Latin-1, which cannot be
            detected.
    """
    _require_end(path)
    return decode_caption(path.read_bytes()).replace("\r\n", "\n").replace("\r", "\n")


def _require_end(path: Path) -> None:
    """Refuse pipes and devices, which may never end. A folder passes, and fails when it is read."""
    try:
        kind = path.stat().st_mode
    except ValueError as error:  # a null character, or half a surrogate pair
        raise OSError(errno.EINVAL, f"not a valid path ({error})", str(path)) from error
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise OSError(errno.EINVAL, "a pipe or device, which is never read", str(path))


def decode_caption(content: bytes, errors: str = "strict") -> str:
    """Decode the bytes of a caption file, UTF-8 or UTF-16 with a byte order mark.

    Editors on Windows write UTF-16.

    Raises:
        UnicodeDecodeError: As for `read_caption_file`.
    """
    encoding = "utf-16" if content.startswith(_UTF_16) else "utf-8-sig"
    return content.decode(encoding, errors)


def parse_json(
    text: str | bytes,
    *,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    halves: bool = False,
) -> Any:
    """Parse JSON, with one kind of error for everything that is wrong with it.

    Args:
        text: The content; bytes are UTF-8.
        pairs: Converts the keys and values of an object; None makes a dictionary.
        halves: Whether strings may contain half a surrogate pair, for callers that handle it.

    Raises:
        json.JSONDecodeError: The text is not JSON, is nested too deeply, or contains a number of
            thousands of digits or half a surrogate pair.
    """
    try:
        whole = text if isinstance(text, str) else text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise json.JSONDecodeError(f"not UTF-8 at byte {error.start}", "", 0) from error
    try:
        content = json.loads(whole, object_pairs_hook=pairs)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError(_DEEP, whole, 0) from None
    except ValueError as error:  # a number of thousands of digits
        raise json.JSONDecodeError("a number is too long", whole, 0) from error
    if not halves and "\\u" in whole and _has_surrogate(content):
        raise json.JSONDecodeError("half a surrogate pair, which is not valid text", whole, 0)
    return content


def read_object(path: Path) -> dict[str, Any] | None:
    """Read the JSON object in a file; None if it is missing, damaged, too large or not an object.

    For files written by Impasto, which another user may have replaced. File names in it may
    contain lone surrogates: bytes that are not UTF-8.
    """
    try:
        _require_end(path)
        with path.open("rb") as file:
            content = file.read(LARGEST_OBJECT + 1)
        if len(content) > LARGEST_OBJECT:
            return None
        found = parse_json(content, halves=True)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def json_fault(error: json.JSONDecodeError) -> str:
    """Return the reason of a JSON error without its position; Python's may end in "starting at"."""
    return f"not valid JSON ({error.msg.removesuffix(' starting at')})"


def json_fault_in(source: object, error: json.JSONDecodeError) -> str:
    """Return a sentence with a JSON error's source, line, column and reason."""
    return f"{source}, line {error.lineno}, column {error.colno}: {json_fault(error)}."


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML, with one kind of error for everything that is wrong with it.

    Raises:
        tomllib.TOMLDecodeError: The text is not TOML, is nested too deeply, or contains a number of
            thousands of digits.
    """
    if _LONG_KEY.search(text):
        raise tomllib.TOMLDecodeError(_DEEP)
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise tomllib.TOMLDecodeError(_DEEP) from None
    except ValueError as error:
        raise tomllib.TOMLDecodeError("a number or date is out of range") from error
    if is_deep(content):  # dotted keys nest without recursion
        raise tomllib.TOMLDecodeError(_DEEP)
    return content


def is_deep(content: Any) -> bool:
    """Return whether parsed JSON or TOML is nested deeper than any settings are."""
    waiting = [(content, 0)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, (dict, list)):
            if depth > _MOST_LEVELS:
                return True
            inner = item.values() if isinstance(item, dict) else item
            waiting += [(value, depth + 1) for value in inner]
    return False


def split_lines(text: str) -> list[str]:
    r"""Return the lines of a text without their ends, split at \n, \r\n and \r alone."""
    return _LINE_END.sub("\n", text).split("\n")


def is_text(text: str) -> bool:
    """Return whether a string can be encoded as UTF-8; file names with lone surrogates cannot."""
    return text.isascii() or _SURROGATES.search(text) is None


def printable(name: str) -> str:
    r"""Return a file name that can be shown and written: bytes that are not UTF-8 become `\x92`."""
    if is_text(name):
        return name
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # lone surrogates that are not from a file name
        return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _has_surrogate(content: Any) -> bool:
    """Return whether a string anywhere in parsed JSON contains a lone surrogate."""
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if not is_text(item):
                return True
        elif isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            waiting += item
    return False
