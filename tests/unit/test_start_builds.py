"""start.py: which build of PyTorch comes to a machine with an NVIDIA card, and to one without."""

import runpy
import subprocess
from pathlib import Path

import pytest

START = Path(__file__).parents[2] / "start.py"
CARD = "NVIDIA GeForce RTX 3060"


@pytest.fixture
def start():
    return runpy.run_path(str(START), run_name="start")


@pytest.mark.parametrize(
    ("system", "card", "index", "backend", "build"),
    [
        ("Windows", CARD, None, "auto", "CUDA"),
        ("Windows", None, None, None, "CPU"),
        ("Windows", CARD, "build=cpu", None, "CPU"),
        ("Windows", CARD, "build=cuda", "auto", "CUDA"),
        ("Windows", CARD, "there/whl/cu130", None, "CUDA"),
        ("Linux", CARD, None, None, "CUDA"),
        ("Linux", None, None, None, "CUDA"),
        ("Linux", None, "build=cpu", "cpu", "CPU"),
        ("Linux", CARD, "build=cuda", None, "CUDA"),
        ("Darwin", None, None, None, "CPU"),
    ],
)
def test_the_build_is_that_of_the_machine_or_the_one_asked_for(
    start, monkeypatch, system, card, index, backend, build
):
    monkeypatch.setattr("platform.system", lambda: system)
    assert start["backend_of"](index, card) == backend
    assert start["build_of"](index, card) == build


def test_a_cuda_build_without_a_card_is_refused_with_what_to_do(start, monkeypatch, capsys):
    monkeypatch.setattr("platform.system", lambda: "Windows")
    with pytest.raises(SystemExit):
        start["backend_of"]("build=cuda", None)
    assert "Install the card's driver first; or give --torch-index" in capsys.readouterr().err


def test_one_line_says_what_comes_and_how_to_have_the_other(start, monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Windows")
    words = start["what_comes"](None, CARD)
    assert words.startswith(f"Found {CARD}: installing the CUDA build of PyTorch.")
    assert "--build cpu --reinstall" in words
    assert "\n" not in words
    assert "--build cuda" in start["what_comes"](None, None)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    assert start["what_comes"](None, None).startswith(
        "Found no NVIDIA card; installing the CUDA build of PyTorch, which needs none. "
    )


@pytest.mark.parametrize("has_uv", [True, False])
def test_a_build_is_installed_by_its_name_and_no_address(start, has_uv):
    ran = []
    inside = start["install_build"].__globals__
    inside["run"] = lambda command, _: ran.append(command)
    installer = ["uv", "pip", "install"] if has_uv else ["python", "-m", "pip", "install"]
    start["install_build"]("auto", "uv" if has_uv else None, installer)
    assert ran[-1][-3:] == ["--torch-backend", "auto", "torch==2.13.0"]
    assert len(ran) == (1 if has_uv else 2)
    assert not any("://" in word for command in ran for word in command)


def test_a_word_of_the_option_is_checked(start, capsys):
    assert start["read_words"](["--build", "cpu", "demo"])[1]["index"] == "build=cpu"
    with pytest.raises(SystemExit):
        start["read_words"](["--build=rocm", "demo"])
    assert "--build is cpu or cuda, not rocm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("printed", "code", "card"),
    [(f"{CARD}\nTesla T4\n", 0, CARD), ("", 0, None), ("NVIDIA-SMI has failed", 9, None)],
)
def test_the_card_is_what_nvidia_smi_names(start, monkeypatch, printed, code, card):
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/nvidia-smi")
    answer = subprocess.CompletedProcess([], code, printed, "")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: answer)
    assert start["graphics_card"]() == card


def test_without_a_driver_there_is_no_card(start, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert start["graphics_card"]() is None
