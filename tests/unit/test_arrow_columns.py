"""Arrow columns equal those that `pyarrow` makes of the same values, and are read alike."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.warm import running

from impasto.data import record_table
from impasto.data.columns import arrow_columns, keyed, tables
from impasto.data.columns.arrow_columns import (
    column_of,
    empty_table,
    fitted,
    is_filled,
    list_of,
    number_column,
    text_column,
    texts_at,
    texts_of,
    values_of,
)
from impasto.data.columns.keyed import KeyedTable
from impasto.data.columns.tables import newest_rows, rows_of, take_rows
from impasto.data.folders import found
from impasto.data.folders.found import found_of
from impasto.data.folders.found_image import FoundImage
from impasto.data.record_table import RecordTable
from impasto.data.scanning.scan import scan_folder

TEXT = pa.large_string()
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=8)


@settings(deadline=None)  # pyarrow imports pandas at its first array
@given(TEXTS, TEXTS)
def test_texts_are_those_that_pyarrow_makes_and_reads(first, second):
    assert text_column(first).equals(pa.array(first, TEXT))
    column = pa.chunked_array([text_column(first), pa.array(second, TEXT)])
    column.validate(full=True)
    assert texts_of(column) == first + second
    assert is_filled(column).tolist() == [text != "" for text in first + second]
    for start in range(len(column)):
        assert texts_of(column.slice(start, 3)) == (first + second)[start : start + 3]
        assert is_filled(column.slice(start)).tolist() == [
            t != "" for t in (first + second)[start:]
        ]


@settings(deadline=None)
@given(TEXTS, TEXTS, st.data())
def test_texts_of_some_rows_come_in_their_order(first, second, data):
    texts = first + second
    column = pa.chunked_array([text_column(first), text_column(second)], TEXT)
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=9) if texts else st.just([]))
    assert texts_at(column, np.array(rows, dtype=np.int64)) == [texts[row] for row in rows]
    some = column.slice(len(texts) // 2)
    rows = [row for row in rows if row < len(some)]
    assert texts_at(some, np.array(rows, dtype=np.int32)) == [some[row].as_py() for row in rows]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.int64(), [-(2**63), 0, 2**63 - 1]),
        (pa.int32(), [-(2**31), 2**31 - 1]),
        (pa.uint64(), [0, 2**64 - 1]),
        (pa.uint8(), [0, 255]),
        (pa.large_string(), ["", "a", "蝶\u2028"]),
        (pa.large_binary(), [b"", b"\x00\xff", b"abc"]),
        (pa.binary(2), [b"ab", b"\x00\xff"]),
    ],
)
def test_columns_are_those_that_pyarrow_makes_and_reads(kind, values):
    for some in (values, values[::-1], []):
        column = column_of(some, kind)
        column.validate(full=True)
        assert column.equals(pa.array(some, kind))
        assert list_of(pa.chunked_array([column, column.slice(1)])) == [*some, *some[1:]]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.int32(), [2**31]),
        (pa.uint8(), [-1]),
        (pa.int64(), [1.5]),
        (pa.int64(), ["1"]),
        (pa.int64(), [None]),
        (pa.large_string(), [b"bytes"]),
        (pa.large_string(), [None]),
        (pa.large_string(), ["\udcff"]),
        (pa.binary(2), [b"abc"]),
        (pa.binary(2), ["ab"]),
    ],
)
def test_what_does_not_fit_a_column_is_refused(kind, values):
    with pytest.raises((ValueError, TypeError, OverflowError)):
        column_of(values, kind)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint64])
def test_numbers_keep_their_memory(kind):
    values = np.arange(7, dtype=kind)
    column = number_column(values)
    assert column.equals(pa.array(values))
    assert np.shares_memory(values_of(column), values)
    assert values_of(column.slice(3)).tolist() == [3, 4, 5, 6]
    assert number_column(values[::2]).to_pylist() == [0, 2, 4, 6]
    pieces = pa.chunked_array([column, column.slice(5)])
    assert values_of(pieces).dtype == kind
    assert values_of(pieces).tolist() == [*range(7), 5, 6]
    assert values_of(pieces.slice(0, 0)).dtype == kind


def test_a_table_fits_a_schema_or_is_refused():
    schema = pa.schema([("a", pa.int64())]).with_metadata({b"about": b"it"})
    assert empty_table(schema).equals(schema.empty_table(), check_metadata=True)
    narrow = pa.table({"a": pa.array([1], pa.int32())})
    assert fitted(narrow, schema).schema.equals(schema, check_metadata=True)
    with pytest.raises(ValueError, match="field names"):
        fitted(pa.table({"b": [1]}), schema)


@pytest.fixture(params=["few rows", "many rows"])
def either_way(request, monkeypatch):
    """Both lookups: Python's own for a few rows, and Arrow's."""
    if request.param == "many rows":
        for module in (tables, keyed, found, record_table):
            monkeypatch.setattr(module, "FEW", 0)


@pytest.mark.usefixtures("either_way")
def test_both_ways_find_the_newest_rows():
    column = pa.chunked_array([["b", "a"], ["a", "c"]], TEXT)
    keys = text_column(["a", "d", "c", "b"])
    assert newest_rows(keys, column).tolist() == [1, -1, 3, 0]
    assert newest_rows(keys, pa.chunked_array([], TEXT)).tolist() == [-1] * 4


@pytest.mark.usefixtures("either_way")
def test_both_ways_take_rows_in_their_order():
    schema = pa.schema([("a", TEXT), ("b", pa.uint8()), ("c", pa.binary(2))])
    table = rows_of(schema, [("x", 1, b"1x"), ("", 2, b"2x"), ("蝶", 3, b"3x")])
    twice = pa.concat_tables([table, table])
    for rows in ([5, 0, 2, 0], [1, 2], [0], []):
        found = take_rows(twice, np.array(rows, dtype=np.int64))
        assert found.to_pylist() == [twice.to_pylist()[row] for row in rows]
        assert found.schema.equals(schema)


@pytest.mark.usefixtures("either_way")
def test_both_ways_keep_the_newest_value_of_a_key(tmp_path):
    schema = pa.schema([("key", TEXT), ("value", pa.int64())])
    for value in range(12):  # enough segments that they are merged
        table = KeyedTable(tmp_path / "x.json", schema, [1], None)
        table.add("a", value)
        table.add("b", -value)
        table.finish()
    known = KeyedTable(tmp_path / "x.json", schema, [1], None)
    assert known.look_up(["b", "c", "a"]) == {"a": (11,), "b": (-11,)}
    assert known.look_up(["c"]) == {}


def test_of_rows_that_nobody_asked_for_only_the_key_is_read(tmp_path, monkeypatch):
    schema = pa.schema([("key", TEXT), ("value", pa.large_binary())])
    table = KeyedTable(tmp_path / "x.json", schema, [1], None)
    for name in "abcdefgh":
        table.add(name, b"long")
    table.finish()
    read = []

    def counted(column):
        read.append(len(column))
        return list_of(column)

    monkeypatch.setattr(keyed, "list_of", counted)
    assert table.look_up(["c", "e"]) == {"c": (b"long",), "e": (b"long",)}
    assert read == [2, 2]


@pytest.mark.usefixtures("either_way")
def test_both_ways_sort_files_by_their_paths():
    names = ["b\\a", "b", "a蝶", "a", "b-", "c"]
    files = [FoundImage(name, [n] * 6, (f"{name}.caption", "")) for n, name in enumerate(names)]
    ordered = list(found_of(files).sorted_by_path("\\").items())
    assert ordered == sorted(files, key=lambda file: file.path.replace("\\", "/"))


@pytest.mark.usefixtures("either_way")
def test_both_ways_find_the_first_image_of_a_path(tmp_path):
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    once = scan_folder(tmp_path).records
    twice = record_table.join_records([once, once])
    assert twice.path_firsts().tolist() == [0, 1, 0, 1]
    assert RecordTable.of(()).path_firsts().tolist() == []


def test_rows_are_as_pyarrow_would_make_them():
    schema = pa.schema([("key", TEXT), ("value", pa.uint8())])
    assert rows_of(schema, [("蝶", 1), ("", 2)]).to_pylist() == [
        {"key": "蝶", "value": 1},
        {"key": "", "value": 2},
    ]
    assert rows_of(schema, []).equals(schema.empty_table())


PROGRAM = """
import sys
from pathlib import Path
from impasto.cli.main import main
dear = ("pandas", "pyarrow.compute", "pyarrow.parquet", "pyarrow.dataset", "torch", "ray")
for verb in ("scan", "plan", "plan --headers-only", "list"):
    folder = Path(sys.argv[1], verb)
    for changed in range(3):  # the first scan, the second, and one of a folder that has changed
        try:
            main(["dataset", *verb.split(), str(folder)])
        except SystemExit as end:
            assert not end.code, end.code
        assert not [name for name in dear if name in sys.modules], (verb, changed)
        if changed:
            (folder / "0.txt").write_text("other words", encoding="utf-8")
"""


def test_looking_at_a_small_folder_imports_nothing_dear(tmp_path):
    """Importing `pyarrow` takes 0.03 s; what a wrong call imports takes 0.3 s more."""
    for verb in ("scan", "plan", "plan --headers-only", "list"):
        (tmp_path / verb).mkdir()
        for number in range(3):
            file = tmp_path / verb / f"{number}.png"
            Image.new("RGB", (64, 64), (number, 0, 0)).save(file)
            file.with_suffix(".txt").write_text(f"蝶, {number}", encoding="utf-8")
    done = running.run("-c", PROGRAM, tmp_path, fresh=True)
    assert done.returncode == 0, done.stderr


def test_the_modules_that_know_few_rows_agree():
    assert {module.FEW for module in (tables, keyed, found, record_table)} == {arrow_columns.FEW}
