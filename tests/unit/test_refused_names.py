"""Names that the system refuses end in one sentence, with the exit code of bad input."""

import errno

import pytest

from impasto import presence
from impasto.cli.main import main
from impasto.cli.refused import told
from impasto.errors import DatasetError, ModelError, StorageError

LONG = "n" * 300


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["inspect", LONG], 4),
        (["convert", LONG, "x.safetensors"], 4),
        (["resume", LONG], 5),
        (["report", LONG], 5),
        (["dataset", "scan", LONG], 3),
        (["dataset", "plan", LONG], 3),
        (["dataset", "undo", LONG], 3),
        (["dataset", "merge", LONG, "x.json"], 3),
        (["train", LONG], 2),
        (["new", "style-12gb", f"{LONG}.toml"], 6),
    ],
)
def test_a_name_of_300_bytes_is_told_in_a_sentence(arguments, code, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_the_sentence_has_the_path_and_the_reason():
    refused = told(PermissionError(errno.EACCES, "Permission denied", "/closed/a.png"), "dataset")
    assert isinstance(refused, DatasetError)
    assert "/closed/a.png: Permission denied." in str(refused)
    assert isinstance(told(OSError(errno.EIO, "Input/output error", "m"), "inspect"), ModelError)
    full = OSError(errno.ENOSPC, "No space left on device", "m")
    assert isinstance(told(full, "inspect"), StorageError)
    assert len(str(told(OSError(errno.ENAMETOOLONG, "File name too long", LONG * 99)))) < 500


def test_what_is_no_refusal_of_the_system_stays_a_fault():
    assert told(OSError("a library's own")) is None
    assert told(BrokenPipeError(errno.EPIPE, "Broken pipe")) is None


def test_what_cannot_be_looked_at_is_not_there(tmp_path):
    for look in (presence.exists, presence.is_file, presence.is_dir):
        assert look(tmp_path / LONG) is False
    (tmp_path / "f").touch()
    assert presence.is_file(tmp_path / "f")
    assert presence.is_dir(tmp_path)
    assert presence.exists(tmp_path)
