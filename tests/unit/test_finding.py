"""Metadata keys of other programs and machines match their files and no others."""

import json
import os
import unicodedata

import pytest
from PIL import Image

from impasto.data.engines.stages import Failure
from impasto.data.folders.finding import ImageFinder
from impasto.data.folders.metadata import (
    MetadataEntry,
    keys_of_files,
    merge_captions,
    read_metadata,
    write_metadata,
)
from impasto.data.scanning.scan import scan_folder, scan_metadata
from impasto.data.subsets import MaskRules, Subset
from impasto.errors import DatasetError

posix = pytest.mark.skipif(os.name != "posix", reason="creating links needs a privilege on Windows")


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "sub/b.jpg", "sub/deep/c.png"):
        picture(tmp_path / "set" / name)
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("C:\\train\\set\\a.png", "a.png"),
        ("C:\\train\\set\\a", "a.png"),
        ("C:/train/set/sub/b.jpg", "sub/b.jpg"),
        ("\\\\server\\share\\sub\\b.jpg", "sub/b.jpg"),
        ("D:\\x\\sub\\deep\\c.PNG", "sub/deep/c.png"),
        ("/home/other/set/sub/deep/c.png", "sub/deep/c.png"),
        ("b.jpg", "sub/b.jpg"),
        ("c", "sub/deep/c.png"),
        ("deep/c.png", "sub/deep/c.png"),
        ("./a.png", "a.png"),
        ("sub/../a.png", "a.png"),
        ("sub//b.jpg", "sub/b.jpg"),
    ],
)
def test_keys_of_other_machines(folder, key, found):
    assert ImageFinder(folder).find(key) == str(folder / found)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("C:\\train\\set\\other\\b.jpg", "not in"),
        ("x/c.png", "not in"),
        ("gone.png", "not in"),
        ("", "not in"),
        ("/", "not in"),
        ("../outside.png", "leads out"),
        ("sub/../../outside.png", "leads out"),
        ("\ud83d.png", "half a character"),
    ],
)
def test_keys_that_lead_nowhere_or_out(folder, key, reason):
    picture(folder.parent / "outside.png")
    found = ImageFinder(folder).find(key)
    assert isinstance(found, Failure)
    assert reason in found.reason


def test_an_absolute_key_outside_is_refused(folder):
    outside = picture(folder.parent / "outside.png")
    found = ImageFinder(folder).find(str(outside))
    assert isinstance(found, Failure)
    assert "set image_dir" in found.reason
    assert ImageFinder(folder.parent).find(str(outside)) == str(outside)


@posix
@pytest.mark.parametrize("key", ["link/x.png", "link/x", "own.png", "own", "/y/own.png"])
def test_a_link_that_leads_out_is_refused(folder, key):
    picture(folder.parent / "elsewhere" / "x.png")
    (folder / "link").symlink_to(folder.parent / "elsewhere")
    (folder / "own.png").symlink_to(folder.parent / "elsewhere" / "x.png")
    assert isinstance(ImageFinder(folder).find(key), Failure)


@posix
def test_a_link_that_stays_inside_is_followed(folder):
    (folder / "inside").symlink_to(folder / "sub")
    (folder / "again.png").symlink_to(folder / "a.png")
    finder = ImageFinder(folder)
    assert finder.find("inside/b.jpg") == str(folder / "inside" / "b.jpg")
    assert finder.find("again") == str(folder / "again.png")


def test_the_nearest_of_several_is_taken_or_none(folder):
    picture(folder / "twice" / "t.png")
    picture(folder / "again" / "t.png")
    finder = ImageFinder(folder)
    assert "matches several files" in finder.find("t.png").reason
    assert finder.find("C:\\x\\twice\\t.png") == str(folder / "twice" / "t.png")
    picture(folder / "t.png")
    assert ImageFinder(folder).find("t") == str(folder / "t.png")


def test_unicode_forms_are_one(folder):
    picture(folder / (unicodedata.normalize("NFD", "é") + ".png"))
    found = ImageFinder(folder).find(unicodedata.normalize("NFC", "é") + ".png")
    assert isinstance(found, str)
    assert "e" in found


@pytest.mark.parametrize(
    "other", ["./a.png", "sub/../a.png", "a", "C:\\set\\a.png", ".\\a.png", "sub//../a.png"]
)
def test_two_spellings_of_one_file_are_taken_once(folder, other):
    (folder / "m.json").write_text(json.dumps({"a.png": {}, other: {}}), encoding="utf-8")
    scan = scan_metadata(read_metadata(folder / "m.json"), folder)
    assert [record.path.name for record in scan.records] == ["a.png"]
    assert "names it twice" in scan.skipped[0].reason
    assert scan.tally.usable == 1


