"""Converts Python and NumPy values to Arrow columns and back.

`pyarrow.array` and `to_pylist` could do this. But the first imports pandas wherever it is
installed, to see whether its input is from pandas, and many methods of a column import
`pyarrow.compute`: 0.3 s, more than the scan of a small folder takes. The functions here build and
read the buffers themselves, and import neither.

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
"""Number of rows below which Python is faster than importing `pyarrow.compute`."""
_CODES = {"int64": "q", "int32": "i", "uint64": "Q", "uint8": "B"}


def column_of(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return a column of Python values: integers, texts (`large_string`) or bytes.

    Raises:
        TypeError: A value is of another type.
        KeyError: The type of the column is none of these.
        OverflowError: A number does not fit.
        ValueError: A value has another length than a fixed-size type requires.
    """
    if kind == pa.large_string():
        return text_column(values)
    if kind == pa.large_binary() or pa.types.is_fixed_size_binary(kind):
        return _bytes_column([bytes(memoryview(value)) for value in values], kind)
    numbers = pa.py_buffer(array(_CODES[str(kind)], values))
    return pa.Array.from_buffers(kind, len(values), [None, numbers])


def text_column(values: Sequence[str]) -> pa.Array:
    """Return a column of texts, of the type `large_string`.

    Raises:
        UnicodeEncodeError: A text has half a surrogate pair.
        TypeError: A value is not a text.
    """
    joined = "".join(values)
    if joined.isascii():
        return _joined(joined.encode("ascii"), map(len, values), len(values), pa.large_string())
    return _bytes_column([value.encode("utf-8") for value in values], pa.large_string())


def number_column(values: np.ndarray) -> pa.Array:
    """Return an array as a column of numbers, over the same memory if the array is contiguous."""
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, buffer])


def empty_table(schema: pa.Schema) -> pa.Table:
    """Return a table without rows."""
    arrays = [column_of([], field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def texts_of(column: pa.ChunkedArray | pa.Array) -> list[str]:
    """Return all texts of a column of the type `large_string`."""
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
    """Return all values of a column as Python values: texts, numbers or bytes."""
    if column.type == pa.large_string():
        return texts_of(column)
    if pa.types.is_integer(column.type):
        found: list[Any] = values_of(column).tolist()
        return found
    return list(column.to_pylist())


def texts_at(column: pa.ChunkedArray | pa.Array, rows: np.ndarray) -> list[str]:
    """Return the texts in some rows of a `large_string` column, in the order of `rows`."""
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
    """Return a few rows of a table, in the order of `rows`; for many, `take` is faster."""
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
    """Return [rows]: whether each text of a `large_string` column is non-empty."""
    parts = [np.diff(_parts(chunk)[0]) > 0 for chunk in _chunks(column)]
    return np.concatenate([np.empty(0, np.bool_), *parts])


def values_of(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return [rows]: the numbers of a column, over its own memory if it has a single chunk."""
    kind = column.type.to_pandas_dtype()
    parts = [
        np.frombuffer(chunk.buffers()[1], kind, len(chunk), chunk.offset * np.dtype(kind).itemsize)
        for chunk in _chunks(column)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, kind), *parts])


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table cast to the types of a schema, with its metadata.

    Raises:
        ValueError: The columns have other names, or values that do not fit.
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
    """Return a column of values of different lengths from their concatenated bytes."""
    ends = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.fromiter(lengths, np.int64, count), out=ends[1:])
    return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(ends), pa.py_buffer(data)])


def _chunks(column: pa.ChunkedArray | pa.Array) -> list[pa.Array]:
    """Return the non-empty chunks of a column."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return [chunk for chunk in chunks if len(chunk)]


def _parts(chunk: pa.Array) -> tuple[npt.NDArray[np.int64], memoryview]:
    """Return the offsets [rows + 1] of a chunk's texts in its bytes, and these bytes."""
    _, ends, data = chunk.buffers()
    own = np.frombuffer(ends, np.int64, len(chunk) + 1, chunk.offset * 8)
    return own, memoryview(data if data is not None else b"")
