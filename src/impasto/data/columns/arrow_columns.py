"""Arrow columns made of Python's and NumPy's values, and read as such.

`pyarrow.array` and `to_pylist` would do. But the first imports pandas wherever it is installed, to
see whether it was given something of pandas, and many methods of a column import
`pyarrow.compute`: 0.3 s, which is more than the scan of a small folder takes. What is here builds
and reads the buffers themselves, and imports neither.

Layout of the buffers: https://arrow.apache.org/docs/format/Columnar.html. No column has nulls.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

FEW = 1 << 14
"""Rows below which Python's own dictionaries are done before `pyarrow.compute` is imported."""
_CODES = {"int64": "q", "int32": "i", "uint64": "Q", "uint8": "B"}


def column_of(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """A column of Python values: integers, texts (`large_string`) or bytes.

    Raises:
        TypeError: A value is of another type.
        KeyError: The type is none of these.
        OverflowError: A number does not fit.
        ValueError: Bytes have another length than those of the type.
    """
    if kind == pa.large_string():
        return text_column(values)
    if kind == pa.large_binary() or pa.types.is_fixed_size_binary(kind):
        return _bytes_column([bytes(memoryview(value)) for value in values], kind)
    numbers = pa.py_buffer(array(_CODES[str(kind)], values))
    return pa.Array.from_buffers(kind, len(values), [None, numbers])


def text_column(values: Sequence[str]) -> pa.Array:
    """A column of texts, of the type `large_string`.

    Raises:
        UnicodeEncodeError: A text has half a character.
        TypeError: A value is no text.
    """
    joined = "".join(values)
    if joined.isascii():
        return _joined(joined.encode("ascii"), map(len, values), len(values), pa.large_string())
    return _bytes_column([value.encode("utf-8") for value in values], pa.large_string())


def number_column(values: np.ndarray) -> pa.Array:
    """A column of the numbers of an array, over the same memory where they lie in a row."""
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, buffer])


def empty_table(schema: pa.Schema) -> pa.Table:
    """A table without rows."""
    arrays = [column_of([], field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def texts_of(column: pa.ChunkedArray | pa.Array) -> list[str]:
    """All texts of a column of the type `large_string`."""
    found: list[str] = []
    for chunk in _chunks(column):
        ends, data = _parts(chunk)
        raw = bytes(data[int(ends[0]) : int(ends[-1])])
        bounds = (ends - ends[0]).tolist()
        if raw.isascii():
            text = raw.decode("ascii")
            found += [text[begin:end] for begin, end in itertools.pairwise(bounds)]
        else:
            found += [raw[begin:end].decode() for begin, end in itertools.pairwise(bounds)]
    return found


def list_of(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """All values of a column as Python's: texts, numbers or bytes."""
    if column.type == pa.large_string():
        return texts_of(column)
    if pa.types.is_integer(column.type):
        found: list[Any] = values_of(column).tolist()
        return found
    return list(column.to_pylist())


def texts_at(column: pa.ChunkedArray | pa.Array, rows: np.ndarray) -> list[str]:
    """The texts in some rows of a column of the type `large_string`, in the order of `rows`."""
    found = [""] * len(rows)
    before = 0
    for chunk in _chunks(column):
        rows_here = np.flatnonzero((rows >= before) & (rows < before + len(chunk)))
        own = rows[rows_here] - before
        before += len(chunk)
        ends, data = _parts(chunk)
        bounds = zip(rows_here.tolist(), ends[own].tolist(), ends[own + 1].tolist(), strict=True)
        for row, begin, end in bounds:
            found[row] = str(data[begin:end], "utf-8")
    return found


def few_of(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """A few rows of a table, in the order of `rows`; many are `take`'s."""
    arrays = []
    for column in table.itercolumns():
        if column.type == pa.large_string():
            arrays.append(text_column(texts_at(column, rows)))
        elif pa.types.is_integer(column.type):
            arrays.append(number_column(values_of(column)[rows]))
        else:
            arrays.append(column_of([column[row].as_py() for row in rows.tolist()], column.type))
    return pa.Table.from_arrays(arrays, schema=table.schema)


def is_filled(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.bool_]:
    """[rows]: whether each text of a column of the type `large_string` is not empty."""
    parts = [np.diff(_parts(chunk)[0]) > 0 for chunk in _chunks(column)]
    return np.concatenate([np.empty(0, np.bool_), *parts])


def values_of(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """[rows]: the numbers of a column, over its own memory where it is in one piece."""
    kind = column.type.to_pandas_dtype()
    parts = [
        np.frombuffer(chunk.buffers()[1], kind, len(chunk), chunk.offset * np.dtype(kind).itemsize)
        for chunk in _chunks(column)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, kind), *parts])


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with the types and the metadata of a schema.

    Raises:
        ValueError: Its columns have other names, or values that do not fit.
    """
    if table.schema.equals(schema):
        return table.replace_schema_metadata(schema.metadata)
    return table.cast(schema)


def _bytes_column(values: Sequence[bytes], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_binary(kind):
        return _joined(b"".join(values), map(len, values), len(values), kind)
    if any(len(value) != kind.byte_width for value in values):
        raise ValueError(f"expected {kind.byte_width} bytes each")
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(b"".join(values))])


def _joined(data: bytes, lengths: Iterable[int], count: int, kind: pa.DataType) -> pa.Array:
    """A column of values of different lengths, of their bytes one behind the other."""
    ends = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.fromiter(lengths, np.int64, count), out=ends[1:])
    return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(ends), pa.py_buffer(data)])


def _chunks(column: pa.ChunkedArray | pa.Array) -> list[pa.Array]:
    """The parts of a column that have rows."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return [chunk for chunk in chunks if len(chunk)]


def _parts(chunk: pa.Array) -> tuple[npt.NDArray[np.int64], memoryview]:
    """[rows + 1]: where the texts of a chunk begin and end in its bytes; and these."""
    _, ends, data = chunk.buffers()
    own = np.frombuffer(ends, np.int64, len(chunk) + 1, chunk.offset * 8)
    return own, memoryview(data if data is not None else b"")
