"""Captions in one metadata file: entries keep their other values, and images their names.

If one of these failed, captions and buckets of the user's metadata would be lost, an image would be
named twice, or an interrupted command would append the same words again.
"""

import argparse
import json
from pathlib import Path

import pytest
from PIL import Image

from impasto.annotate.caption_targets import MetadataTarget, Sidecars
from impasto.annotate.dataset_folders import DatasetFolders
from impasto.annotate.journal import Journal
from impasto.annotate.tags import Spelling
from impasto.annotate.undoing import undo
from impasto.data.folders.metadata import read_metadata
from impasto.data.scanning.scan import scan_folder, scan_metadata
from impasto.data.subsets import Subset
from impasto.sdscripts.annotation_tools import _one_file


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / "set"
    for name in ("a.png", "b.png", "sub/c.png"):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 16)).save(target / name)
    return target


def records_of(folder):
    return scan_folder(folder, subset=Subset(root=folder)).records


def folders_of(folder, metadata=None):
    return DatasetFolders((folder,), folder / ".impasto" / "annotations", metadata)


def words_in(folder, file, policy="missing", **options):
    return MetadataTarget(
        file, "tags", policy, "{}, {}".format, lambda r: r.name, folders_of(folder, file), **options
    )


def one_file(folder, file, *, appends):
    asked = argparse.Namespace(output_path=file, append_tags=appends, train_data_dir=folder)
    return _one_file(asked, Spelling())


def write(target, folder, new="new"):
    with Journal(target.folders, "tag") as journal:
        for record in records_of(folder):
            if target.needs_caption(record) and not target.fault(record):
                target.write(journal, record, new)
        target.close(journal)


def content_of(file):
    return json.loads(file.read_text(encoding="utf-8"))


FULL = {"caption": "mine\u2028too", "train_resolution": [64, 128], "note": 1}


@pytest.mark.parametrize("key", ["a", "a.png", "{folder}/a.png", "set/a.png", "C:\\x\\set\\a.png"])
def test_appended_tags_leave_the_rest_of_an_entry(folder, key):
    key = key.format(folder=folder)
    file = folder / "meta.json"
    file.write_text(json.dumps({key: {**FULL, "tags": "old"}}), encoding="utf-8")
    before = file.read_bytes()
    target = one_file(folder, file, appends=True)
    write(target, folder)
    entry = content_of(file)[key]
    assert entry == {**FULL, "tags": "old, new", "image_size": [24, 16]}
    assert len(content_of(file)) == 3
    assert "\u2028" not in file.read_text(encoding="utf-8")
    assert target.kept.read_bytes() == before
    undo(target.folders)
    assert file.read_bytes() == before


def test_the_caption_of_a_line_takes_the_tags(folder):
    file = folder / "meta.jsonl"
    file.write_text('{"image_path": "a", "caption": "old", "note": 1}\n', encoding="utf-8")
    write(one_file(folder, file, appends=True), folder)
    first = json.loads(file.read_text(encoding="utf-8").splitlines()[0])
    size = [24, 16]
    assert first == {"image_path": "a", "caption": "old, new", "image_size": size, "note": 1}


def test_a_file_replaced_whole_is_kept_and_can_be_taken_back(folder, tmp_path):
    file = tmp_path / "elsewhere.json"
    file.write_text('{"other.png": {"caption": "years of work"}}', encoding="utf-8")
    before = file.read_bytes()
    target = one_file(folder, file, appends=False)
    write(target, folder)
    assert set(content_of(file)) == {str(record.path) for record in records_of(folder)}
    assert content_of(file)[str(folder / "a.png")] == {"tags": "new", "image_size": [24, 16]}
    assert target.kept.read_bytes() == before
    undo(target.folders)
    assert file.read_bytes() == before


def test_an_interrupted_replacement_goes_on_with_what_it_wrote(folder):
    file = folder / "meta.json"
    file.write_text('{"other.png": {"caption": "x"}}', encoding="utf-8")
    records = records_of(folder)
    target = one_file(folder, file, appends=False)
    with pytest.raises(KeyboardInterrupt), Journal(target.folders, "tag") as journal:
        target.write(journal, records[0], "first")
        target.close(journal)
        raise KeyboardInterrupt
    again = one_file(folder, file, appends=False)
    with Journal(again.folders, "tag") as journal:
        assert journal.done == {"0:a.png"}
        again.write(journal, records[1], "second")
        again.close(journal)
    assert [entry["tags"] for entry in content_of(file).values()] == ["first", "second"]
    assert again.kept is None


@pytest.mark.parametrize("key", ["a", "{folder}/a.png", "./a.png", "D:\\set\\a.png"])
def test_an_image_that_is_named_in_another_style_is_not_named_again(folder, key):
    file = folder / "meta.json"
    key = key.format(folder=folder)
    file.write_text(json.dumps({key: {"caption": "mine"}}), encoding="utf-8")
    write(words_in(folder, file), folder)
    assert content_of(file)[key] == {"caption": "mine"}
    write(words_in(folder, file, "append"), folder)
    assert set(content_of(file)) == {key, "b.png", "sub/c.png"}
    scan = scan_metadata(read_metadata(file), folder)
    assert (len(scan.records), scan.skipped) == (3, ())


def test_two_images_of_one_key_are_refused(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (8, 8)).save(other / "a.png")
    target = words_in(folder, tmp_path / "meta.json")
    assert not target.fault(records_of(folder)[0])
    assert "key in the metadata would be 'a.png'" in target.fault(records_of(other)[0])


@pytest.mark.parametrize("into", ["sidecars", "metadata"])
def test_a_kill_right_after_the_write_does_not_append_twice(folder, into, monkeypatch):
    """The record of completed images is written after the metadata, and may be lost."""
    file = folder / "meta.json"
    (folder / "a.txt").write_text("old\n", encoding="utf-8")
    file.write_text('{"a.png": {"tags": "old"}}', encoding="utf-8")
    record = records_of(folder)[0]

    def target():
        if into == "metadata":
            return words_in(folder, file, "append")
        return Sidecars(".txt", "append", "{}, {}".format, folders_of(folder))

    def killed(*_):
        raise KeyboardInterrupt

    def go(journal):
        own = target()
        if own.folders.name_of(record.path) not in journal.done:
            own.write(journal, record, "new")
            own.close(journal)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", killed)
        with pytest.raises(KeyboardInterrupt), Journal(target().folders, "tag") as journal:
            go(journal)
    with Journal(target().folders, "tag") as journal:
        go(journal)
    texts = [(folder / "a.txt").read_text(encoding="utf-8"), file.read_text(encoding="utf-8")]
    assert sum(text.count("old, new") for text in texts) == 1
    assert sum(text.count("new") for text in texts) == 1
    undo(target().folders)
    assert (folder / "a.txt").read_text(encoding="utf-8") == "old\n"


def test_a_kill_between_the_note_and_the_write_does_it_again(folder, monkeypatch):
    from impasto import files

    (folder / "a.txt").write_text("old\n", encoding="utf-8")
    record = records_of(folder)[0]
    target = Sidecars(".txt", "append", "{}, {}".format, folders_of(folder))

    def killed(_: Path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "rewrite_file", killed)
        with pytest.raises(KeyboardInterrupt), Journal(target.folders, "tag") as journal:
            target.write(journal, record, "new")
    with Journal(target.folders, "tag") as journal:
        assert not journal.done
