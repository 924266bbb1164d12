"""Images, captions and metadata in an object store: as on a disk, with clear errors."""

import io
import json
import os
import shutil
from pathlib import Path

import pytest
from object_store import cutting, put_folder, refusing
from PIL import Image

from impasto import files, remote_paths
from impasto.config.load import build_dataset_config, load_dataset_config
from impasto.data.engines.ray_cluster import shared_ground
from impasto.data.engines.ray_work import Ground
from impasto.data.engines.stages import Failure
from impasto.data.folders.found_image import FoundImage
from impasto.data.folders.metadata import read_metadata
from impasto.data.pixels.content_hashes import ContentHashes
from impasto.data.pixels.rendering import Decode
from impasto.data.scanning import probe_stage
from impasto.data.scanning.scan import decode_all, scan_folder, scan_metadata
from impasto.datasets.build import scan_dataset
from impasto.demo.recipe import PICTURES
from impasto.errors import ConfigError, DatasetError, MissingDependencyError, StorageError
from impasto.storage import claims, objects
from impasto.storage.object_file import open_object


def picture(path, size=(8, 8), colour=(10, 20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Images with captions in sub-folders, with many files to report or skip."""
    top = tmp_path / "pictures"
    for number, name in enumerate(("a.png", "B.JPG", "sub/c.webp", "sub/deep/d.tiff", "e.png")):
        picture(top / name, (8 + number, 9))
    (top / "a.caption").write_text("a cat\n", encoding="utf-8")
    (top / "a.txt").write_text("cat, sitting", encoding="utf-8")
    (top / "b.txt").write_text("a dog", encoding="utf-8")
    (top / "sub" / "c.TXT").write_text("\ufeffa cow", encoding="utf-8")
    (top / "e.txt").write_text("\n", encoding="utf-8")
    (top / "lone.txt").write_text("nobody", encoding="utf-8")
    (top / "empty.png").write_bytes(b"")
    (top / "page.png").write_bytes(b"<html>not here</html>")
    picture(top / ".hidden.png")
    picture(top / "latin.png")
    (top / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    picture(top / "cut.png", (40, 20))
    crop = {"image_width": 40, "image_height": 20, "x": 0, "y": 0, "width": 16, "height": 16}
    (top / "cut.png.crop.json").write_text(json.dumps(crop), encoding="utf-8")
    return top


def told(scan, top):
    """Return the messages of a scan, with names relative to its folder."""
    return (
        [
            (
                r.path.relative_to(top).as_posix(),
                r.size,
                r.caption,
                r.tags,
                r.cut,
                r.stamp.size_bytes,
            )
            for r in scan.records
        ],
        [(item.path.name, item.reason) for item in scan.skipped],
        [(item.path.name, item.reason) for item in scan.unused],
    )


def test_a_scan_finds_what_it_finds_on_a_disk(folder, place):
    put_folder(folder, place)
    for recursive in (True, False):
        here, there = (scan_folder(top, recursive=recursive) for top in (folder, place))
        assert told(there, place) == told(here, folder)
    assert there.source == remote_paths.shown(place)


def test_decoding_and_hashing_are_as_on_a_disk(folder, place, tmp_path):
    put_folder(folder, place)
    here, there = (scan_folder(top) for top in (folder, place))
    assert told(decode_all(there), place) == told(decode_all(here), folder)
    digests = [
        ContentHashes(tmp_path / "hashes.json")
        .of({record.path: record.stamp for record in scan.records})
        .values()
        for scan in (here, there)
    ]
    assert list(digests[0]) == list(digests[1])


def test_a_second_scan_opens_only_what_has_changed(folder, bucket, s3, tmp_path):
    place = bucket / "data"
    put_folder(folder, place)
    scan_folder(place, index=tmp_path / "scan.json")
    s3.requests.clear()
    scan_folder(place, index=tmp_path / "scan.json")
    assert [r for r in s3.requests if "/data/" in r and "crop.json" not in r] == []

    picture(folder / "a.png", (8, 9), (99, 0, 0))  # the same pixels, other bytes
    objects.upload(folder / "a.png", place / "a.png")
    s3.requests.clear()
    scan_folder(place, index=tmp_path / "scan.json")
    read = {request.split()[1].rpartition("/")[2] for request in s3.requests}
    assert "a.png" in read
    assert "e.png" not in read


def test_headers_are_read_and_not_whole_images(bucket, s3, tmp_path):
    noise = Image.effect_noise((600, 600), 90)
    noise.save(tmp_path / "large.png")
    objects.upload(tmp_path / "large.png", bucket / "large.png")
    s3.requests.clear()
    scan_folder(bucket)
    reads = [request for request in s3.requests if "large.png" in request]
    assert reads == [f"GET /{bucket.name}/large.png bytes=0-{objects.HEADER_BYTES - 1}"]


def test_a_header_behind_the_beginning_is_found(place, tmp_path):
    Image.effect_noise((600, 600), 90).save(tmp_path / "large.tiff")  # the header is at the end
    content = (tmp_path / "large.tiff").read_bytes()
    objects.upload(tmp_path / "large.tiff", place / "large.tiff")
    assert [r.size.wh for r in scan_folder(place).records] == [(600, 600)]
    file = open_object(place / "large.tiff")
    assert file.seek(-5, io.SEEK_END) == len(content) - 5
    assert file.read() == content[-5:]
    file.seek(70_000)
    file.seek(3, io.SEEK_CUR)
    assert (file.tell(), file.read(9)) == (70_003, content[70_003:70_012])


def test_keys_that_no_path_can_name_are_mentioned(bucket, s3, tmp_path):
    import boto3

    content = picture(tmp_path / "a.png").read_bytes()
    client = boto3.client("s3", endpoint_url=s3.url)
    for key in ("data/a.png", "data//b.png", "data/./c.png", "data/sub/"):
        client.put_object(Bucket=bucket.name, Key=key, Body=content if key[-1] == "g" else b"")
    scan = scan_folder(bucket / "data")
    assert [record.path.name for record in scan.records] == ["a.png"]
    assert {item.path.name for item in scan.unused} == {"b.png", "c.png"}


class FoldedPath(type(Path())):
    """A path that compares as on Windows."""

    def __eq__(self, other):
        return str(self).lower() == str(other).lower()

    def __hash__(self):
        return hash(str(self).lower())


def test_names_that_differ_in_case_are_told_apart_on_windows_too(place, tmp_path, monkeypatch):
    for number, name in enumerate(("a", "A")):
        picture(tmp_path / str(number) / f"{name}.png", (8 + number, 9))
        (tmp_path / str(number) / f"{name}.txt").write_text(f"words of {name}", encoding="utf-8")
        put_folder(tmp_path / str(number), place)
    monkeypatch.setattr(probe_stage, "Path", FoldedPath)
    found = [
        FoundImage(str(place / f"{name}.png"), [], (str(place / f"{name}.txt"), ""))
        for name in ("a", "A")
    ]
    assert [(row[0], row[3]) for row in probe_stage.Probe()(found)] == [
        (8, "words of a"),
        (9, "words of A"),
    ]


def test_metadata_names_images_of_the_store(folder, place):
    names = {
        "a": {"caption": "by stem"},
        "sub/c.webp": {"tags": "by path"},
        "/home/me/pictures/sub/deep/d.tiff": {"caption": "of another machine"},
        remote_paths.shown(place / "e.png"): {"caption": "by URL"},
        "../outside.png": {"caption": "never"},
        "gone.png": {"caption": "gone"},
    }
    (folder / "meta.json").write_text(json.dumps(names), encoding="utf-8")
    put_folder(folder, place)
    picture(folder.parent / "outside.png")
    objects.upload(folder.parent / "outside.png", place.parent / "outside.png")
    scan = scan_metadata(read_metadata(place / "meta.json"), place)
    assert {r.path.relative_to(place).as_posix(): r.caption_text for r in scan.records} == {
        "a.png": "by stem",
        "sub/c.webp": "by path",
        "sub/deep/d.tiff": "of another machine",
        "e.png": "by URL",
    }
    assert {item.path.name for item in scan.skipped} == {"outside.png", "gone.png"}
    config = build_dataset_config({"metadata_file": place / "meta.json"}, source="test")
    assert len(scan_dataset(config).records) == 4


def test_a_metadata_file_that_is_not_there_is_named(place):
    with pytest.raises(DatasetError, match=r"meta\.json does not exist"):
        read_metadata(place / "meta.json")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.json", "{}"),
        ("m.json", "{"),
        ("m.json", '{"a": {}, "a": {}}'),
        ("m.json", "[]"),
        ("m.json", '{"a": 1}'),
        ("m.json", '{"a": {"train_resolution": [1, 2]}}'),
        ("m.jsonl", "{"),
        ("m.jsonl", '{"caption": "a"}'),
    ],
)
def test_faults_of_a_metadata_file_name_it_by_its_url(place, tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    objects.upload(tmp_path / name, place / name)
    with pytest.raises(DatasetError) as caught:
        read_metadata(place / name)
    assert remote_paths.shown(place / name) in str(caught.value)


def test_a_folder_without_images_is_named(place):
    with pytest.raises(DatasetError, match="holds no images"):
        scan_folder(place / "nothing")


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("SlowDown", 503, "too busy, also after all retries"),
        ("AccessDenied", 403, "do not permit this"),
        ("ExpiredToken", 400, "have expired. Renew them"),
        ("InvalidAccessKeyId", 403, "does not know the credentials"),
        ("NoSuchBucket", 404, "there is no bucket"),
        ("RequestTimeTooSkewed", 403, "the clock of this machine differs"),
        ("Strange", 418, "answered with .*Strange"),
    ],
)
@pytest.mark.parametrize("only", ["", "a.png"], ids=["listing", "reading"])
def test_a_store_that_cannot_be_used_ends_the_scan(folder, bucket, s3, code, status, words, only):
    put_folder(folder, bucket / "data")
    with s3.failing(refusing(code, status, only)), pytest.raises(StorageError, match=words) as told:
        scan_folder(bucket / "data")
    assert "nobody" not in str(told.value)
    assert "of-no-use" not in str(told.value)


def test_an_image_in_an_archive_is_skipped_and_the_others_are_not(folder, bucket, s3):
    put_folder(folder, bucket / "data")
    with s3.failing(refusing("InvalidObjectState", 403, "a.png")):
        scan = scan_folder(bucket / "data")
    assert "e.png" in [record.path.name for record in scan.records]
    reasons = [item.reason for item in scan.skipped if item.path.name == "a.png"]
    assert reasons == ["cannot be read (is in an archive of the store; restore it there first)"]


class GoogleStore:
    """Behaves like gcsfs: listings do not report buckets, and a 403 is a plain OSError."""

    def __init__(self, bucket_fault):
        self._fault = bucket_fault

    def find(self, *_, **__):
        return {}

    def info(self, name):
        assert name == "bucket"
        if self._fault:
            raise self._fault
        return {"type": "directory"}

    def cat_file(self, *_, **__):
        raise OSError("Forbidden: https://storage.googleapis.com/b/bucket?secret=1")


def test_faults_of_googles_store_are_named(monkeypatch):
    def store(fault=None):
        monkeypatch.setattr(objects, "_MADE", {(os.getpid(), "gs"): GoogleStore(fault)})

    place = Path("gs://bucket/cats")
    empty = FileNotFoundError("bucket")
    empty.__context__ = OSError("Forbidden: one may not look at buckets")
    for fault in (None, empty.__context__, empty):
        store(fault)
        assert objects.find(place).objects == {}
    with pytest.raises(StorageError, match="do not permit this") as told:
        objects.read(place / "a.png")
    assert "secret" not in str(told.value)
    store(FileNotFoundError("bucket"))
    with pytest.raises(StorageError, match=r"there is no bucket bucket\. Check its name\."):
        objects.find(place)


def test_a_store_that_is_too_busy_for_a_moment_is_asked_again(folder, bucket, s3, monkeypatch):
    put_folder(folder, bucket / "data")
    busy = [refusing("SlowDown", 503)] * 2
    with s3.failing(lambda environ, ask: busy.pop()(environ, ask) if busy else None):
        assert scan_folder(bucket / "data").records
    assert not busy


def test_nobody_answers(folder, bucket, monkeypatch):
    monkeypatch.setattr(objects, "_MADE", {})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"cannot be reached. Check the network"):
        scan_folder(bucket / "data")


def test_no_credentials(folder, bucket, monkeypatch, tmp_path):
    monkeypatch.setattr(objects, "_MADE", {})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(StorageError, match=r"or there are none. Set them"):
        scan_folder(bucket / "data")


def test_half_an_image_is_skipped_and_read_again_next_time(folder, bucket, s3, tmp_path):
    place, index = bucket / "data", tmp_path / "scan.json"
    put_folder(folder, place)
    with s3.failing(cutting("GET /" + bucket.name + "/data/a.png")):
        scan = scan_folder(place, index=index)
    assert ("a.png", "cannot be read (was received incompletely from the object store)") in [
        (item.path.name, item.reason) for item in scan.skipped
    ]
    assert "a.png" in [record.path.name for record in scan_folder(place, index=index).records]


def test_half_an_image_is_not_taken_for_a_damaged_one(bucket, s3, tmp_path):
    objects.upload(picture(tmp_path / "a.png"), bucket / "a.png")
    scan = scan_folder(bucket)
    with s3.failing(cutting("a.png")):
        (outcome,) = Decode()(list(scan.records))
    assert outcome == Failure(
        "cannot be read (was received incompletely from the object store)", True
    )
    (outcome,) = Decode()(list(scan.records))
    assert outcome.wh == (8, 8)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(objects, "_MADE", {})
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(MissingDependencyError, match=r"Install it with: .*gcsfs") as told:
        scan_folder(Path("gs://bucket/cats"))
    assert told.value.extra == "remote"


def test_settings_keep_urls_and_no_credentials(tmp_path):
    config = build_dataset_config({"image_dir": "s3://bucket/cats"}, source="test")
    assert config.image_dir == Path("s3://bucket/cats")
    assert config.model_dump(mode="json")["image_dir"] == "s3://bucket/cats"
    assert load_dataset_config(Path("s3://bucket/cats.v2"), {}).image_dir == Path(
        "s3://bucket/cats.v2"
    )
    assert load_dataset_config(Path("s3://bucket/m.jsonl"), {}).metadata_file == Path(
        "s3://bucket/m.jsonl"
    )
    for url in (
        "s3://key:secret@bucket/cats",
        "s3://user@bucket/cats",
        "s3://bucket/cats?key=1",
        "s3://bucket/cats?X-Amz-Credential=secret/2026/us-east-1&X-Amz-Signature=secret/a",
    ):
        for own in ({"image_dir": url}, {"image_dir": tmp_path, "mask_dir": url}):
            with pytest.raises(ConfigError, match="the URL ") as told:
                build_dataset_config(own, source="test")
            assert "secret" not in str(told.value)
    with pytest.raises(ConfigError, match="not a supported object store; expected s3://"):
        build_dataset_config({"image_dir": "ftp://host/cats"}, source="test")
    refused = "mask_dir is s3://b/m, in an object store.* and image_dir of the validation"
    with pytest.raises(ConfigError, match=refused):
        build_dataset_config({"image_dir": tmp_path, "mask_dir": "s3://b/m"}, source="test")
    with pytest.raises(ConfigError, match="train_data_dir is s3://b/m, in an object store"):
        build_dataset_config({"train_data_dir": "s3://b/m"}, source="test")
    with pytest.raises(ConfigError, match="in a read-only store"):
        build_dataset_config({"image_dir": tmp_path, "cache_dir": "hf://datasets/a/b"}, source="t")


def test_derived_data_of_a_store_is_kept_on_this_machine(store_cache):
    config = build_dataset_config({"image_dir": "s3://bucket/cats"}, source="test")
    other = build_dataset_config({"image_dir": "s3://bucket/dogs"}, source="test")
    assert config.derived_dir.is_relative_to(store_cache)
    assert config.derived_dir != other.derived_dir


def test_nothing_local_is_written_for_a_place_in_a_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Path("s3://bucket/cats/a.txt")
    for write in (
        lambda: files.write_text(place, "words"),
        lambda: files.append_text(place, "words"),
        lambda: files.rewrite_text(place, "words"),
        lambda: files.require_writable(place),
        lambda: files.new_file(place, lambda _: "x").__enter__(),
        lambda: files.replace_folder(place).__enter__(),
    ):
        with pytest.raises(StorageError, match=r"s3://bucket/cats/a.txt is in an object store"):
            write()
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_needs_no_folder_of_what_is_in_a_store(tmp_path, store_cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures, stored = tmp_path / "pictures", Path("s3://bucket/cats")
    config = build_dataset_config({"image_dir": "s3://bucket/cats"}, source="test")
    for derived in (Path("s3://bucket/derived"), config.derived_dir):
        with shared_ground([stored, pictures], derived) as ground:
            assert ground == Ground((str(pictures),))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no colon in names")
def test_names_of_a_folder_that_look_like_a_scheme_stay_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(Path("odd:") / "a.png")
    config = build_dataset_config({"image_dir": "odd:/"}, source="test")
    assert len(scan_folder(config.image_dir).records) == 1
    shutil.rmtree("odd:")


def test_lines_of_an_object_are_read_as_of_a_file(in_memory):
    content = b"first\n" + b"x" * 100_000 + b"\nlast"
    claims.write(in_memory / "lines", content)
    file, like = open_object(in_memory / "lines"), io.BytesIO(content)
    for size in (-1, 5, -1, -1, -1):
        assert file.readline(size) == like.readline(size)
        assert file.tell() == like.tell()


def test_an_image_that_looks_like_lines_is_read_as_from_a_disk(in_memory):
    """Pillow's IM reader reads a line if one of the first 100 bytes is a line end."""
    content = (PICTURES / "0006-trophy.webp").read_bytes()
    assert b"\n" in content[:100]
    claims.write(in_memory / "pictures" / "trophy.webp", content)
    assert [r.size.width for r in scan_folder(in_memory / "pictures").records] == [216]
