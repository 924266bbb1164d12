"""Durable writing: the old content survives every failure, and nothing half-written stays."""

import subprocess
import sys

import pytest

from impasto import files
from impasto.errors import StorageError


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


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / f".x{files.PARTIAL_SUFFIX}").write_text("half", encoding="utf-8")
    (tmp_path / f".y{files.PARTIAL_SUFFIX}").mkdir()
    (tmp_path / "kept").write_text("x", encoding="utf-8")
    assert files.remove_leftovers(tmp_path) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_an_unwritable_place_is_explained(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("x", encoding="utf-8")
    with pytest.raises(StorageError, match="could not be written"):
        files.write_text(blocker / "inside.txt", "x")


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are a POSIX feature")
@pytest.mark.parametrize("writer", ["python", "safetensors"])
def test_a_full_disk_is_explained_and_nothing_stays(tmp_path, writer):
    """The operating system itself refuses the bytes: a limit on file sizes, set in a child."""
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
        else:
            import torch
            from safetensors.torch import save_file
            save_file({{"x": torch.zeros(1_000_000)}}, partial)
except StorageError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "The disk is full" in result.stdout
    assert not list(tmp_path.iterdir())
