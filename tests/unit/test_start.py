"""start.py: one clear sentence for each way in which setting up can fail."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

START = Path(__file__).parents[2] / "start.py"


@pytest.fixture
def start():
    return runpy.run_path(str(START), run_name="start")


def test_an_old_python_is_refused_in_one_sentence():
    program = (
        "import runpy, sys; sys.version_info = (3, 10, 4); sys.argv = ['start.py', 'demo']; "
        f"runpy.run_path({str(START)!r}, run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "needs Python 3.11 or later, and this is Python 3.10.4" in result.stderr


@pytest.mark.parametrize(
    ("printed", "sentence"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk of"),
        ("Temporary failure in name resolution", "package registry cannot be reached"),
        ("something else", "the lines above say why"),
    ],
)
def test_a_failing_installation_is_explained(start, printed, sentence, capsys):
    command = [sys.executable, "-c", f"print({printed!r}); raise SystemExit(1)"]
    with pytest.raises(SystemExit) as caught:
        start["run"](command, "install the packages")
    assert caught.value.code == 1
    errors = capsys.readouterr().err
    assert "Could not install the packages" in errors
    assert sentence in errors


def test_words_are_split_and_handed_on(start, monkeypatch):
    monkeypatch.delenv("IMPASTO_TORCH_INDEX", raising=False)
    read = start["read_words"]
    assert read(["train", "x.toml", "--plan"]) == (["train", "x.toml", "--plan"], None, False)
    assert read(["--torch-index", "somewhere", "demo"]) == (["demo"], "somewhere", False)
    assert read(["--torch-index=somewhere", "--reinstall", "demo"]) == (["demo"], "somewhere", True)
    monkeypatch.setenv("IMPASTO_TORCH_INDEX", "elsewhere")
    assert read(["demo"]) == (["demo"], "elsewhere", False)
    with pytest.raises(SystemExit):
        read(["--fast", "demo"])


def test_an_installation_is_known_by_its_pins(start):
    same = start["fingerprint"](None)
    assert start["fingerprint"](None) == same
    assert start["fingerprint"]("elsewhere") != same


def test_pins_have_no_addresses(start):
    text = start["CONSTRAINTS"].read_text(encoding="utf-8")
    assert "://" not in text
    assert start["pinned"]("torch") == "torch==2.13.0"
