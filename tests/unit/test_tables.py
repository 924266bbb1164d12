"""Growing tables: appended rows survive a kill, and damaged parts are ignored."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from impasto import files
from impasto.data.columns import tables
from impasto.data.columns.appender import Appender
from impasto.data.columns.keyed import KeyedTable
from impasto.data.columns.remembered import write_cached
from impasto.data.columns.tables import FormerFile, TableFolder, rows_of
from impasto.data.inspecting.likeness import PerceptualHashes
from impasto.data.pixels.content_hashes import ContentHashes
from impasto.data.pixels.decoded import DecodeCache
from impasto.data.scanning.scan import scan_folder
from impasto.errors import StorageError
from impasto.progress import SilentProgress

SCHEMA = pa.schema([("key", pa.large_string()), ("value", pa.int64())])


def table_in(folder, version=(1, "x")):
    return TableFolder(folder, SCHEMA, version)


def rows(*pairs):
    return rows_of(SCHEMA, pairs)


def content(table):
    return [tuple(row.values()) for row in table.read().to_pylist()]


def test_the_newest_rows_come_first_and_other_versions_are_none(tmp_path):
    table = table_in(tmp_path / "t")
    assert content(table) == []
    table.append(rows(("a", 1), ("蝶\u2028", 2)))
    table.append(rows(("a", 3)))
    assert content(table_in(tmp_path / "t")) == [("a", 3), ("a", 1), ("蝶\u2028", 2)]
    assert content(table_in(tmp_path / "t", (2, "x"))) == []
    assert content(TableFolder(None, SCHEMA, [1])) == []


def test_what_a_stranger_has_put_in_place_of_tables_is_not_followed(tmp_path):
    """No rows of another dataset's table are shown, and its rows are not replaced."""
    theirs = table_in(tmp_path / "theirs")
    theirs.append(rows(("a", 1)))
    (tmp_path / "link.table").symlink_to(tmp_path / "theirs", target_is_directory=True)
    with pytest.raises(StorageError, match=r"link\.table is a link"):
        table_in(tmp_path / "link.table")
    (segment,) = (tmp_path / "theirs").iterdir()
    own = tmp_path / "own.table"
    own.mkdir()
    (own / segment.name).symlink_to(segment)
    if hasattr(os, "mkfifo"):
        os.mkfifo(own / segment.name.replace("seg-0", "seg-1"))
    assert content(table_in(own)) == []


@pytest.fixture
def later(monkeypatch):
    """Return a function after which replaced files are old enough to be removed."""
    return lambda: monkeypatch.setattr(tables, "REMOVED_AFTER_NS", -1)


def test_a_rewrite_keeps_what_another_has_appended_meanwhile(tmp_path, later):
    one, other = table_in(tmp_path), table_in(tmp_path)
    one.append(rows(("a", 1)))
    known = one.read()
    other.append(rows(("b", 2)))
    one.rewrite(known)
    assert sorted(content(table_in(tmp_path))) == [("a", 1), ("b", 2)]
    later()
    assert sorted(content(table_in(tmp_path))) == [("a", 1), ("b", 2)]
    assert len(list(tmp_path.iterdir())) == 2


def test_what_was_replaced_counts_for_nothing_and_is_removed_later(tmp_path, later):
    """Another machine may have it mapped, and on Windows another process of this one."""
    table = table_in(tmp_path)
    table.append(rows(("a", 1), ("gone", 1)))
    table.read()
    table.rewrite(rows(("a", 1)))
    table.rewrite(rows(("a", 2)))
    assert len(list(tmp_path.iterdir())) == 3
    assert content(table_in(tmp_path)) == [("a", 2)]
    later()
    with files.dry_run():
        assert content(table_in(tmp_path)) == [("a", 2)]
    assert len(list(tmp_path.iterdir())) == 3
    assert content(table_in(tmp_path)) == [("a", 2)]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_reader_finds_what_is_rewritten_while_it_looks(tmp_path, later, monkeypatch):
    writer = table_in(tmp_path)
    for number in range(3):
        writer.append(rows((str(number), number)))
    known, really = writer.read(), tables.open_segment
    later()

    def open_late(file):
        monkeypatch.setattr(tables, "open_segment", really)
        writer.rewrite(known)
        return really(file)

    monkeypatch.setattr(tables, "open_segment", open_late)
    assert sorted(content(table_in(tmp_path))) == [("0", 0), ("1", 1), ("2", 2)]


