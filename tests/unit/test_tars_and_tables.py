"""Images inside tars and tables equal those in files: hashes, keys, latents and captions."""

import contextlib
import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_images
from object_store import put_folder
from packing import PACKED, pack_arrow, pack_parquet, pack_tars, png, reasons, tar_of, words_of
from PIL import Image
from support.warm import running

from impasto import files
from impasto.config.load import build_dataset_config
from impasto.data.caching.encoding import MomentsEncoder
from impasto.data.caching.filling import cache_latents
from impasto.data.caching.latent_cache import LatentCache
from impasto.data.containers import container_listing, tar_members
from impasto.data.containers.container_listing import list_containers
from impasto.data.containers.containers import Columns, containers_below, holds_containers
from impasto.data.engines.stages import Failure, LocalExecutor, chunks
from impasto.data.folders.listing import Sidecars
from impasto.data.folders.metadata import read_metadata
from impasto.data.pixels.content_hashes import ContentHashes
from impasto.data.pixels.images import read_rgb
from impasto.data.pixels.member_files import open_member, sha256_of_member
from impasto.data.pixels.rendering import Decode
from impasto.data.planning.plan import BucketRules, plan_images
from impasto.data.records import Size
from impasto.data.scanning.scan import decode_all, scan_folder, scan_metadata
from impasto.datasets.build import scan_dataset
from impasto.errors import DatasetError
from impasto.member_paths import is_member, member_of, plain


@pytest.fixture
def folder(tmp_path):
    return draw_images(tmp_path / "pictures", 13)


@pytest.fixture(params=sorted(PACKED))
def packed(request, folder, tmp_path):
    return PACKED[request.param](folder, tmp_path / request.param)


def encoder():
    def encode(pixels):
        mean = torch.nn.functional.avg_pool2d(pixels, 8)
        mean = torch.cat([mean, mean[:, :1]], dim=1)
        return mean, torch.full_like(mean, -6.0)

    return MomentsEncoder(encode, "vae", 4)


def encoded(scan, target):
    rules = BucketRules(min_side=32, max_side=96, step=32)
    plan = plan_images(scan.records, Size(80, 80), rules=rules)
    cache = LatentCache(target)
    cached = cache_latents(plan.images, cache, encoder(), workers=0)
    keys = sorted(key.plain for key in cached.keys)
    return keys, [[part.numpy().tobytes() for part in cache.read([key])] for key in keys]


def test_keys_and_latents_are_those_of_files(folder, packed, tmp_path):
    plain_scan, inside = decode_all(scan_folder(folder)), decode_all(scan_folder(packed))
    assert len(inside.records) == 13
    assert not inside.skipped
    assert words_of(inside) == words_of(plain_scan)
    assert encoded(inside, tmp_path / "one") == encoded(plain_scan, tmp_path / "other")


def test_what_is_inside_a_store_is_what_is_on_a_disk(packed, place, tmp_path):
    put_folder(packed, place)
    here, there = scan_folder(packed), decode_all(scan_folder(place))
    assert [r.caption_text for r in there.records] == [r.caption_text for r in here.records]
    assert encoded(there, tmp_path / "there") == encoded(here, tmp_path / "here")


def test_an_empty_caption_in_a_store_is_no_words(place, tmp_path):
    (tmp_path / "in").mkdir()
    tar_of(tmp_path / "in" / "s.tar", [("a.png", png()), ("a.txt", b""), ("b.png", b"")])
    put_folder(tmp_path / "in", place)
    scan = scan_folder(place)
    assert [record.caption_text for record in scan.records] == [""]
    assert reasons(scan) == {"b.png": "the file is empty"}


def test_names_are_those_of_the_files_and_what_is_in_them(folder, tmp_path):
    def names(place):
        config = build_dataset_config({"image_dir": str(place)}, source="test")
        return [record.name for record in scan_dataset(config).records][:2]

    assert names(pack_tars(folder, tmp_path / "t")) == [
        "shard-000.tar/000.png",
        "shard-000.tar/001.png",
    ]
    tables = pack_parquet(folder, tmp_path / "p")
    first = "data/train-00000-of-00004.parquet"
    assert names(tables) == [f"{first}#0", f"{first}#1"]
    assert names(tables / first) == [f"{Path(first).name}#0", f"{Path(first).name}#1"]
    assert names(tables / "data" / "train-*3-of-*")[0] == "train-00003-of-00004.parquet#0"


