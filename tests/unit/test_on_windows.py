"""Behaviour specific to Windows: open files, Ctrl-Break, RAM that cannot be pinned."""

import signal

import pytest
import torch
from windows_os import WindowsOs

from impasto import files
from impasto.errors import OutOfMemoryError, StorageError
from impasto.storage_errors import storage_error
from impasto.training import signals as interrupts
from impasto.training.optim.pinned_memory import pinned_like


@pytest.fixture
def windows(monkeypatch):
    """Make renames fail while another program has the file open."""
    for module in ("files", "storage_errors"):
        monkeypatch.setattr(f"impasto.{module}.os", WindowsOs())
    monkeypatch.setattr("impasto.files.time.sleep", lambda _: None)
    return monkeypatch


def busy(times):
    """A rename that fails several times, as for a file that a virus scanner reads."""
    from pathlib import Path

    plain, left = Path.replace, [times]

    def replace(self, target):
        if left[0]:
            left[0] -= 1
            raise PermissionError(13, "Access is denied")
        return plain(self, target)

    return replace


def test_a_file_that_is_read_for_a_moment_is_renamed_again(windows, tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("new", encoding="utf-8")
    windows.setattr("pathlib.Path.replace", busy(3))
    files.rename(source, target)
    assert target.read_text(encoding="utf-8") == "new"


def test_a_file_that_stays_open_is_named_with_what_to_do(windows, tmp_path):
    target = tmp_path / "model.safetensors"
    target.write_text("old", encoding="utf-8")
    error = storage_error(target, PermissionError(13, "Access is denied"))
    assert isinstance(error, StorageError)
    for words in (
        str(target),
        "another program has open",
        "Close the program that uses it",
        "unchanged",
    ):
        assert words in str(error)
    windows.setattr("pathlib.Path.replace", busy(1000))
    source = tmp_path / "new"
    source.touch()
    with pytest.raises(PermissionError):
        files.rename(source, target)
    assert target.read_text(encoding="utf-8") == "old"


def test_every_signal_that_asks_to_stop_is_heard():
    names = {signal.Signals(number).name for number in interrupts.STOP_SIGNALS}
    assert {"SIGINT", "SIGTERM"} <= names
    assert ("SIGBREAK" in names) == hasattr(signal, "SIGBREAK")


def test_another_stop_signal_stops_as_the_others_do(monkeypatch):
    """SIGUSR1 stands for SIGBREAK, which only Windows has."""
    other = getattr(signal, "SIGUSR1", None)
    if other is None:
        pytest.skip("this system has no further signal to send")
    monkeypatch.setattr(interrupts, "STOP_SIGNALS", (signal.SIGINT, other))
    with interrupts.sigterm_stops(), pytest.raises(interrupts.StoppedBySignal):
        signal.raise_signal(other)
    with interrupts.StopRequest() as stop, stop.after_step():
        signal.raise_signal(other)
        assert stop.signal_number == other


def test_ram_that_cannot_be_pinned_ends_with_a_sentence(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr("torch.empty_like", refuse)
    with pytest.raises(OutOfMemoryError, match=r"training\.ema_on_cpu keeps data in pinned RAM"):
        pinned_like(torch.zeros(2), "training.ema_on_cpu", pinned=True)
