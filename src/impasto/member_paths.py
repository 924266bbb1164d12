"""How an image inside a tar or a table is written as a path, and how a person reads it.

The path says all that reading takes, so a record, a stage or a process needs nothing besides:

    cats-000.tar/@000000001536+20480/cat.jpg      bytes 1,536 to 22,016 of the tar
    cats.parquet/@row+image+000000000042/cats.parquet#42     row 42 of the column `image`

A person sees `cats-000.tar/cat.jpg` and `cats.parquet#42` (`plain`), which is also what random
numbers, masks and metadata know an image by: where it stands in its file is no part of its name.
Nothing is opened here, and the system is never asked for such a path.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from impasto.presence import is_dir

TAR = ".tar"
PARQUET, ARROW = ".parquet", ".arrow"
TABLES = (PARQUET, ARROW)
CONTAINERS = (TAR, *TABLES)
"""Endings of the files that hold many images, in lower case."""

SEGMENT = re.compile(r"seg-(\d{20})-[^./\\]+-([0-9a-f]{8})-(\d+)\.arrow\Z")
"""Files of Impasto's own tables (`data/columns/segments.py`): what is known of images."""

WILD = re.compile(r"[*?\[]")
_MEMBER = re.compile(
    r"[/\\]@(?:(?P<offset>\d{12,18})\+(?P<size>\d{1,18})(?:\+(?P<field>[^/\\]*))?"
    r"|row\+(?P<column>[^/\\+]+)\+(?P<row>\d{12,15}))[/\\]"
)


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file in a tar.

    Attributes:
        container: The tar.
        offset: Where its bytes begin.
        size: How many there are.
        name: Its name in the tar.
        field: Of JSON, the key whose value is meant; empty for the usual ones, None for a file
            that is meant whole.
    """

    container: Path
    offset: int
    size: int
    name: str
    field: str | None = None


@dataclass(frozen=True, slots=True)
class TableCell:
    """A value of a table.

    Attributes:
        container: The table's file.
        column: The name of the column.
        row: The row, from 0 on.
    """

    container: Path
    column: str
    row: int


Member = TarMember | TableCell


def path_in_tar(tar: str, name: str, offset: int, size: int, *, field: str | None = None) -> str:
    """The path of a file in a tar; those of one tar sort in the order of their bytes."""
    said = "" if field is None else "+" + quote(field, safe="")
    return f"{tar}{os.sep}@{offset:012}+{size}{said}{os.sep}{name}"


def path_in_table(table: str, column: str, row: int) -> str:
    """The path of a value in a table; those of one column sort by their rows.

    The name stays when the table gets more rows.
    """
    name = os.path.basename(table)  # noqa: PTH119 - hot path
    return f"{table}{os.sep}@row+{quote(column, safe='')}+{row:012}{os.sep}{name}#{row}"


def member_of(path: str | os.PathLike[str]) -> Member | None:
    """What a path names inside a file; None for the path of a file of its own."""
    text = os.fspath(path)
    match = _MEMBER.search(text) if "@" in text else None
    if match is None:
        return None
    container, name = Path(text[: match.start()]), text[match.end() :]
    if match["column"] is not None:
        return TableCell(container, unquote(match["column"]), int(match["row"]))
    field = None if match["field"] is None else unquote(match["field"])
    return TarMember(container, int(match["offset"]), int(match["size"]), name, field)


def is_member(path: str | os.PathLike[str]) -> bool:
    """Whether a path names something inside a file."""
    text = os.fspath(path)
    return "@" in text and _MEMBER.search(text) is not None


def plain(path: str | os.PathLike[str]) -> str:
    """A path as a person knows it: without the place in the file that holds it."""
    text = os.fspath(path)
    match = _MEMBER.search(text) if "@" in text else None
    if match is None:
        return text
    container, name = text[: match.start()], text[match.end() :]
    if match["column"] is not None:
        return container + name[name.find("#") :]
    return container + match[0][0] + name


def is_container(name: str) -> bool:
    """Whether a file holds many images, by its ending; derived data of Impasto's own does not."""
    return name.lower().endswith(CONTAINERS) and SEGMENT.search(name) is None


COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
"""Endings of tars without places to read members from."""


def is_named(path: Path) -> bool:
    """Whether a path names such files themselves, by their ending or by wildcards.

    A folder is none of them, whatever it is called.
    """
    name = path.name
    is_pattern = WILD.search(name) is not None and name.endswith("*")
    return (is_container(name) or is_pattern) and not is_dir(path)


def folder_of(path: Path) -> Path:
    """The folder that the images of a place are below: of a file or a pattern, the one it is in."""
    return path.parent if is_named(path) else path