def test_a_second_scan_reads_nothing_of_tars(folder, tmp_path, monkeypatch):
    place, index = pack_tars(folder, tmp_path / "tars"), tmp_path / "derived" / "scan-1.json"
    with files.dry_run():
        assert len(scan_folder(place, index=index).records) == 13
    assert not index.parent.exists()
    first = scan_folder(place, index=index)
    monkeypatch.setattr(tar_members, "index_tar", None)
    monkeypatch.setattr("impasto.data.pixels.images.read_header", None)
    again = scan_folder(place, index=index)
    assert [r.caption_text for r in again.records] == [r.caption_text for r in first.records]
    monkeypatch.undo()
    tar_of(place / "shard-000.tar", [("new.png", png())])
    assert len(scan_folder(place, index=index).records) == 13 - 5 + 1


def test_what_is_known_of_tars_is_looked_up_at_once(folder, tmp_path, monkeypatch):
    """Each lookup scans the whole column: one per tar would take quadratic time."""
    place = pack_tars(folder, tmp_path / "tars", each=2)
    index = tmp_path / "derived" / "scan-1.json"
    asked, real = [], container_listing.KeyedTable.look_up

    def look_up(self, keys):
        asked.append(len(keys))
        return real(self, keys)

    monkeypatch.setattr(container_listing.KeyedTable, "look_up", look_up)
    for _ in range(2):
        found, _ = list_containers(
            containers_below(place, recursive=True), (".txt", ""), Columns(), index
        )
        assert len(found) == 13
    assert asked == [7, 7]


def test_processes_started_afresh_read_them(folder, tmp_path):
    records = [
        record
        for kind, pack in PACKED.items()
        for record in scan_folder(pack(folder, tmp_path / kind)).records
    ]
    executor = LocalExecutor(Decode(), workers=2, processes=True)
    found = [size for batch in executor.run(chunks(records, 10)) for _, size in batch]
    assert found == [record.size for record in records]


def test_words_are_found_by_their_names(tmp_path, folder):
    json_words = pack_tars(folder, tmp_path / "json", words=".json")
    assert words_of(scan_folder(json_words)) == words_of(scan_folder(folder))
    with pytest.raises(DatasetError, match=r"has no 'prose'; it has caption, id"):
        scan_folder(json_words, columns=Columns(caption="prose"))
    other = tar_of(
        tmp_path / "o.tar",
        [("a.png", png()), ("a.txt", b"tags"), ("a.caption", b"prose"), ("a.json", b"{}")],
    )
    (record,) = scan_folder(other).records
    assert (record.caption, record.tags) == ("prose", "tags")
    (record,) = scan_folder(other, sidecars=Sidecars(".txt", "")).records
    assert (record.caption, record.tags) == ("tags", "")


@pytest.mark.parametrize("kind", ["member", "header", "boundary", "middle"])
def test_a_tar_cut_short_is_named_and_serves_what_is_whole(kind, tmp_path):
    path = tar_of(tmp_path / "s.tar", [(f"{n}.png", png((64, 8 * n + 8))) for n in range(4)])
    with tarfile.open(path) as tar:
        infos = tar.getmembers()
    content = path.read_bytes()
    end = {
        "member": infos[2].offset_data + 20,
        "header": infos[2].offset + 100,
        "boundary": infos[2].offset,
        "middle": len(content),
    }[kind]
    if kind == "middle":
        content = content[: infos[2].offset] + b"\x07" * 512 + content[infos[2].offset + 512 :]
    path.write_bytes(content[:end])
    scan = scan_folder(path)
    assert [record.path.name for record in scan.records] == ["0.png", "1.png"]
    said = " ".join([*reasons(scan).values(), *scan.describe_unused()])
    assert f"byte {end if kind != 'middle' else infos[2].offset}" in said
    assert ("2.png" if kind == "member" else "1.png") in said
    assert ("2.png" in reasons(scan)) == (kind == "member")


