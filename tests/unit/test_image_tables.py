"""Images in columns of Parquet and Arrow tables: the columns, and unusual rows."""

import os
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import draw_images
from packing import pack_arrow, pack_parquet, png, reasons, table_of, words_of

from impasto.config.load import build_dataset_config
from impasto.data.columns import table_rows
from impasto.data.containers.containers import Columns
from impasto.data.pixels.content_hashes import ContentHashes
from impasto.data.scanning.scan import decode_all, scan_folder
from impasto.datasets.build import scan_dataset
from impasto.errors import DatasetError
from impasto.storage import objects


@pytest.fixture
def folder(tmp_path):
    return draw_images(tmp_path / "pictures", 13)


def test_only_the_row_groups_that_are_used_are_held(folder, tmp_path, monkeypatch):
    path = tmp_path / "one.parquet"
    pq.write_table(table_of(folder), path, row_group_size=1)
    monkeypatch.setattr(table_rows, "_OF_PROCESS", {})
    monkeypatch.setattr(table_rows, "_HELD", 3000)
    decode_all(scan_folder(path))
    (tables,) = table_rows._OF_PROCESS.values()
    assert 0 < tables._held() <= 3000
    monkeypatch.setattr(table_rows, "_LARGEST", 10)
    monkeypatch.setattr(table_rows, "_OF_PROCESS", {})
    with pytest.raises(DatasetError, match=r"more than 0 MiB; write it again with row_group_size"):
        scan_folder(path)


def test_columns_are_found_by_their_names(folder, tmp_path):
    table = table_of(folder)
    path = tmp_path / "t.parquet"
    odd = pa.table(
        {
            "jpeg_data": table["image"].combine_chunks().field("bytes"),
            "label": table["text"],
            "words": [["cat", "sitting"]] * len(table),
        }
    )
    pq.write_table(odd, path)
    scan = scan_folder(path)
    assert words_of(scan) == [""] * 13
    assert "label" in scan.unused[0].reason
    assert words_of(scan_folder(path, columns=Columns(caption="label"))) == words_of(
        scan_folder(folder)
    )
    listed = scan_folder(path, columns=Columns("jpeg_data", "words"))
    assert {record.caption_text for record in listed.records} == {"cat, sitting"}
    for asked in (Columns("img"), Columns(caption="prose")):
        with pytest.raises(DatasetError, match=r"no column '(img|prose)'.*jpeg_data, label, words"):
            scan_folder(path, columns=asked)
    pq.write_table(odd.append_column("other", odd["jpeg_data"]), path)
    with pytest.raises(DatasetError, match=r"several columns hold bytes \(jpeg_data, other\)"):
        scan_folder(path)
    pq.write_table(odd.select(["label"]), path)
    with pytest.raises(DatasetError, match="name one with image_column"):
        scan_folder(path)


def test_a_table_may_name_files(folder, tmp_path):
    draw_images(tmp_path / "elsewhere", 1)
    names = ["pictures/000.png", "pictures/001.png", "pictures/000.png", None, "gone.png"]
    names += ["../" + tmp_path.name + "/elsewhere/../../secret.png", str(tmp_path / "x.png")]
    path = tmp_path / "names.parquet"
    pq.write_table(pa.table({"file_name": names, "caption": list("abcdefg")}), path)
    scan = scan_folder(path)
    assert [(r.path.name, r.caption) for r in scan.records] == [("000.png", "a"), ("001.png", "b")]
    assert [r.path.parent for r in scan.records] == [folder] * 2
    said = reasons(scan)
    assert "another row names too" in said["names.parquet#2"]
    assert said["names.parquet#3"] == "its row has no image"
    assert "leads out of" in said["names.parquet#5"]
    assert len(said) == 5
    pairs = [{"bytes": None, "path": name} for name in names[:2]]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(pairs, kind), "caption": ["a", "b"]}), path)
    assert len(scan_folder(path).records) == 2


@pytest.mark.parametrize("statistics", [True, False])
def test_whether_pairs_have_bytes_is_told_by_all_rows(folder, tmp_path, statistics):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    names = ["pictures/000.png", "pictures/001.png"]
    pairs = [{"bytes": None, "path": name} for name in names]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": pa.array(pairs, kind)}), path, write_statistics=statistics)
    assert [record.path.name for record in scan_folder(path).records] == ["000.png", "001.png"]
    pairs[1]["bytes"] = png()
    pq.write_table(
        pa.table({"image": pa.array(pairs, kind)}),
        path,
        row_group_size=1,
        write_statistics=statistics,
    )
    scan = scan_folder(path)
    assert len(scan.records) == 1
    assert "a path and no bytes" in reasons(scan)["t.parquet#0"]


