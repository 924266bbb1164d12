"""The list of a dataset's images: the verb's output, and how damaged lists are read."""

import json
import os
import shutil
import sys

import pytest
from conftest import draw_images, impasto
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from impasto import files
from impasto.data.inspecting.image_list import (
    ImageList,
    ListedImage,
    caption_tags,
    lines_of,
    read_image_list,
)


def drawn(seed, size):
    return Image.effect_noise(size, 60 + seed).convert("RGB")


@pytest.fixture
def cats(tmp_path):
    folder = tmp_path / "cats"
    (folder / "more").mkdir(parents=True)
    drawn(1, (700, 500)).save(folder / "a.png")
    (folder / "a.txt").write_text("cat, solo, cat\nsecond line", encoding="utf-8")
    drawn(2, (100, 100)).save(folder / "more" / "small.jpg")
    shutil.copy(folder / "a.png", folder / "copy.png")
    Image.open(folder / "a.png").resize((650, 460)).save(folder / "near.png")
    (folder / "empty.jpg").write_bytes(b"")
    whole = (folder / "more" / "small.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "left.txt").write_text("no image", encoding="utf-8")
    return folder


def test_every_image_file_is_listed_with_what_is_known(cats, tmp_path):
    out = tmp_path / "list.jsonl"
    words = ["dataset", "list", cats, "--out", out, "--resolution", 256]
    assert impasto(*words).returncode == 0
    found = read_image_list(out)
    assert found.options == {"resolution": 256}
    assert found.compared == 0
    assert set(found.folders) == {".", "more"}
    assert [name for name, _ in found.unused] == ["left.txt"]
    of = {image.path: image for image in found.images}
    assert list(of) == ["a.png", "copy.png", "cut.jpg", "empty.jpg", "more/small.jpg", "near.png"]
    first = of["a.png"]
    assert (first.width, first.height, first.captioned) == (700, 500, True)
    assert first.caption == "cat, solo, cat"
    assert first.tags == 2
    assert (first.size_bytes, first.mtime_ns) == (
        (cats / "a.png").stat().st_size,
        (cats / "a.png").stat().st_mtime_ns,
    )
    width, height = map(int, first.bucket.split("x"))
    left, top, right, bottom = first.crop
    assert (right - left, bottom - top) == (width, height)
    kept = width * height / (first.resized[0] * first.resized[1])
    assert first.cropped == pytest.approx(1 - kept, abs=1e-3)
    assert first.enlarged == 0
    assert of["more/small.jpg"].enlarged > 2
    assert of["empty.jpg"].skipped == "the file is empty"
    assert of["empty.jpg"].bucket == ""
    assert not of["cut.jpg"].skipped  # headers do not show

    assert impasto(*words, "--copies").returncode == 0
    compared = {image.path: image for image in read_image_list(out).images}
    assert compared["a.png"].copies == compared["copy.png"].copies > 0
    assert compared["a.png"].near == compared["near.png"].near > 0
    assert compared["copy.png"].near == 0
    assert "truncated" in compared["cut.jpg"].skipped
    assert len(compared["a.png"].sha256) == 64

    assert impasto(*words).returncode == 0  # known results are kept
    again = read_image_list(out)
    assert {image.path: image for image in again.images} == compared
    assert again.compared == 4


def test_the_list_can_be_printed(cats):
    done = impasto("dataset", "list", cats, "--json")
    head, *lines = map(json.loads, done.stdout.splitlines())
    assert head["version"] == 1
    assert lines[0]["path"] == "a.png"
    assert impasto("dataset", "list", cats, "--json", "--out", "x").returncode == 2


def test_verbs_refuse_a_dataset_whose_tables_are_links(tmp_path):
    theirs, ours = (draw_images(tmp_path / name, 2) for name in ("theirs", "ours"))
    assert impasto("dataset", "list", theirs).returncode == 0
    (table,) = (theirs / files.DERIVED_DIR).glob("scan*.table")
    before = sorted(table.iterdir())
    assert impasto("dataset", "list", ours).returncode == 0
    (own,) = (ours / files.DERIVED_DIR).glob("scan*.table")
    shutil.rmtree(own)
    own.symlink_to(table, target_is_directory=True)
    for verb in ("list", "report", "scan"):
        refused = impasto("dataset", verb, ours, cwd=tmp_path)
        assert refused.returncode == 6, verb
        assert f"{own} is a link" in " ".join(refused.stderr.split()), verb
        assert sorted(table.iterdir()) == before, verb


@pytest.mark.skipif(sys.platform != "linux", reason="Windows and macOS refuse such names")
def test_a_name_that_is_no_text_is_listed(cats, tmp_path):
    (cats / os.fsdecode(b"\xff.png")).write_bytes((cats / "a.png").read_bytes())
    out = tmp_path / "list.jsonl"
    assert impasto("dataset", "list", cats, "--out", out).returncode == 0
    names = {image.path: image.skipped for image in read_image_list(out).images}
    assert "not UTF-8" in names["\\xff.png"]


texts = st.text(st.characters(exclude_categories=[]), max_size=30)
images = st.builds(
    ListedImage,
    path=texts,
    size_bytes=st.integers(0, 2**60),
    crop=st.lists(st.integers(0, 9999), max_size=4).map(tuple),
    cropped=st.floats(0, 1),
    enlarged=st.floats(0, 9),
    caption=texts,
    captioned=st.booleans(),
    skipped=texts,
)


@given(st.lists(images, max_size=5), st.integers(0, 4), st.binary(max_size=20))
def test_a_list_is_read_as_it_was_written_and_without_damaged_lines(
    tmp_path_factory, found, place, damage
):
    file = tmp_path_factory.mktemp("list") / "list.jsonl"
    written = lines_of(ImageList(found, {"step": 64}, {".": 5}, 3, [("x", "y")]))
    file.write_text("".join(f"{line}\n" for line in written), encoding="utf-8", newline="\n")
    assert read_image_list(file) == ImageList(found, {"step": 64}, {".": 5}, 3, [("x", "y")])
    lines = file.read_bytes().split(b"\n")
    lines.insert(1 + min(place, len(found)), damage.replace(b"\n", b"") + b"\x00{")
    file.write_bytes(b"\n".join(lines))
    assert read_image_list(file).images == found


@pytest.mark.parametrize(
    "value",
    ['"1"', "-1e999", "[]", "null", "true", '{"a": 1}'],
)
@pytest.mark.parametrize("name", ["width", "crop", "cropped", "path"])
def test_a_line_with_a_value_of_another_kind_is_left_out(tmp_path, name, value):
    head, line = lines_of(ImageList([ListedImage("a.png", crop=(1,), width=3)]))
    content = {**json.loads(line), name: json.loads(value)}
    file = tmp_path / "list.jsonl"
    file.write_text(f"{head}\n{json.dumps(content)}\n", encoding="utf-8")
    good = (name, value) in {("crop", "[]"), ("path", '"1"')}
    assert len(read_image_list(file).images) == good


@pytest.mark.parametrize("content", [b"", b"[]\n", b'{"version": 0}\n', b"\xff\xfe\n", b"{" * 9999])
def test_what_is_no_list_is_none(tmp_path, content):
    (tmp_path / "list.jsonl").write_bytes(content)
    assert read_image_list(tmp_path / "list.jsonl") is None
    assert read_image_list(tmp_path / "missing") is None


def test_tags_come_once_each():
    assert caption_tags("a, b,,a\nc , a") == ["a", "b", "c"]
