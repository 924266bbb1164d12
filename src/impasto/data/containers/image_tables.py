"""Finds the images in a Parquet or Arrow table: the columns to use, and a path for each row.

A column of images holds bytes, or Hugging Face's pairs of bytes and path, or paths relative to the
table's folder. Captions are texts, or lists of texts, which are joined as tags are.

Source: huggingface/datasets, `src/datasets/features/image.py`, Image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.types as types

from impasto.data.columns.table_rows import OpenTable, arrow_errors, open_table
from impasto.data.containers.containers import CAPTION_NAMES, Columns, Container
from impasto.data.engines.stages import Failure
from impasto.data.folders.found_image import FoundImage
from impasto.data.folders.listing import Unused
from impasto.member_paths import path_in_table

BYTES, PATH = "bytes", "path"
_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "image_bytes")
_PATHS = ("image_path", "file_name", "path", "file_path", "filename", "file")
_SHOWN = 12


@dataclass(frozen=True)
class TableFacts:
    """The facts about a table that a scan needs.

    Attributes:
        rows: Number of rows.
        image: The column of images.
        paths: The paths of the images if that column holds paths; None if it holds bytes.
        caption: The column of captions; empty if there is none.
        names: The names of all columns.
    """

    rows: int
    image: str
    paths: tuple[str | None, ...] | None
    caption: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class ReadTables:
    """Stage: tables -> `TableFacts`.

    Attributes:
        columns: The columns named in the settings.
    """

    columns: Columns

    def __call__(self, batch: Sequence[Container]) -> list[TableFacts | Failure]:
        """Read the columns of some tables.

        Raises:
            StorageError: They are in an object store that cannot be used.
        """
        return [self._one(container) for container in batch]

    def _one(self, container: Container) -> TableFacts | Failure:
        try:
            table = open_table(Path(container.path), container.size)
            with arrow_errors():
                return _facts(table, self.columns)
        except OSError as error:
            return Failure(f"cannot be read ({error.strerror or error})", is_transient=True)


def _facts(table: OpenTable, asked: Columns) -> TableFacts | Failure:
    schema = table.schema
    looked_for = {asked.image, asked.caption, *_IMAGES, *_PATHS, *CAPTION_NAMES}
    usual = [name for name in schema.names if name in looked_for]
    twice = [name for name in usual if usual.count(name) > 1]
    if twice:
        return Failure(f"it has several columns named {twice[0]!r}; rename all but one")
    image = _column(schema, _IMAGE, asked.image)
    caption = _column(schema, _CAPTION, asked.caption)
    if isinstance(image, Failure):
        return image
    if isinstance(caption, Failure):
        return caption
    kind, rows = schema.field(image).type, int(table.starts[-1])
    paths: tuple[str | None, ...] | None = None
    if is_text_type(kind):
        paths = tuple(_all_values(table, image))
    elif types.is_struct(kind) and rows and not table.holds_bytes(image, BYTES):
        paths = tuple((value or {}).get(PATH) for value in _all_values(table, image))
    return TableFacts(rows, image, paths, caption, tuple(schema.names))


@dataclass(frozen=True)
class _Wanted:
    """A column to search for in a table.

    Attributes:
        setting: The setting that can name it.
        fits: Returns whether a column of this type can be used.
        expected: The types that fit, in words.
        unnamed: Finds the column if no setting names it.
    """

    setting: str
    fits: Callable[[pa.DataType], bool]
    expected: str
    unnamed: Callable[[pa.Schema], str | Failure]


def _column(schema: pa.Schema, wanted: _Wanted, asked: str | None) -> str | Failure:
    """Return the name of a column, from the settings or by the usual names; empty if none."""
    if asked is None:
        return wanted.unnamed(schema)
    if asked not in schema.names:
        return Failure(
            f"it has no column {asked!r}, which {wanted.setting} names; its columns are "
            f"{_listed(schema.names)}"
        )
    kind = schema.field(asked).type
    if wanted.fits(kind):
        return asked
    return Failure(f"its column {asked!r} holds {kind}; expected {wanted.expected}")


def _unnamed_images(schema: pa.Schema) -> str | Failure:
    """Return the only column of bytes, or else the first with a usual name for images or paths."""
    fitting: list[str] = [field.name for field in schema if _holds_images(field.type)]
    if len(fitting) == 1:
        return fitting[0]
    usual = [name for name in _IMAGES if name in fitting]
    usual += [n for n in _PATHS if n in schema.names and is_text_type(schema.field(n).type)]
    if usual:
        return usual[0]
    found = f"several columns hold bytes ({', '.join(fitting)})" if fitting else "none holds bytes"
    return Failure(
        f"its column of images cannot be determined: {found}. Its columns are "
        f"{_listed(schema.names)}; name one with image_column"
    )


def _unnamed_captions(schema: pa.Schema) -> str:
    """Return the first column with a usual name for captions; empty if there is none."""
    fitting = {field.name for field in schema if _holds_texts(field.type)}
    return next((name for name in CAPTION_NAMES if name in fitting), "")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "none"


def _holds_images(kind: pa.DataType) -> bool:
    """Return whether values of a type are bytes, or pairs of bytes and path."""
    if types.is_struct(kind):
        index = kind.get_field_index(BYTES)
        return index >= 0 and _is_bytes(kind.field(index).type)
    return _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def is_text_type(kind: pa.DataType) -> bool:
    """Return whether values of a type are texts, or pandas' categories of texts."""
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _holds_texts(kind: pa.DataType) -> bool:
    """Return whether values of a type are texts, or lists of texts."""
    is_list = bool(types.is_list(kind) or types.is_large_list(kind))
    return is_text_type(kind.value_type) if is_list else is_text_type(kind)


_IMAGE = _Wanted(
    "image_column",
    lambda kind: _holds_images(kind) or is_text_type(kind),
    "bytes, pairs of bytes and path, or paths",
    _unnamed_images,
)
_CAPTION = _Wanted("caption_column", _holds_texts, "texts, or lists of texts", _unnamed_captions)


def _all_values(table: OpenTable, column: str) -> list[Any]:
    return [
        value
        for number in range(len(table.starts) - 1)
        for value in table.part(column, number).values.to_pylist()
    ]


def images_of_table(
    container: Container, facts: TableFacts
) -> tuple[list[FoundImage], list[Unused]]:
    """Return the images of a table that holds their bytes, with their captions, and remarks.

    An image's size is given as 0, since finding it takes reading the image. Instead of a
    modification time it has a number derived from the table's time and size, as copying may keep
    the time.
    """
    found, path = [], container.path
    said = hashlib.sha256(f"{container.stamp} {container.size}".encode()).digest()
    stamp = int.from_bytes(said[:8], "big") >> 2
    stamps = [0, stamp, container.size, container.stamp, 0, 0]
    for row in range(facts.rows):
        image = path_in_table(path, facts.image, row)
        caption_file = path_in_table(path, facts.caption, row) if facts.caption else ""
        found.append(FoundImage(image, stamps, (caption_file, "")))
    return found, unused_of_table(container, facts)


def unused_of_table(container: Container, facts: TableFacts) -> list[Unused]:
    """Return the remark about a table without captions; none if it has them."""
    if facts.caption:
        return []
    return [
        Unused(
            Path(container.path),
            f"a table without captions: none of its columns ({_listed(facts.names)}) is known to "
            f"hold them; name one with caption_column",
        )
    ]