def test_rows_without_an_image_are_skipped(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [png(), None, b"", b"no image"]}), path)
    scan = scan_folder(path)
    assert len(scan.records) == 1
    assert reasons(scan) == {
        "t.parquet#1": "its row has no image",
        "t.parquet#2": "the file is empty",
        "t.parquet#3": "not an image in a known format, or damaged",
    }


def test_damaged_tables_are_named(folder, tmp_path):
    place = pack_parquet(folder, tmp_path / "p")
    cut = place / "data" / "train-00001-of-00004.parquet"
    cut.write_bytes(cut.read_bytes()[:-50])
    scan = scan_folder(place)
    assert len(scan.records) == 13 - 4
    assert list(reasons(scan)) == [cut.name]
    arrow = pack_arrow(folder, tmp_path / "a")
    file = arrow / "data-00000-of-00001.arrow"
    whole = file.read_bytes()
    for content in (whole[:-300], whole[:-8], whole[:3], b"", b"\xff" * 64):
        file.write_bytes(content)
        with pytest.raises(DatasetError, match=r"data-00000-of-00001\.arrow"):
            scan_folder(arrow)


def test_a_batch_has_no_more_rows_than_its_bytes_can_hold(tmp_path):
    path = tmp_path / "t.arrow"
    table = pa.table({"image": [png()] * 3, "text": ["words"] * 3})
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    whole = path.read_bytes()
    at = whole.rindex(struct.pack("<q", 3), 0, whole.index(png()))
    places = [n for n in range(at + 1) if whole[n : n + 8] == struct.pack("<q", 3)]
    places = places[-3:]  # for the batch and its two columns
    assert places[2] - places[1] == 16
    for rows in (4, 1 << 40):
        for changed in (places[:1], places):
            content = bytearray(whole)
            for place in changed:
                content[place : place + 8] = struct.pack("<q", rows)
            path.write_bytes(content)
            with pytest.raises(DatasetError, match=r"t\.arrow"):
                scan_folder(path)


def test_compressed_batches_are_read(folder, tmp_path):
    path = tmp_path / "t.arrow"
    table = table_of(folder)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(str(path), table.schema, options=options) as writer:
        writer.write_table(table)
    assert words_of(scan_folder(path)) == words_of(scan_folder(folder))


def test_words_may_be_categories(tmp_path):
    words = pa.array(["one", "two", "one"]).dictionary_encode()
    path = with_images(tmp_path / "t.parquet", {"image": [png()] * 3, "text": words})
    assert words_of(scan_folder(path)) == ["one", "one", "two"]


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "t.parquet"
    columns = [pa.array([png()]), pa.array(["one"]), pa.array(["two"])]
    pq.write_table(pa.table(columns, names=["image", "text", "text"]), path)
    with pytest.raises(DatasetError, match="several columns named 'text'"):
        scan_folder(path)


def test_a_file_with_the_name_of_a_pattern_is_that_file(tmp_path):
    path = with_images(tmp_path / "cats[1].parquet", {"image": [png()], "text": ["one"]})
    assert words_of(scan_folder(path)) == ["one"]


def with_images(path, table):
    pq.write_table(pa.table(table), path)
    return path


def scanned(place, derived):
    """Return captions, sizes and hashes of the images in a place."""
    records = list(scan_folder(place, index=derived / "scan-1.json").records)
    stamps = {record.path: record.stamp for record in records}
    hashes = ContentHashes(derived / "hashes.json").of(stamps)
    return [(r.caption_text, r.size, hashes[r.path]) for r in records]


def test_a_table_that_replaces_one_in_a_store_is_read_anew(in_memory, tmp_path):
    place = in_memory / "t.parquet"
    first = {"image": [png()], "text": ["one"]}
    other = {"image": [png((32, 40), (7, 7, 7))], "text": ["two"]}
    found = []
    for table in (first, other):
        objects.upload(with_images(tmp_path / "t.parquet", table), place)
        found.append(scanned(place, tmp_path / "derived"))
    assert found[1] == scanned(place, tmp_path / "fresh")
    assert found[1] != found[0]


def test_a_table_of_the_same_time_and_another_size_is_read_anew(tmp_path):
    path = with_images(tmp_path / "t.parquet", {"image": [png()], "text": ["one"]})
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    found = [scanned(path, tmp_path / "derived")]
    with_images(path, {"image": [png(colour=(1, 2, 3))], "text": ["two, and more"]})
    os.utime(path, ns=times)
    found.append(scanned(path, tmp_path / "derived"))
    assert found[1] == scanned(path, tmp_path / "fresh")
    assert found[1] != found[0]


def test_columns_without_a_table_are_refused(folder):
    values = {"image_dir": str(folder), "image_column": "image"}
    with pytest.raises(DatasetError, match="image_column and caption_column name columns"):
        scan_dataset(build_dataset_config(values, source="test"))
