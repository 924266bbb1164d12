"""start.py: the build of PyTorch for a machine with an NVIDIA card, and for one without."""

import contextlib
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
        ("Linux", None, None, "cpu", "CPU"),
        ("Linux", None, "build=cuda", None, "CUDA"),
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
    for system in ("Windows", "Linux"):
        monkeypatch.setattr("platform.system", lambda system=system: system)
        assert start["what_comes"](None, None) == (
            "Found no NVIDIA card: installing the CPU build of PyTorch. If there is one, install "
            "its driver, and then the CUDA build: --build cuda --reinstall, before the verb."
        )
    assert start["what_comes"]("build=cuda", None).startswith(
        "Found no NVIDIA card; installing the CUDA build of PyTorch, which needs none. For the CPU"
    )
    assert "For the CUDA build: --build cuda" in start["what_comes"]("build=cpu", CARD)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert start["what_comes"](None, None) == (
        "Found no NVIDIA card: installing the CPU build of PyTorch."
    )


OLD, NOW = "2.1.0", "2.13.0"


@pytest.mark.parametrize(
    ("system", "card", "there", "backend"),
    [
        ("Linux", None, (NOW, "CUDA"), None),  # the existing build is kept
        ("Linux", CARD, (NOW, "CPU"), None),
        ("Windows", CARD, (NOW, "CPU"), None),
        ("Linux", None, (OLD, "CUDA"), None),  # with other pins the same build is installed
        ("Linux", CARD, (OLD, "CPU"), "cpu"),
        ("Linux", None, (OLD, "CPU"), "cpu"),
        ("Windows", CARD, (OLD, "CPU"), None),
        ("Windows", CARD, (OLD, "CUDA"), "auto"),
        ("Linux", None, (NOW, "ROCm"), None),
    ],
)
def test_the_build_that_is_there_stays(start, monkeypatch, system, card, there, backend):
    monkeypatch.setattr("platform.system", lambda: system)
    assert start["backend_of"](None, card, there) == backend


def test_another_build_than_the_one_that_is_there_wants_a_new_environment(
    start, monkeypatch, capsys
):
    monkeypatch.setattr("platform.system", lambda: "Linux")
    with pytest.raises(SystemExit):
        start["backend_of"]("build=cuda", CARD, (NOW, "CPU"))
    assert ".venv has the CPU build of PyTorch. Give --reinstall too" in capsys.readouterr().err
    assert start["backend_of"]("build=cpu", CARD, (NOW, "CPU")) is None


def test_no_other_build_comes_in_place_of_one_that_only_an_index_has(start, monkeypatch, capsys):
    monkeypatch.setattr("platform.system", lambda: "Linux")
    with pytest.raises(SystemExit):
        start["backend_of"](None, None, (OLD, "ROCm"))
    assert "Give --torch-index with the address of its ROCm builds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n",
         ("2.13.0", "CPU")),
        ("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\n", ("2.13.0", "CUDA")),
        ("__version__ = '2.13.0+rocm7'\ncuda = None\nhip: Optional[str] = '7.0'\n",
         ("2.13.0", "ROCm")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["lib/python3.12/site-packages", "Lib/site-packages"])
def test_the_build_that_is_there_is_told_without_importing_it(start, tmp_path, lines, found, place):
    start["torch_there"].__globals__["VENV"] = tmp_path
    assert start["torch_there"]() is None
    (tmp_path / place / "torch").mkdir(parents=True)
    (tmp_path / place / "torch" / "version.py").write_text(lines, encoding="utf-8")
    assert start["torch_there"]() == found


def test_a_build_that_was_asked_for_once_needs_no_second_asking(start, tmp_path):
    stamp = tmp_path / "stamp.txt"
    start["installed"].__globals__["STAMP"] = stamp
    stamp.write_text(f"{start['fingerprint']('build=cuda')} dev", encoding="utf-8")
    assert start["installed"](None) == ["dev"]
    assert start["installed"]("build=cuda") == ["dev"]
    assert start["installed"]("build=cpu") is None
    stamp.write_text(start["fingerprint"]("elsewhere"), encoding="utf-8")
    assert start["installed"](None) is None


