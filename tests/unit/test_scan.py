"""Scanning: every file is a record, a sidecar, or skipped with a reason."""

import os

import pytest
from PIL import Image

from impasto.data.scanning.scan import decode_all, scan_folder
from impasto.data.subsets import MaskRules, Subset
from impasto.errors import DatasetError
from impasto.studio.datasets import image_files


def picture(path, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 20, 30)).save(path)
    return path


def test_a_folder_that_is_none_is_named_for_what_it_is(tmp_path):
    with pytest.raises(DatasetError, match="gone does not exist"):
        scan_folder(tmp_path / "gone")
    with pytest.raises(DatasetError, match=r"a\.png is a file, not a folder"):
        scan_folder(picture(tmp_path / "a.png"))


def test_any_letter_case_and_sub_folders(tmp_path):
    for name in ("a.PNG", "b.Jpg", "sub/c.webp", "sub/deep/d.TIFF"):
        picture(tmp_path / name)
    names = [record.path.name for record in scan_folder(tmp_path).records]
    assert names == ["a.PNG", "b.Jpg", "c.webp", "d.TIFF"]
    assert len(scan_folder(tmp_path, recursive=False).records) == 2


def test_hidden_and_appledouble_files_are_passed_over(tmp_path):
    for name in ("a.png", ".hidden.png", "._a.png", ".impasto/x.png"):
        picture(tmp_path / name)
    assert [record.path.name for record in scan_folder(tmp_path).records] == ["a.png"]


def test_caption_and_tags(tmp_path):
    for name in ("a", "b", "c", "d"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "a.caption").write_text("a cat\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text("cat, sitting", encoding="utf-8")
    (tmp_path / "b.txt").write_text("\ufeffdog", encoding="utf-8")
    (tmp_path / "c.txt").write_text("  \n", encoding="utf-8")
    scan = scan_folder(tmp_path)
    assert [record.caption_text for record in scan.records] == [
        "a cat, cat, sitting",
        "dog",
        "",
        "",
    ]
    assert scan.uncaptioned_count == 2


def test_bad_files_are_skipped_with_reasons(tmp_path):
    picture(tmp_path / "good.png")
    (tmp_path / "empty.png").write_bytes(b"")
    picture(tmp_path / "latin.png")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    scan = scan_folder(tmp_path)
    reasons = {item.path.name: item.reason for item in scan.skipped}
    assert reasons == {
        "empty.png": "the file is empty",
        "latin.png": "its caption latin.txt is not UTF-8 text (byte 3); save it as UTF-8",
    }
    assert [record.path.name for record in scan.records] == ["good.png"]


def test_decoding_finds_what_headers_hide(tmp_path):
    picture(tmp_path / "good.png")
    path = picture(tmp_path / "cut.jpg", (200, 200))
    path.write_bytes(path.read_bytes()[:700])
    assert len(scan_folder(tmp_path).records) == 2
    decoded = decode_all(scan_folder(tmp_path))
    assert [record.path.name for record in decoded.records] == ["good.png"]
    assert "truncated" in decoded.skipped[0].reason


def test_the_index_spares_unchanged_files(tmp_path, monkeypatch):
    for index in range(5):
        picture(tmp_path / "set" / f"{index}.png")
    index_file = tmp_path / "scan.json"
    first = scan_folder(tmp_path / "set", index=index_file)
    opened = []
    from impasto.data.pixels import images

    real = images.read_header
    monkeypatch.setattr(images, "read_header", lambda path: opened.append(path.name) or real(path))
    assert scan_folder(tmp_path / "set", index=index_file) == first
    assert opened == []
    picture(tmp_path / "set" / "2.png", (16, 8))
    (tmp_path / "set" / "3.txt").write_text("new words", encoding="utf-8")
    changed = scan_folder(tmp_path / "set", index=index_file)
    assert sorted(opened) == ["2.png", "3.png"]
    assert changed.records[2].size.width == 16
    assert changed.records[3].caption_text == "new words"


def test_a_damaged_index_only_costs_time(tmp_path):
    picture(tmp_path / "set" / "a.png")
    index_file = tmp_path / "scan.json"
    index_file.write_text('{"version": 1, "folder"', encoding="utf-8")
    assert len(scan_folder(tmp_path / "set", index=index_file).records) == 1
    segment = max((tmp_path / "scan.table").iterdir())
    segment.write_bytes(segment.read_bytes()[:-9])
    assert len(scan_folder(tmp_path / "set", index=index_file).records) == 1


def test_removed_files_leave_the_index(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / "set" / f"{name}.png")
    index_file = tmp_path / "scan.json"
    scan_folder(tmp_path / "set", index=index_file)
    (tmp_path / "set" / "a.png").unlink()
    scan_folder(tmp_path / "set", index=index_file)
    segment = max((tmp_path / "scan.table").iterdir())
    assert b"b.png" in segment.read_bytes()
    assert b"a.png" not in segment.read_bytes()


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "broken"])
def test_unusable_folders_are_explained(tmp_path, kind):
    folder = tmp_path / "set"
    if kind == "file":
        folder.write_text("x", encoding="utf-8")
    elif kind != "missing":
        folder.mkdir()
        if kind == "broken":
            (folder / "a.png").write_bytes(b"x")
    words = {
        "missing": "does not exist",
        "file": "a file",
        "empty": "holds no images",
        "broken": "a.png",
    }
    with pytest.raises(DatasetError, match=words[kind]):
        scan_folder(folder)


def test_folders_of_masks_and_runs_below_images_are_left_out_and_named(tmp_path):
    for name in ("cats/a.png", "cats-masks/a.png", "run/samples/step-00000100/0.png"):
        picture(tmp_path / name)
    for name in ("config.toml", "status.json"):
        (tmp_path / "run" / name).write_text("", encoding="utf-8")
    scan = scan_folder(tmp_path)
    assert [record.path for record in scan.records] == [tmp_path / "cats/a.png"]
    reasons = {item.path.name: item.reason for item in scan.unused}
    assert "give it as mask_dir" in reasons["cats-masks"]
    assert "a run directory of Impasto" in reasons["run"]
    assert image_files(tmp_path) == ["cats/a.png"]
    assert len(scan_folder(tmp_path / "cats-masks").records) == 1


def test_a_folder_that_is_only_called_like_masks_is_one_of_images(tmp_path):
    for name in ("cats/a.png", "cats-masks/venice.png", "dogs-masks/b.png"):
        picture(tmp_path / name)
    (tmp_path / "cats-masks/venice.txt").write_text("a carnival mask", encoding="utf-8")
    assert len(scan_folder(tmp_path).records) == 3


@pytest.mark.skipif(os.name != "posix", reason="creating links needs a privilege on Windows")
def test_the_folder_of_masks_is_left_out_however_it_is_spelt(tmp_path):
    for name in ("real/im/a.png", "real/im/of_it/a.png"):
        picture(tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for images, masks in (("real/im", "link/im/of_it"), ("link/im", "real/im/of_it")):
        rules = MaskRules(folder=tmp_path / masks)
        scan = scan_folder(tmp_path / images, subset=Subset(masks=rules))
        assert [record.path.name for record in scan.records] == ["a.png"]
        assert not scan.unused