def test_a_segment_that_cannot_be_read_just_now_stays(tmp_path, later, monkeypatch):
    writer = table_in(tmp_path)
    writer.append(rows(("a", 1)))
    writer.append(rows(("b", 2)))
    first, really = min(tmp_path.iterdir()), tables.open_segment

    def fail(file):
        if file == first:
            raise OSError(5, "Input/output error")
        return really(file)

    later()
    with monkeypatch.context() as patch:
        patch.setattr(tables, "open_segment", fail)
        table = table_in(tmp_path)
        table.rewrite(table.read())
    assert content(table_in(tmp_path)) == [("b", 2), ("a", 1)]


def test_a_clock_that_is_behind_writes_the_newest_row_all_the_same(tmp_path, monkeypatch):
    table_in(tmp_path).append(rows(("a", 1)))
    monkeypatch.setattr("impasto.data.columns.segments.time.time_ns", lambda: 10**18)
    late = table_in(tmp_path)
    late.append(rows(("a", 2)))
    assert content(late) == [("a", 2), ("a", 1)]
    late.rewrite(rows(("a", 2)))
    assert content(table_in(tmp_path)) == [("a", 2)]


def test_a_rewrite_that_fails_can_be_done_again(tmp_path, monkeypatch):
    table = table_in(tmp_path)
    table.append(rows(("a", 1)))
    known = table.read()

    def refuse(*_):
        raise StorageError("full")

    with monkeypatch.context() as patch:
        patch.setattr(tables, "write_segment", refuse)
        with pytest.raises(StorageError):
            table.rewrite(known)
    table.rewrite(known)
    assert content(table_in(tmp_path)) == [("a", 1)]


def test_half_written_files_leave_and_full_copies_do_not_gather(tmp_path, later):
    left = tmp_path / f".new.{'0-0-000000'}.00000000.partial"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    later()
    for number in range(4):
        table_in(tmp_path).replace_all(rows(("a", number)), {b"told": b"x"})
    assert not left.exists()
    assert len(list(tmp_path.iterdir())) == 1
    assert table_in(tmp_path).newest().schema.metadata[b"told"] == b"x"


def test_many_small_segments_are_folded_as_they_come(tmp_path, later, monkeypatch):
    later()
    monkeypatch.setattr("impasto.data.columns.appender.FOLDED", 4)
    appender = Appender(table_in(tmp_path), rows=1)
    for number in range(18):
        appender.add(str(number), number)
    assert len(list(tmp_path.iterdir())) == 6
    assert content(table_in(tmp_path)) == [(str(n), n) for n in range(17, -1, -1)]


@pytest.mark.parametrize("damage", ["version", "content"])
def test_a_file_of_an_earlier_version_stays_where_it_cannot_be_read(tmp_path, damage):
    file = tmp_path / "x.json"
    write_cached(file, [1], {"a": 1})
    if damage == "content":
        file.write_bytes(file.read_bytes()[:-3])
    former = FormerFile(file, [2 if damage == "version" else 1], lambda kept: rows(*kept.items()))
    assert content(TableFolder(tmp_path / "x.table", SCHEMA, [1], former)) == []
    assert file.exists()


def test_no_changed_bit_is_believed(tmp_path):
    table = table_in(tmp_path)
    table.append(rows(*((f"key {n}", n) for n in range(50))))
    (segment,) = tmp_path.iterdir()
    whole, rng = segment.read_bytes(), random.Random(5)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        segment.write_bytes(damaged)
        assert content(table_in(tmp_path)) == []
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        segment.write_bytes(whole[:length])
        assert content(table_in(tmp_path)) == []
    segment.write_bytes(whole)
    assert len(content(table_in(tmp_path))) == 50


def test_a_killed_process_loses_what_was_gathered_last(tmp_path):
    program = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_tables import *
appender = Appender(table_in(Path({str(tmp_path / "t")!r})), rows=10)
for number in range(25):
    appender.add(str(number), number)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr
    assert sorted(value for _, value in content(table_in(tmp_path / "t"))) == list(range(20))


