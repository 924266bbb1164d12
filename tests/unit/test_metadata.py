"""Metadata: every form of sd-scripts is read, nothing is lost in writing, errors are specific."""

import json
from pathlib import Path

import pytest
from PIL import Image

from impasto.data.folders.metadata import (
    MetadataEntry,
    merge_captions,
    read_metadata,
    write_metadata,
)
from impasto.data.folders.sidecars import write_sidecars
from impasto.data.records import Size
from impasto.data.scanning.scan import scan_folder, scan_metadata
from impasto.data.subsets import Subset
from impasto.errors import DatasetError


def picture(path, size=(16, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def scanned(tmp_path, content, image_dir=None, name="meta.json"):
    return scan_metadata(read_metadata(written(tmp_path / name, content)), image_dir)


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "sub/b.jpg", "c.v2.webp"):
        picture(tmp_path / "set" / name)
    return tmp_path / "set"


@pytest.mark.parametrize("style", ["relative", "absolute", "stem", "absolute stem", "backslash"])
def test_every_style_of_key_finds_its_picture(tmp_path, folder, style):
    names = {"a.png": "one", "sub/b.jpg": "two", "c.v2.webp": "three"}
    key = {
        "relative": lambda name: name,
        "absolute": lambda name: str(folder / name),
        "stem": lambda name: name.rpartition(".")[0],
        "absolute stem": lambda name: str(folder / name.rpartition(".")[0]),
        "backslash": lambda name: name.replace("/", "\\"),
    }[style]
    scan = scanned(tmp_path, {key(n): {"caption": c} for n, c in names.items()}, folder)
    assert {r.path.name: r.caption_text for r in scan.records} == {
        "a.png": "one", "b.jpg": "two", "c.v2.webp": "three",
    }  # fmt: skip
    assert scan.skipped == ()


def test_a_bare_name_is_found_in_a_sub_folder(tmp_path, folder):
    assert scanned(tmp_path, {"b": {"tags": "x"}}, folder).records[0].path.name == "b.jpg"


def test_without_a_folder_names_are_relative_to_the_file(folder):
    scan = scanned(folder, {"sub/b.jpg": {"caption": "x"}})
    assert scan.records[0].path == folder / "sub" / "b.jpg"


def test_all_that_an_entry_says_is_read(tmp_path, folder):
    entry = {
        "caption": "one\ntwo",
        "tags": "x, y",
        "train_resolution": [64, 128],
        "image_size": [16, 8],
        "score": 3,
    }
    metadata = read_metadata(written(tmp_path / "m.json", {"a.png": entry}))
    assert metadata.entries[0].as_dict() == entry
    record = scan_metadata(metadata, folder).records[0]
    assert record.caption_text == "one, x, y\ntwo, x, y"
    assert record.wanted == Size(64, 128)


def test_lines_of_json(tmp_path, folder):
    lines = [
        {"image_path": str(folder / "a.png"), "caption": "one", "image_size": [16, 8]},
        {"image_path": "sub/b.jpg", "caption": "zwei: Größe 大", "tags": "t"},
    ]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n"
    scan = scanned(tmp_path, text, folder, "meta.jsonl")
    assert [r.caption_text for r in scan.records] == ["one", "zwei: Größe 大, t"]


def test_missing_pictures_are_listed_and_do_not_stop(tmp_path, folder):
    picture(folder / "twin.png")
    picture(folder / "twin.jpg")
    entries = {
        "a.png": {"caption": "x"},
        "gone.png": {"caption": "x"},
        "twin": {"caption": "x"},
        "../outside.png": {"caption": "x"},
        "a": {"caption": "the same again"},
    }
    picture(tmp_path / "outside.png")
    scan = scanned(tmp_path, entries, folder)
    assert [r.path.name for r in scan.records] == ["a.png"]
    reasons = {str(item.path): item.reason for item in scan.skipped}
    assert "not in" in reasons["gone.png"]
    assert "matches several files" in reasons["twin"]
    assert "leads out of" in reasons[str(Path("..", "outside.png"))]
    assert "names it twice" in reasons["a"]


def test_none_found_is_an_error(tmp_path, folder):
    with pytest.raises(DatasetError, match=r"meta.json.*gone.png: metadata names it, but"):
        scanned(tmp_path, {"gone.png": {}}, folder)


FAULTS = {
    "cut off": ('{"a.png": {"caption": "x"', "line 1, column"),
    "a list": ("[1]", "holds a list"),
    "an entry that is text": ('{"a.png": "words"}', "'a.png': found 'words'"),
    "a caption that is a list": (
        '{"a.png": {"caption": ["x"]}}',
        "caption is ['x']; expected text",
    ),
    "a size of one side": ('{"a.png": {"image_size": [5]}}', "image_size is [5]"),
    "an odd bucket": ('{"a.png": {"train_resolution": [65, 64]}}', "expected multiples of 8"),
    "a key twice": ('{"a.png": {}, "a.png": {}}', "'a.png' twice"),
    "nothing": ("{}", "names no image"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(tmp_path, fault):
    text, expected = FAULTS[fault]
    with pytest.raises(DatasetError) as caught:
        read_metadata(written(tmp_path / "m.json", text))
    assert expected in str(caught.value)
    assert "m.json" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"image_path": "a"}\n{"image', "line 2, column"),
        ('{"caption": "a"}', "line 1: has no image_path"),
    ],
)
def test_faults_in_lines_are_named_by_line(tmp_path, text, expected):
    with pytest.raises(DatasetError) as caught:
        read_metadata(written(tmp_path / "m.jsonl", text))
    assert expected in str(caught.value)


def test_missing_and_latin_files(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        read_metadata(tmp_path / "none.json")
    (tmp_path / "l.json").write_bytes('{"caf\xe9": {}}'.encode("latin-1"))
    with pytest.raises(DatasetError, match="not UTF-8"):
        read_metadata(tmp_path / "l.json")


@pytest.mark.parametrize("name", ["m.json", "m.jsonl"])
def test_what_is_written_reads_back_and_the_old_file_stays(tmp_path, name):
    entries = [
        MetadataEntry("ä.png", "prose\nmore", "tags", Size(64, 128), Size(5, 6), (("rating", 1),)),
        MetadataEntry("b.png"),
    ]
    file = tmp_path / name
    assert write_metadata(file, entries) is None
    assert list(read_metadata(file).entries) == entries
    before = file.read_bytes()
    first = write_metadata(file, entries[:1])
    second = write_metadata(file, entries[1:])
    assert first.read_bytes() == before
    assert first != second
    assert list(read_metadata(second.rename(tmp_path / f"old-{name}")).entries) == entries[:1]


def test_sidecars_to_metadata_and_back(tmp_path, folder):
    (folder / "a.caption").write_text("a cat\nagain", encoding="utf-8")
    (folder / "a.txt").write_text("cat, 猫", encoding="utf-8")
    (folder / "sub" / "b.txt").write_text("dog", encoding="utf-8")
    known = [MetadataEntry("a.png", "old", "", None, Size(16, 8)), MetadataEntry("x.png", "kept")]
    entries = merge_captions(
        known, scan_folder(folder, subset=Subset(root=folder)).records, "relative"
    )
    assert {e.key: (e.caption, e.tags) for e in entries} == {
        "a.png": ("a cat\nagain", "cat, 猫"),
        "sub/b.jpg": ("", "dog"),
        "c.v2.webp": ("", ""),
        "x.png": ("kept", ""),
    }
    assert entries[0].image_size == Size(16, 8)
    write_metadata(tmp_path / "m.json", entries)
    for path in (folder / "a.caption", folder / "sub" / "b.txt"):
        path.unlink()
    (folder / "a.txt").write_text("mine", encoding="utf-8")
    own = Subset(root=folder)
    records = scan_metadata(read_metadata(tmp_path / "m.json"), folder, subset=own).records
    result = write_sidecars(records, overwrite=False)
    assert result.files == 2
    assert result.differing == (folder / "a.txt",)
    assert (folder / "a.txt").read_text(encoding="utf-8") == "mine"
    assert write_sidecars(records, overwrite=True).backups == 1
    assert (folder / "a.txt.bak").read_text(encoding="utf-8") == "mine"
    assert [r.caption_text for r in scan_folder(folder).records] == [
        r.caption_text for r in records
    ]


def test_words_go_into_the_file_that_is_there_in_other_letter_case(tmp_path):
    folder = tmp_path / "pictures"
    picture(folder / "a.png")
    (folder / "a.TXT").write_text("mine", encoding="utf-8")
    write_metadata(tmp_path / "m.json", [MetadataEntry("a.png", tags="cat")])
    records = scan_metadata(
        read_metadata(tmp_path / "m.json"), folder, subset=Subset(root=folder)
    ).records
    assert write_sidecars(records, overwrite=False).differing == (folder / "a.TXT",)
    assert write_sidecars(records, overwrite=True).files == 1
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["a.TXT", "a.TXT.bak", "a.png"]
    assert (folder / "a.TXT").read_text(encoding="utf-8") == "cat\n"


def test_two_pictures_of_one_stem_cannot_share_a_key(tmp_path, folder):
    picture(folder / "a.jpg")
    with pytest.raises(DatasetError, match="both have the key 'a'"):
        merge_captions([], scan_folder(folder, subset=Subset(root=folder)).records, "stem")