def test_strangers_tars_touch_nothing(tmp_path):
    names = ["../out.png", "/abs.png", "a/../../b.png", "link.png", "hard.png", "fifo.png"]
    kinds = [{}, {}, {}, {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}]
    kinds += [{"type": tarfile.LNKTYPE, "linkname": "ok.png"}, {"type": tarfile.FIFOTYPE}]
    members = [(n, b"" if kind else png(), kind) for n, kind in zip(names, kinds, strict=True)]
    members += [("ok.png", png()), ("ok.png", png()), ("x.seg.png", png()), ("y.psd", b"8BPS")]
    members += [("lone.txt", b"words"), ("._ok.png", b"x"), ("./dot.png", png())]
    (tmp_path / "in").mkdir()
    before = set(tmp_path.rglob("*"))
    path = tar_of(tmp_path / "in" / "s.tar", members)
    scan = decode_all(scan_folder(path))
    assert [record.file_name.rpartition("/")[2] for record in scan.records] == ["ok.png", "dot.png"]
    assert len(scan.skipped) == 8  # six by their names and kinds, the copy, and the PSD
    said = " ".join(item.reason for item in scan.skipped)
    assert all(w in said for w in ("leads out of the tar", "a link inside", "FIFO", "twice", "psd"))
    assert len(scan.unused) == 2
    assert set(tmp_path.rglob("*")) - before == {path}


def test_a_tar_that_lies_about_sizes_costs_no_memory(tmp_path):
    path = tar_of(tmp_path / "s.tar", [("a.png", png()), ("b.png", png())])
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        second = tar.getmembers()[1]
    for begin, kind, size in ((second.offset, b"x", 7 << 30), (second.offset, b"0", 7 << 30)):
        header = bytearray(second.tobuf())
        header[156:157] = kind
        header[124:136] = f"{size:011o}\0".encode()
        header[148:156] = b" " * 8
        header[148:156] = f"{sum(header[:512]):06o}\0 ".encode()
        content[begin : begin + 512] = header[:512]
        path.write_bytes(content)
        scan = scan_folder(path)
        assert [record.path.name for record in scan.records] == ["a.png"]
        assert scan.skipped
        tar_members.index_tar(Modest(path.read_bytes()), path.stat().st_size)


@pytest.mark.parametrize("through_pax", [False, True])
def test_a_tar_whose_sizes_lead_back_ends_there(tmp_path, through_pax):
    tar = io.BytesIO(tar_of(tmp_path / "s.tar", [("a.png", png()), ("b.png", png())]).read_bytes())
    with tarfile.open(fileobj=tar) as opened:
        second = opened.getmembers()[1]
    content = bytearray(tar.getvalue())
    if through_pax:
        second.pax_headers = {"size": "-1536"}
        header = second.tobuf(tarfile.PAX_FORMAT)
        content[second.offset :] = header + bytes(2048)
    else:
        header = bytearray(second.tobuf())
        header[124:136] = b"\xff" * 10 + (-512).to_bytes(2, "big", signed=True)
        header[148:156] = b" " * 8
        header[148:156] = f"{sum(header[:512]):06o}\0 ".encode()
        content[second.offset : second.offset + 512] = header[:512]
    (tmp_path / "s.tar").write_bytes(content)
    read = Counted(bytes(content))
    index = tar_members.index_tar(read, len(content))
    assert [entry.name for entry in index.entries] == ["a.png"]
    assert f"damaged at byte {second.offset}" in index.fault


class Counted(io.BytesIO):
    """A file that may be read a hundred times: an endless loop is an error."""

    times = 0

    def read(self, size=-1):
        self.times += 1
        assert self.times < 100
        return super().read(size)


class Modest(io.BytesIO):
    """A file that allows small reads only."""

    def read(self, size=-1):
        assert 0 <= size <= 4 << 20
        return super().read(size)


def test_large_images_are_read_in_all_their_parts(tmp_path, in_memory):
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    file = tmp_path / "noise.png"
    Image.fromarray(noise).save(file, compress_level=0)
    path = tar_of(tmp_path / "in" / "s.tar", [("a.png", png()), ("b.png", file.read_bytes())])
    put_folder(path.parent, in_memory)
    for place in (path, in_memory):
        record = decode_all(scan_folder(place)).records[1]
        assert (np.asarray(read_rgb(record.path)) == noise).all()
        member = member_of(record.path)
        assert sha256_of_member(member) == files.sha256_of(file)
        with contextlib.closing(open_member(member)) as opened:
            opened.seek(-100, io.SEEK_END)
            assert opened.read() == file.read_bytes()[-100:]
            opened.seek(150_000)
            assert opened.read(7) == file.read_bytes()[150_000:150_007]


