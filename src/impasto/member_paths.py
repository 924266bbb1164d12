"""Paths of images inside a tar or a table, and their form for users.

The path contains everything needed to read the image, so records and processes pass nothing else:

    cats-000.tar/@000000001536+20480/cat.jpg      bytes 1,536 to 22,016 of the tar
    cats.parquet/@row+image+000000000042/cats.parquet#42     row 42 of the column `image`

Users see `cats-000.tar/cat.jpg` and `cats.parquet#42` (`plain`), which is also the name by which
random numbers, masks and metadata identify an image: its offset in the file is not part of it.
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
"""Extensions of the files that hold many images, in lower case."""

SEGMENT = re.compile(r"seg-(\d{20})-[^./\\]+-([0-9a-f]{8})-(\d+)\.arrow\Z")
"""File names of Impasto's own tables of image records (`data/columns/segments.py`)."""

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
        offset: The offset of its first byte.
        size: Its size in bytes.
        name: Its name in the tar.
        field: For JSON, the key of the selected value; empty for the usual keys, None for the
            whole file.
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
    """Return the path of a file in a tar; such paths sort by their offset in the tar."""
    said = "" if field is None else "+" + quote(field, safe="")
    return f"{tar}{os.sep}@{offset:012}+{size}{said}{os.sep}{name}"


def path_in_table(table: str, column: str, row: int) -> str:
    """Return the path of a value in a table; such paths sort by row within a column.

    The path stays valid when rows are appended to the table.
    """
    name = os.path.basename(table)  # noqa: PTH119 - hot path
    return f"{table}{os.sep}@row+{quote(column, safe='')}+{row:012}{os.sep}{name}#{row}"


def member_of(path: str | os.PathLike[str]) -> Member | None:
    """Parse the path of a member of a tar or table; None for the path of an ordinary file."""
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
    """Return whether a path names an image inside a tar or table."""
    text = os.fspath(path)
    return "@" in text and _MEMBER.search(text) is not None


def plain(path: str | os.PathLike[str]) -> str:
    """Return a path as shown to users: without the position inside the containing file."""
    text = os.fspath(path)
    match = _MEMBER.search(text) if "@" in text else None
    if match is None:
        return text
    container, name = text[: match.start()], text[match.end() :]
    if match["column"] is not None:
        return container + name[name.find("#") :]
    return container + match[0][0] + name


def is_container(name: str) -> bool:
    """Return whether a file holds many images, by its extension; Impasto's own tables do not."""
    return name.lower().endswith(CONTAINERS) and SEGMENT.search(name) is None


COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
"""Extensions of compressed tars, which have no offsets to read members from."""


def is_named(path: Path) -> bool:
    """Return whether a path names container files, by extension or wildcards; False for folders."""
    name = path.name
    is_pattern = WILD.search(name) is not None and name.endswith("*")
    return (is_container(name) or is_pattern) and not is_dir(path)


def folder_of(path: Path) -> Path:
    """Return the folder of the images: the parent of a container file or pattern, else the path."""
    return path.parent if is_named(path) else path