def test_nothing_is_written_in_a_dry_run(tmp_path):
    with files.dry_run():
        table_in(tmp_path / "t").append(rows(("a", 1)))
    assert not (tmp_path / "t").exists()


def test_keys_have_their_newest_values_and_stale_rows_leave(tmp_path):
    known = KeyedTable(tmp_path / "x.json", SCHEMA, [1], None)
    for number in range(40):
        known.add("a" if number % 2 else "b", number)
        assert known.look_up(["a", "b", "c"])["a" if number % 2 else "b"] == (number,)
    known.finish()
    fresh = KeyedTable(tmp_path / "x.json", SCHEMA, [1], None)
    assert fresh.look_up(["a", "c"]) == {"a": (39,)}
    segment = max((tmp_path / "x.table").iterdir())
    assert pa.ipc.open_file(segment).read_all().num_rows == 2


@pytest.fixture
def folder(tmp_path):
    from PIL import Image

    (tmp_path / "set").mkdir()
    for number in range(3):
        Image.new("RGB", (64, 48), (number, 0, 0)).save(tmp_path / "set" / f"{number}.png")
    (tmp_path / "set" / "broken.png").write_bytes(b"no image")
    (tmp_path / "set" / "1.txt").write_text("a cat", encoding="utf-8")
    return tmp_path / "set"


def test_files_of_earlier_versions_are_moved_over_once(folder, tmp_path, monkeypatch):
    """Facts in earlier versions' files are accepted: nothing is opened, read or decoded again."""
    scan = scan_folder(folder)
    found = {}
    for record in scan.records:
        stamp = [record.stamp.size_bytes, record.stamp.mtime_ns]
        words = (folder / f"{record.path.stem}.txt").stat() if record.tags else None
        stamps = [*stamp, 0, 0, *((words.st_size, words.st_mtime_ns) if words else (0, 0))]
        found[str(record.path)] = [stamps, [64, 48, 0, "", record.tags]]
    broken = (folder / "broken.png").stat()
    stamps = [broken.st_size, broken.st_mtime_ns, 0, 0, 0, 0]
    found[str(folder / "broken.png")] = [stamps, ["as it was told"]]
    index = tmp_path / "scan.json"
    write_cached(index, [5, f"{folder.absolute()} .caption .txt"], found)
    own = {r.path: r.stamp for r in scan.records}
    digests = {p: f"{n:064x}" for n, p in enumerate(own)}
    rows_of_hashes = {str(p): [s.size_bytes, s.mtime_ns, digests[p]] for p, s in own.items()}
    write_cached(tmp_path / "hashes.json", [2], rows_of_hashes)
    write_cached(
        tmp_path / "looks.json", [3, 3], {d: 2**63 + n for n, d in enumerate(digests.values())}
    )
    decoded = {str(p): [s.size_bytes, s.mtime_ns, ""] for p, s in own.items()}
    write_cached(tmp_path / "decoded.json", [3, 3], decoded)

    def refuse(*_):
        raise AssertionError("a file was opened")

    monkeypatch.setattr("impasto.data.pixels.images.read_header", refuse)
    monkeypatch.setattr("impasto.data.pixels.content_hashes.files.sha256_of", refuse)
    monkeypatch.setattr("impasto.data.pixels.images.read_rgb", refuse)
    for _ in range(2):
        again = scan_folder(folder, index=index)
        assert again.records == scan.records
        assert [item.reason for item in again.skipped] == ["as it was told"]
        assert ContentHashes(tmp_path / "hashes.json").of(own) == digests
        looks, _ = PerceptualHashes(tmp_path / "looks.json").of(
            again.records, digests, SilentProgress()
        )
        assert list(looks.values()) == [2**63, 2**63 + 1, 2**63 + 2]
        assert DecodeCache(tmp_path / "decoded.json").outcomes(again.records) == ["", "", ""]
        assert not list(tmp_path.glob("*.json"))


def test_two_scans_at_once_write_one_index_between_them(folder, tmp_path):
    program = f"""
from pathlib import Path
from impasto.data.scanning.scan import scan_folder
index = Path({str(tmp_path / "scan.json")!r})
assert len(scan_folder(Path({str(folder)!r}), index=index).records) == 3
"""
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    index = tmp_path / "scan.json"
    assert len(scan_folder(folder, index=index).records) == 3
    assert len(scan_folder(folder, index=index).records) == 3