@pytest.mark.parametrize("index", ["a folder/of wheels", "build=cpu", None])
def test_what_was_installed_from_an_index_is_known_without_it(start, tmp_path, index):
    """PyTorch for ROCm, for example; adding an extra later keeps the index."""
    start["installed"].__globals__["STAMP"] = tmp_path / "stamp.txt"
    start["write_stamp"](index, ["dev"])
    assert start["installed"](index) == start["installed"](None) == ["dev"]
    assert start["installed"]("another") is None
    start["write_stamp"](None, ["dev", "studio"])
    assert start["installed"](index) == start["installed"](None) == ["dev", "studio"]


@pytest.mark.parametrize(("index", "ends"), [(None, False), ("build=cpu", True)])
def test_without_the_index_of_the_cpu_build_the_registry_has_to_do(
    start, monkeypatch, tmp_path, capsys, index, ends
):
    """Only a package registry is needed, but a requested build is never replaced by another."""
    ran, inside = [], start["install"].__globals__
    output = b"error: Request failed\ncause: dns error"

    def waited(command, _):
        ran.append([str(word) for word in command])
        return subprocess.CompletedProcess(command, int("--torch-backend" in command), output)

    inside |= {"VENV": tmp_path / "new", "STAMP": tmp_path / "stamp.txt", "waited": waited}
    inside |= {"graphics_card": lambda: None}
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("shutil.which", lambda _: "uv")
    with pytest.raises(SystemExit) if ends else contextlib.nullcontext():
        start["install"]([], index, None)
    said = capsys.readouterr()
    assert ran[-1][-1:] == (["torch==2.13.0"] if ends else [str(START.parent)])
    assert ("PyTorch comes from the package registry" in said.out) is not ends
    assert ("the package registry cannot be reached" in said.err) is ends
    assert (tmp_path / "stamp.txt").exists() is not ends


@pytest.mark.parametrize("has_uv", [True, False])
def test_a_build_is_installed_by_its_name_and_no_address(start, has_uv):
    ran = []
    inside = start["install_build"].__globals__
    inside["run"] = lambda command, _, may_fail: ran.append(command) or True
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


def test_new_pins_come_from_the_index_of_the_old_ones(start, tmp_path, monkeypatch):
    """An old driver needs the once requested build after an update too."""
    inside, asked = start["installed"].__globals__, []
    monkeypatch.setitem(inside, "STAMP", tmp_path / "stamp.txt")
    monkeypatch.setitem(inside, "VENV", tmp_path / "none")
    monkeypatch.setitem(inside, "alone", contextlib.nullcontext)
    monkeypatch.setitem(inside, "install", lambda extras, index, have: asked.append((index, have)))
    start["write_stamp"]("there/whl/cu118", ["dev"])
    monkeypatch.setitem(inside, "fingerprint", lambda index: f"new pins, {index}".replace(" ", ""))
    start["set_up"](["dev"], None)
    start["set_up"](["dev"], "there/whl/cu130")
    start["set_up"](["dev"], None, reinstall=True)
    assert asked == [
        ("there/whl/cu118", None),
        ("there/whl/cu130", None),
        ("there/whl/cu118", None),
    ]


@pytest.mark.parametrize("left", ["", " \n"])
def test_a_stamp_that_a_full_disk_has_emptied_is_none(start, tmp_path, left):
    (tmp_path / "stamp.txt").write_text(left, encoding="utf-8")
    start["installed"].__globals__["STAMP"] = tmp_path / "stamp.txt"
    assert start["installed"](None) is None
    start["write_stamp"]("build=cpu", ["dev"])
    assert start["installed"](None) == ["dev"]