def test_images_that_metadata_does_not_name_are_mentioned(folder):
    (folder / "m.json").write_text('{"a.png": {}}', encoding="utf-8")
    scan = scan_metadata(read_metadata(folder / "m.json"), folder)
    assert {item.path.name for item in scan.unused} == {"b.jpg", "c.png"}


LINE_ENDS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_what_is_written_is_read_again_by_all(tmp_path, ending):
    """Even readers that split lines as Python's splitlines does read the same."""
    file = tmp_path / f"m{ending}"
    entries = [MetadataEntry("a\u2028.png", LINE_ENDS, LINE_ENDS), MetadataEntry("b.png", "x")]
    write_metadata(file, entries)
    assert list(read_metadata(file).entries) == entries
    text = file.read_text(encoding="utf-8")
    if ending == ".jsonl":
        assert [json.loads(line)["image_path"] for line in text.splitlines()] == [
            entry.key for entry in entries
        ]
    file.write_text(json.dumps({"image_path": "a\u2028", "caption": "x\u2028y"}) + "\n")


def test_lines_of_others_with_line_separators_are_read(tmp_path):
    line = json.dumps({"image_path": "a.png", "caption": "a\u2028b\x85c"}, ensure_ascii=False)
    (tmp_path / "m.jsonl").write_text(
        line + "\r\n" + line.replace("a.png", "b.png") + "\n", "utf-8"
    )
    assert [e.caption for e in read_metadata(tmp_path / "m.jsonl").entries] == ["a\u2028b\x85c"] * 2


def test_half_a_character_is_named_or_skipped(folder):
    (folder / "m.json").write_text('{"a.png": {"caption": "\\ud83d"}}', encoding="utf-8")
    with pytest.raises(DatasetError, match="half a character"):
        read_metadata(folder / "m.json")
    (folder / "m.json").write_text('{"\\udc92.png": {}, "a.png": {}}', encoding="utf-8")
    metadata = read_metadata(folder / "m.json")
    scan = scan_metadata(metadata, folder)
    assert len(scan.records) == len(scan.skipped) == 1
    str(scan.skipped[0].path).encode("utf-8")
    write_metadata(folder / "m.json", metadata.entries)
    assert read_metadata(folder / "m.json") == metadata


@pytest.mark.parametrize("key", ["C:\\old\\set\\a.png", "a", "./a.png"])
def test_merging_keeps_the_names_that_are_there(folder, key):
    """Existing names are kept, or one image would have two entries."""
    (folder / "a.txt").write_text("new", encoding="utf-8")
    known = [MetadataEntry(key, tags="old")]
    records = scan_folder(folder, subset=Subset(root=folder)).records
    entries = merge_captions(known, records, "relative", named=keys_of_files(known, [folder]))
    assert {e.key: e.tags for e in entries} == {key: "new", "sub/b.jpg": "", "sub/deep/c.png": ""}


def test_a_metadata_file_that_is_no_file(tmp_path):
    with pytest.raises(DatasetError, match="not a regular file"):
        read_metadata(tmp_path)


def test_masks_are_no_images_that_metadata_means(tmp_path):
    """A mask does not replace a missing image, and does not make a key ambiguous."""
    for name in ("a/0.png", "masks/0.png", "masks/1.png"):
        picture(tmp_path / "set" / name)
    (tmp_path / "meta.json").write_text('{"0.png": {}, "1.png": {}}', encoding="utf-8")
    subset = Subset(masks=MaskRules(folder=tmp_path / "set" / "masks"))
    scan = scan_metadata(read_metadata(tmp_path / "meta.json"), tmp_path / "set", subset=subset)
    assert [record.path for record in scan.records] == [tmp_path / "set/a/0.png"]
    assert [str(item.path) for item in scan.skipped] == ["1.png"]
    assert not [item for item in scan.unused if "does not name" in item.reason]


def test_a_key_with_an_ending_that_fits_two_files_needs_its_folder(tmp_path):
    for name in ("a/0.png", "b/0.png"):
        picture(tmp_path / name)
    assert "give the path below" in ImageFinder(tmp_path).find("0.png").reason
    picture(tmp_path / "a/0.jpg")
    assert "give the file extension" in ImageFinder(tmp_path / "a").find("0").reason


@posix
@pytest.mark.parametrize("is_linked", [True, False])
def test_names_are_those_below_the_folder_that_was_given(tmp_path, monkeypatch, is_linked):
    """Names are relative to the given folder, even for keys that use a link's target."""
    picture(tmp_path / "real/im/0.png")
    (tmp_path / "link").symlink_to(tmp_path / "real/im")
    root = tmp_path / "link" if is_linked else tmp_path / "real/im"
    key = str(tmp_path / "real/im/0.png")
    assert ImageFinder(root).find(key) == str(root / "0.png")
    monkeypatch.chdir(tmp_path)
    assert ImageFinder(root.relative_to(tmp_path)).find(key) == str(
        root.relative_to(tmp_path) / "0.png"
    )
