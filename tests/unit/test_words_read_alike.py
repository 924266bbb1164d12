"""One rule for the caption file of an image and its reading, and journals that stay inside.

If one of these failed, another verb would refuse or miss captions that a scan reads, or a
stranger's dataset would write outside of its folder.
"""

import json
import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
from PIL import Image

from impasto.annotate.caption_targets import Sidecars
from impasto.annotate.dataset_folders import DatasetFolders
from impasto.annotate.journal import Journal
from impasto.annotate.notes import journals_in, with_checksum
from impasto.annotate.undoing import undo
from impasto.cli.dataset_clean import _read
from impasto.data.folders.beside import has_text
from impasto.data.folders.sidecars import _says
from impasto.data.scanning.scan import scan_folder
from impasto.data.subsets import Subset
from impasto.errors import RunError, StorageError
from impasto.sdscripts.metadata_tools import merge_dd_tags_to_metadata

POSIX = pytest.mark.skipif(
    sys.platform == "win32", reason="creating links needs a privilege on Windows"
)
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16"]


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / "set"
    target.mkdir()
    Image.new("RGB", (16, 16)).save(target / "a.png")
    return target


def folders_of(folder):
    return DatasetFolders((folder,), folder / ".impasto" / "annotations")


def record_of(folder):
    return scan_folder(folder, subset=Subset(root=folder)).records[0]


def merged(folder, monkeypatch):
    out = folder.parent / "out.json"
    monkeypatch.setattr(sys, "argv", ["merge_dd_tags_to_metadata.py", str(folder), str(out)])
    merge_dd_tags_to_metadata()
    return json.loads(out.read_text(encoding="utf-8"))["a"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_a_scan_reads_is_read_by_all(folder, encoding, monkeypatch):
    file = folder / "a.txt"
    file.write_bytes("a café,\r\nb".encode(encoding))
    record = record_of(folder)
    assert record.tags == "a café,\nb"
    target = Sidecars(".txt", "append", "{} + {}".format, folders_of(folder))
    assert target.fault(record) == ""
    assert target.text(record, "c") == "a café,\nb + c"
    assert _read(file) == _says(file) == "a café,\nb"
    assert merged(folder, monkeypatch)["tags"] == "a café,\nb"


def test_a_file_with_nothing_but_its_mark_has_no_words(folder):
    (folder / "a.txt").write_bytes("".encode("utf-16"))
    assert not has_text(folder / "a.txt")


@pytest.mark.parametrize("name", ["a.TXT", "a.Txt"])
def test_merging_finds_the_words_that_a_scan_finds(folder, name, monkeypatch):
    (folder / name).write_text("a cat", encoding="utf-8")
    assert record_of(folder).tags == "a cat"
    assert merged(folder, monkeypatch)["tags"] == "a cat"


def write(folder):
    with Journal(folders_of(folder), "tag") as journal:
        journal.write(folder / "a.txt", "new", "0:a.png")


@POSIX
@pytest.mark.parametrize("link", [".impasto", ".impasto/annotations"])
def test_notes_are_not_kept_where_a_link_leads(folder, tmp_path, link):
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder / link).parent.mkdir(exist_ok=True)
    (folder / link).symlink_to(outside)
    with pytest.raises(RunError, match="leads out of the dataset by a link"):
        write(folder)
    with pytest.raises(RunError, match="leads out of the dataset by a link"):
        undo(folders_of(folder))
    assert list(outside.iterdir()) == []
    assert not (folder / "a.txt").exists()


@POSIX
def test_a_link_within_the_data_set_and_a_folder_elsewhere_hold_notes(folder, tmp_path):
    (folder / "derived").mkdir()
    (folder / ".impasto").symlink_to(folder / "derived")
    write(folder)
    assert undo(folders_of(folder)).restored == 1
    folders = DatasetFolders((folder,), tmp_path / "cache" / "annotations")
    with Journal(folders, "tag") as journal:
        journal.write(folder / "a.txt", "new", "0:a.png")
    assert undo(folders).restored == 1


@POSIX
@pytest.mark.parametrize("name", ["annotations.lock", "annotations/.lock"])
def test_a_lock_that_is_a_link_creates_nothing_outside(folder, tmp_path, name):
    (folder / ".impasto" / "annotations").mkdir(parents=True)
    (folder / ".impasto" / name).symlink_to(tmp_path / "outside")
    refused = pytest.raises(StorageError, match="lock") if "/" in name else nullcontext()
    with refused:
        write(folder)
    assert not os.path.lexists(tmp_path / "outside")


def test_a_command_that_was_killed_leaves_no_lock_that_holds(folder):
    code = (
        "import os, sys; sys.path[:0] = eval(sys.argv[1]);"
        "from pathlib import Path;"
        "from impasto.annotate.journal import alone; from impasto.annotate.dataset_folders import "
        "DatasetFolders;f = Path(sys.argv[2]); held = alone(DatasetFolders((f,), f / '.impasto' / "
        "'annotations'));held.__enter__();"
        "os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code, repr(sys.path), str(folder)], check=False)
    assert done.returncode == 9
    assert (folder / ".impasto" / "annotations" / ".lock").is_file()
    write(folder)
    assert undo(folders_of(folder)).restored == 1


@pytest.mark.parametrize("name", ["/" + "a" * 300, "/a\0b", "\ud800", ""])
def test_notes_with_folders_that_no_system_has(folder, name):
    write(folder)
    journal = journals_in(folders_of(folder).journals)[-1]
    lines = journal.read_text(encoding="ascii").splitlines(keepends=True)
    begin = json.loads(lines[0])
    del begin["sum"]
    lines[0] = with_checksum({**begin, "folders": [name]})
    journal.write_text("".join(lines), encoding="ascii")
    assert undo(folders_of(folder)).restored == 1
