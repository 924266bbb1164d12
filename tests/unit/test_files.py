"""Durable writing: the old content survives every failure, and no partial file remains."""

import errno
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.warm import running

from impasto import files, temporary_names
from impasto.errors import StorageError
from impasto.owners import current_process


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError), files.replace_file(target) as partial:
        partial.write_text("half", encoding="utf-8")
        raise RuntimeError
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_folder_leaves_the_old_folder(tmp_path):
    target = tmp_path / "state"
    target.mkdir()
    (target / "old").write_text("x", encoding="utf-8")
    with pytest.raises(RuntimeError), files.replace_folder(target) as partial:
        (partial / "new").write_text("half", encoding="utf-8")
        raise RuntimeError
    assert [p.name for p in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "export"
    for content in ("one", "two"):
        with files.replace_folder(target) as partial:
            (partial / content).write_text(content, encoding="utf-8")
    assert [p.name for p in target.iterdir()] == ["two"]


DEAD = replace(current_process(), start=1).token


def left_over(name, end=temporary_names.PARTIAL_SUFFIX):
    return f".{name}.{DEAD}.00000000{end}"


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / left_over("x")).write_text("half", encoding="utf-8")
    (tmp_path / left_over("y")).mkdir()
    kept = [
        "kept",
        ".film.mkv.partial",
        ".backup.partial",
        temporary_names.partial_name(tmp_path / "z").name,
    ]
    for name in kept:
        (tmp_path / name).write_text("of another program, or of one that runs", encoding="utf-8")
    assert temporary_names.remove_leftovers(tmp_path) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)


def test_a_leftover_that_belongs_to_another_user_stays_and_refuses_nobody(tmp_path, monkeypatch):
    names = [left_over(name) for name in ("a", "b", "c")]
    for name in names:
        (tmp_path / name).write_text("half", encoding="utf-8")
    real = Path.unlink

    def unlink(self, missing_ok=False):
        if self.name == names[0]:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        real(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    assert temporary_names.remove_leftovers(tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == names[:1]


@pytest.mark.parametrize("is_new_there", [False, True])
def test_a_folder_that_was_about_to_be_replaced_comes_back(tmp_path, is_new_there):
    """A process died between its two renames, or after both."""
    old = tmp_path / left_over("state", temporary_names.REPLACED_SUFFIX)
    old.mkdir()
    (old / "old").write_text("x", encoding="utf-8")
    (tmp_path / left_over("state")).mkdir()
    if is_new_there:
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / "new").write_text("x", encoding="utf-8")
    temporary_names.remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    expected = ["new"] if is_new_there else ["old"]
    assert [p.name for p in (tmp_path / "state").iterdir()] == expected


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    target = tmp_path / "state"
    target.mkdir()
    (target / "old").write_text("x", encoding="utf-8")
    rename = Path.replace

    def guarded(self, to):
        if self.name.endswith(temporary_names.PARTIAL_SUFFIX):
            raise PermissionError(errno.EACCES, "held open by a virus scanner")
        return rename(self, to)

    monkeypatch.setattr(Path, "replace", guarded)
    with pytest.raises(StorageError), files.replace_folder(target) as partial:
        (partial / "new").write_text("x", encoding="utf-8")
    assert [p.name for p in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_disks_without_permissions_and_flushed_folders(tmp_path, monkeypatch):
    """A share mounted by root rejects permissions, and some network disks reject a folder's
    flush."""
    fsync = os.fsync

    def refused(*_, **__):
        raise PermissionError(errno.EPERM, "not permitted")

    def flush(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "invalid")
        fsync(descriptor)

    monkeypatch.setattr(Path, "chmod", refused)
    monkeypatch.setattr(os, "fsync", flush)
    for content in ("one", "two"):
        files.write_text(tmp_path / "a.txt", content)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "two"


def test_an_unwritable_place_is_explained(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("x", encoding="utf-8")
    with pytest.raises(StorageError, match="could not be written"):
        files.write_text(blocker / "inside.txt", "x")


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are a POSIX feature")
@pytest.mark.parametrize("writer", ["python", "safetensors", "pickle"])
def test_a_full_disk_is_explained_and_nothing_stays(tmp_path, writer):
    """The operating system refuses the bytes: a limit on file sizes, set in a child process."""
    program = f"""
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from impasto import files
from impasto.errors import StorageError
try:
    with files.replace_file(Path(sys.argv[1]) / "big") as partial:
        if {writer!r} == "python":
            partial.write_bytes(bytes(1_000_000))
        elif {writer!r} == "pickle":
            import torch
            from impasto.checkpoints.pickle_writing import save_pickle
            with partial.open("wb") as file:
                save_pickle({{"x": torch.zeros(1_000_000)}}, file)
        else:
            import torch
            from safetensors.torch import save_file
            save_file({{"x": torch.zeros(1_000_000)}}, partial)
except StorageError as error:
    print(error)
"""
    result = running.run("-c", program, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "The disk is full" in result.stdout
    assert not list(tmp_path.iterdir())


def test_dated_names_are_in_the_order_of_time(monkeypatch):
    """Two names from the same second are ordered too, in folders of tasks or drafts."""
    clock = 1_700_000_000 * 10**9
    times = [clock + step * 10**9 // 7 for step in range(40)]
    names = []
    for now in times:
        monkeypatch.setattr(temporary_names.time, "time_ns", lambda now=now: now)
        names.append(temporary_names.dated_name())
    assert names == sorted(names)
    assert all(map(temporary_names.is_dated_name, names))