def test_mutated_tables_and_tars_give_images_or_reasons(packed, tmp_path):
    rng = np.random.default_rng(3)
    for number in range(40):
        place = shutil.copytree(packed, tmp_path / "all" / f"mutated-{number:02}")
        for file in sorted(place.rglob("*")):
            if file.suffix in {".tar", ".parquet", ".arrow"}:
                content = bytearray(file.read_bytes())
                for at in rng.integers(0, len(content), 6):
                    content[at] = rng.integers(0, 256)
                end = rng.integers(1, len(content)) if rng.random() < 0.3 else len(content)
                file.unlink()  # overwriting a file waits for the disk
                file.write_bytes(content[:end])
    ran = running.run("-c", _SCANS, tmp_path / "all")  # a damaged file may crash its reader
    assert ran.returncode == 0, ran.stderr
    outcomes = ran.stdout.splitlines()
    assert len(outcomes) == 40
    usable = [int(images) for images, _ in map(str.split, outcomes)]
    assert sum(count > 0 for count in usable) >= 5
    assert sum(int(skipped) > 0 for _, skipped in map(str.split, outcomes)) >= 5


_SCANS = """
import sys
from pathlib import Path
from impasto.data.scanning.scan import decode_all, scan_folder
from impasto.errors import DatasetError
for place in sorted(Path(sys.argv[1]).iterdir()):
    try:
        scan = decode_all(scan_folder(place))
    except DatasetError:
        print(0, 1, flush=True)
    else:
        print(len(scan.records), len(scan.skipped), flush=True)
"""


def test_which_files_of_a_folder_are_used_is_said(folder, tmp_path):
    arrow = scan_folder(pack_arrow(folder, tmp_path / "arrow"))
    assert [item.path.name for item in arrow.unused] == ["cache-0123.arrow"]
    (tmp_path / "arrow" / "data-00000-of-00001.arrow").rename(tmp_path / "arrow" / "x.arrow")
    with pytest.raises(DatasetError, match=r"state.json names it, but it does not exist"):
        scan_folder(tmp_path / "arrow")
    tables = pack_parquet(folder, tmp_path / "p")
    shutil.copy(
        tables / "data" / "train-00000-of-00004.parquet", tables / "data" / "test-0.parquet"
    )
    tabled = scan_folder(tables)
    assert len(tabled.records) == 13
    assert "of another split" in tabled.unused[0].reason
    assert len(scan_folder(tables / "data" / "test-*").records) == 4
    tars = pack_tars(folder, tmp_path / "tars")
    shutil.copy(tables / "data" / "test-0.parquet", tars / "shard-000.parquet")
    assert len(scan_folder(tars).records) == 13
    assert "beside tar shards" in scan_folder(tars).unused[0].reason
    beside = tmp_path / "mixed"
    draw_images(beside, 2)
    shutil.copy(tars / "shard-000.tar", beside / "more.tar")
    (beside / "old.tar.gz").write_bytes(b"\x1f\x8b")
    mixed = scan_folder(beside)
    assert len(mixed.records) == 2
    assert [item.path.name for item in mixed.unused] == ["more.tar", "old.tar.gz"]


@pytest.mark.parametrize("kind", ["files", *sorted(PACKED)])
def test_derived_data_below_the_images_is_no_data_set(kind, folder, tmp_path):
    place = folder if kind == "files" else PACKED[kind](folder, tmp_path / kind)
    scans = []
    for _ in range(2):
        scans.append(scan_folder(place, index=place / "cache" / "scan-1.json"))
        record = scans[-1].records[0]
        ContentHashes.kept_in(place / "cache").of({record.path: record.stamp})
    assert list(place.rglob("seg-*.arrow"))
    assert not scans[1].skipped
    assert [len(scan.records) for scan in scans] == [13, 13]
    assert scans[1].unused == scans[0].unused


