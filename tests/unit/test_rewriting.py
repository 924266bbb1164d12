"""Rewritten user files: permissions and links are preserved, and long names are no error."""

import os
import stat
import sys

import pytest

from impasto import files, temporary_names
from impasto.data.folders.metadata import MetadataEntry, keep_backup, write_metadata
from impasto.errors import StorageError
from impasto.write_targets import why_not_written

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions and links")
LONG = "長" * 79 + ".webp"  # 242 of the 255 bytes that a name may have


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@POSIX
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664, 0o400])
@pytest.mark.parametrize("write", [files.write_text, files.rewrite_text])
def test_permissions_are_kept(tmp_path, mode, write):
    file = tmp_path / "a.txt"
    file.write_text("old", encoding="utf-8")
    file.chmod(mode)
    write(file, "new")
    assert file.read_text(encoding="utf-8") == "new"
    assert mode_of(file) == mode


@POSIX
def test_what_is_private_is_private_while_it_is_written(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old", encoding="utf-8")
    file.chmod(0o600)
    with files.replace_file(file) as partial:
        partial.write_text("new", encoding="utf-8")
        assert mode_of(partial) == 0o600


@POSIX
def test_backups_and_metadata_are_as_private_as_the_file(tmp_path):
    file = tmp_path / "meta.json"
    file.write_text("{}", encoding="utf-8")
    file.chmod(0o600)
    backup = write_metadata(file, [MetadataEntry("a.png", "words")])
    assert [mode_of(file), mode_of(backup)] == [0o600, 0o600]
    assert backup.read_text(encoding="utf-8") == "{}"


@POSIX
def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    real = tmp_path / "kept" / "words.txt"
    real.parent.mkdir()
    real.write_text("old", encoding="utf-8")
    real.chmod(0o600)
    link = tmp_path / "a.txt"
    link.symlink_to(real)
    files.rewrite_text(link, "new")
    assert link.is_symlink()
    assert real.read_text(encoding="utf-8") == "new"
    assert mode_of(real) == 0o600
    dangling = tmp_path / "b.txt"
    dangling.symlink_to(tmp_path / "kept" / "later.txt")
    files.rewrite_text(dangling, "new")
    assert dangling.is_symlink()
    assert (tmp_path / "kept" / "later.txt").read_text(encoding="utf-8") == "new"
    circle = tmp_path / "c.txt"
    circle.symlink_to(circle)
    with pytest.raises(StorageError):
        files.rewrite_text(circle, "new")


@POSIX
def test_where_words_are_not_written(tmp_path):
    inside, outside = tmp_path / "pictures", tmp_path / "home"
    for folder in (inside / "sub", outside):
        folder.mkdir(parents=True)
    (inside / "out.txt").symlink_to(outside / "profile")
    (inside / "in.txt").symlink_to("sub/words.txt")
    (inside / "folder.txt").mkdir()
    (inside / "door").symlink_to(outside)
    os.mkfifo(inside / "pipe.txt")
    cases = {
        "a.txt": "",
        "in.txt": "",
        "out.txt": "a link that leads out of the dataset",
        "door/a.txt": "its path leads out of the dataset",
        "../home/profile": "its path leads out of the dataset",
        "folder.txt": "exists and is not a file",
        "pipe.txt": "exists and is not a file",
        "n" * 252 + ".txt": "has over 255 bytes",
    }
    for name, words in cases.items():
        reason = why_not_written(inside / name, [inside])
        assert words in reason, name
        assert bool(reason) == bool(words), name


def test_long_names_are_replaced_and_backed_up(tmp_path):
    file = tmp_path / LONG
    files.write_text(file, "old")
    files.write_text(file, "new")
    assert file.read_text(encoding="utf-8") == "new"
    first, second = keep_backup(file), keep_backup(file)
    assert first != second
    assert {p.read_text(encoding="utf-8") for p in tmp_path.iterdir()} == {"new"}
    with files.replace_folder(tmp_path / ("n" * 255)) as partial:
        (partial / "x").write_text("x", encoding="utf-8")
    assert (tmp_path / ("n" * 255) / "x").is_file()


def test_names_are_cut_between_characters():
    assert temporary_names.shortened("長長長", 7) == "長長"
    assert temporary_names.shortened("abc", 3) == "abc"
