"""Reads the tags of a tagger's output rows, from each kind of file that taggers come with."""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from impasto.annotate.tags import CATEGORIES, CHARACTER, GENERAL, RATING, TagTable
from impasto.errors import ModelError
from impasto.parsing import json_fault_in, parse_json, read_text, split_lines

DANBOORU_CATEGORIES = {
    0: GENERAL, 1: "artist", 3: "copyright", 4: CHARACTER, 5: "meta", 9: RATING, 10: "year",
}  # fmt: skip
"""Number in the `category` column -> category: danbooru's, and 9 for ratings and 10 for years."""

_SAFE_RATINGS = ("rating:", "rating_")


def read_selected_tags(file: Path) -> TagTable:
    """Read a CSV with `name` and `category`, as for WD14, PixAI and deepghs.

    Raises:
        ModelError: It is not such a file.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = list(csv.DictReader(opened))
        names = tuple(row["name"] for row in rows)
        categories = tuple(_category(int(row["category"]), row["name"]) for row in rows)
        own = {r["name"]: float(r["best_threshold"]) for r in rows if r.get("best_threshold")}
    except (KeyError, ValueError, TypeError, UnicodeDecodeError, csv.Error) as error:
        raise ModelError(
            f"{file} is not a table of tags: expected CSV with the columns name and category "
            f"({error!r})."
        ) from error
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror or error}.") from error
    return TagTable(names, categories, tuple(range(len(names))), own)


def read_tag_mapping(file: Path) -> TagTable:
    """Read `{row: {tag, category}}`, as for cl_tagger; rows may be missing.

    Raises:
        ModelError: It is not such a file.
    """
    content = _json(file)
    try:
        pairs = sorted((int(row), entry) for row, entry in content.items())
        return TagTable(
            tuple(str(entry["tag"]) for _, entry in pairs),
            tuple(_known_category(str(entry["category"])) for _, entry in pairs),
            tuple(row for row, _ in pairs),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f'{file} is not a mapping of tags: expected {{"0": {{"tag": ..., "category": ...}}}} '
            f"({error!r})."
        ) from error


def read_camie_metadata(file: Path) -> TagTable:
    """Read `idx_to_tag` and `tag_to_category`, optionally in `dataset_info.tag_mapping`, for Camie.

    Raises:
        ModelError: It is not such a file.
    """
    content = _json(file)
    try:
        inner = content.get("dataset_info", content)
        inner = inner.get("tag_mapping", inner)
        pairs = sorted((int(row), str(tag)) for row, tag in inner["idx_to_tag"].items())
        of = inner["tag_to_category"]
        return TagTable(
            tuple(tag for _, tag in pairs),
            tuple(_known_category(str(of.get(tag, GENERAL))) for _, tag in pairs),
            tuple(row for row, _ in pairs),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{file} is not a table of tags: expected idx_to_tag and tag_to_category ({error!r})."
        ) from error


def read_lines(file: Path) -> TagTable:
    """Read one tag per line, as for JoyTag and DeepDanbooru, and characters in a list beside it.

    Raises:
        ModelError: It is empty or not UTF-8.
    """
    names = [line.strip() for line in split_lines(_text(file)) if line.strip()]
    if not names:
        raise ModelError(f"{file} contains no tags.")
    characters = file.with_name("tags-character.txt")
    known = set(_text(characters).split()) if characters.is_file() else set()
    return of_names(names, known)


def of_names(names: Sequence[str], characters: set[str] | frozenset[str] = frozenset()) -> TagTable:
    """Return a table of tags without categories; ratings are recognised by their prefix."""
    categories = tuple(
        RATING if name.startswith(_SAFE_RATINGS) else CHARACTER if name in characters else GENERAL
        for name in names
    )
    return TagTable(tuple(names), categories, tuple(range(len(names))))


def read_literal(text: str, where: str) -> TagTable:
    """Parse a Python list of strings, as in the metadata of skytnt's DeepDanbooru.

    Raises:
        ModelError: It is something else.
    """
    try:
        names = ast.literal_eval(text)
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return of_names(names)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    raise ModelError(f"The tags in the metadata of {where} are not a list of texts.")


READERS: Mapping[str, Callable[[Path], TagTable]] = {
    "selected_tags.csv": read_selected_tags,
    "tag_mapping.json": read_tag_mapping,
    "deepdanbooru_tags.csv": read_selected_tags,
    "top_tags.txt": read_lines,
    "tags.txt": read_lines,
    "metadata.json": read_camie_metadata,
}
"""File name beside the model -> its reader; the first file that exists is used."""


def _category(number: int, name: str) -> str:
    if name.startswith("rating:"):
        return RATING
    return DANBOORU_CATEGORIES.get(number, GENERAL)


def _known_category(category: str) -> str:
    lower = category.lower()
    return lower if lower in CATEGORIES else GENERAL


def _text(file: Path) -> str:
    try:
        return read_text(file)
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{file} cannot be read as UTF-8 text: {error}.") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(_text(file))
    except json.JSONDecodeError as error:
        raise ModelError(json_fault_in(file, error)) from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds a {type(content).__name__}; expected an object.")
    return content