def test_where_the_images_are_is_told_as_a_scan_finds_it(folder, tmp_path):
    tars = pack_tars(folder, tmp_path / "tars")
    draw_images(tars / "masks", 1)
    assert not holds_containers(tars)
    assert holds_containers(tars, masks=tars / "masks")
    assert holds_containers(tars, recursive=False)
    (tars / "folder.png").mkdir()
    assert holds_containers(tars, recursive=False)
    draw_images(tars, 1)
    assert not holds_containers(tars, recursive=False)


def test_columns_go_with_masks_below_the_tables(folder, tmp_path):
    place = pack_parquet(folder, tmp_path / "p")
    draw_images(place / "masks", 1)
    values = {"image_dir": str(place), "mask_dir": str(place / "masks"), "image_column": "image"}
    assert len(scan_dataset(build_dataset_config(values, source="test")).records) == 13


def test_what_is_not_there_is_said(tmp_path):
    (tmp_path / "z.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    for name, said in (
        ("gone.tar", "cannot be read"),
        ("no-*.tar", "matches no file"),
        ("z.tar", "compressed"),
        ("no/x.tar", "in a folder that does not exist"),
    ):
        with pytest.raises(DatasetError, match=said):
            scan_folder(tmp_path / name)


def test_metadata_names_what_is_inside(folder, tmp_path):
    tars = pack_tars(folder, tmp_path / "tars")
    meta = tars / "meta.json"
    meta.write_text('{"shard-000.tar/000.png": {"caption": "new"}, "x.png": {}}', encoding="utf-8")
    scan = scan_metadata(read_metadata(meta), None)
    assert [(r.caption, r.tags, r.path.name) for r in scan.records] == [("new", "", "000.png")]
    assert [item.path.name for item in scan.skipped] == ["x.png"]
    tables = pack_parquet(folder, tmp_path / "p")
    key = "data/train-00000-of-00004.parquet#1"
    meta.write_text('{"' + key + '": {"tags": "new"}}', encoding="utf-8")
    (record,) = scan_metadata(read_metadata(meta), tables).records
    assert (record.tags, is_member(record.path)) == ("new", True)


def test_metadata_goes_with_a_place_that_is_spelt_otherwise(folder, tmp_path):
    pack_tars(folder, tmp_path / "tars")
    meta = tmp_path / "meta.json"
    meta.write_text('{"shard-000.tar/000.png": {"caption": "new"}}', encoding="utf-8")
    (record,) = scan_metadata(read_metadata(meta), tmp_path / "tars" / ".." / "tars").records
    assert record.caption == "new"


def test_paths_say_where_and_names_say_what():
    from impasto.member_paths import path_in_table, path_in_tar

    path = path_in_tar("a/s.tar", "b/@row+x/c#1", 512, 7, field="a+b/c")
    assert member_of(path) == tar_members_member("a/s.tar", 512, 7, "b/@row+x/c#1", "a+b/c")
    assert Path(plain(path)) == Path("a/s.tar/b/@row+x/c#1")
    cell = path_in_table("t.parquet", "a/b+c", 7)
    assert plain(cell) == "t.parquet#7"
    cells = [path_in_table("t.parquet", "a", row) for row in range(101)]
    assert sorted(cells) == cells
    assert (member_of(cell).column, member_of(cell).row) == ("a/b+c", 7)
    for name in ("a@b.png", "@1/x.png", "s.tar/cat.png", "x/@row+/y#1"):
        assert member_of(name) is None
        assert plain(name) == name


def tar_members_member(container, offset, size, name, field):
    from impasto.member_paths import TarMember

    return TarMember(Path(container), offset, size, name, field)


def test_a_failure_of_one_file_is_not_remembered(folder, tmp_path, monkeypatch):
    place, index = pack_tars(folder, tmp_path / "tars"), tmp_path / "d" / "scan-1.json"

    def refuse(self, batch):
        return [Failure("cannot be read", is_transient=True) for _ in batch]

    monkeypatch.setattr(tar_members.IndexTars, "__call__", refuse)
    with pytest.raises(DatasetError, match="cannot be read"):
        scan_folder(place, index=index)
    monkeypatch.undo()
    assert len(scan_folder(place, index=index).records) == 13
