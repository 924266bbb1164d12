"""The images of a folder as a webdataset's tars, Parquet tables, or files of `save_to_disk`."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from impasto.member_paths import plain


def add_member(tar: tarfile.TarFile, name: str, content: bytes, **changes: object) -> None:
    """Add a file, or a member of another kind through `changes`."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(content))


def pack_tars(folder: Path, target: Path, each: int = 5, words: str = ".txt") -> Path:
    """Write tar shards of `each` samples, every image next to its caption; return the folder."""
    target.mkdir(parents=True, exist_ok=True)
    images = sorted(folder.glob("*.png"))
    for number, start in enumerate(range(0, len(images), each)):
        with tarfile.open(target / f"shard-{number:03}.tar", "w") as tar:
            for image in images[start : start + each]:
                add_member(tar, image.name, image.read_bytes())
                text = image.with_suffix(".txt").read_text("utf-8")
                content = json.dumps({"caption": text, "id": 1}) if words == ".json" else text
                add_member(tar, f"{image.stem}{words}", content.encode())
    return target


def table_of(folder: Path) -> pa.Table:
    """Return a table in Hugging Face's format: structs of bytes and path, and captions."""
    images = sorted(folder.glob("*.png"))
    return pa.table(
        {
            "image": [{"bytes": i.read_bytes(), "path": i.name} for i in images],
            "text": [i.with_suffix(".txt").read_text("utf-8") for i in images],
        }
    )


def pack_parquet(folder: Path, target: Path, each: int = 4, rows: int = 2) -> Path:
    """Write Parquet files of `each` images, in row groups of `rows`; return the folder."""
    (target / "data").mkdir(parents=True, exist_ok=True)
    table = table_of(folder)
    count = -(-len(table) // each)
    for number in range(count):
        name = f"train-{number:05}-of-{count:05}.parquet"
        part = table.slice(number * each, each)
        pq.write_table(part, target / "data" / name, row_group_size=rows)
    return target


def pack_arrow(folder: Path, target: Path, rows: int = 3) -> Path:
    """Write a folder as `datasets.save_to_disk` does, with one of its cache files beside it."""
    target.mkdir(parents=True, exist_ok=True)
    table, name = table_of(folder), "data-00000-of-00001.arrow"
    for file in (name, "cache-0123.arrow"):
        with pa.ipc.new_stream(str(target / file), table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    state = {"_data_files": [{"filename": name}], "_split": None}
    (target / "state.json").write_text(json.dumps(state), encoding="utf-8")
    (target / "dataset_info.json").write_text("{}", encoding="utf-8")
    return target


def words_of(scan):
    return sorted(record.caption_text for record in scan.records)


def png(size=(64, 48), colour=(9, 9, 9)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content, *changes in members:
            add_member(tar, name, content, **(changes[0] if changes else {}))
    return path


def reasons(scan):
    return {plain(item.path).rpartition("/")[2]: item.reason for item in scan.skipped}


PACKED = {"tars": pack_tars, "parquet": pack_parquet, "arrow": pack_arrow}
