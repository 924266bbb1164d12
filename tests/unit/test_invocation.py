"""Hints to paste: the command as it was called, quoted, and how to install what is missing."""

import os
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from windows_os import WindowsOs

from impasto import invocation
from impasto.errors import MissingDependencyError

SOURCE = Path(invocation.__file__).parent
DOCS = SOURCE.parents[1] / "docs"


@pytest.fixture(autouse=True)
def called_directly(monkeypatch):
    for name in (invocation.PROGRAM, invocation.EXTRA_FILE, invocation.EXTRAS):
        monkeypatch.delenv(name, raising=False)


def test_start_py_says_how_it_was_called(monkeypatch):
    monkeypatch.setenv(invocation.PROGRAM, "python3 start.py")
    assert invocation.command("resume", Path("run")) == "python3 start.py resume run"
    assert invocation.install_extra("tagging") == "python3 start.py --with tagging"


def test_a_script_on_the_path_goes_by_its_name_and_another_by_its_path(monkeypatch, tmp_path):
    script = tmp_path / "bin" / "impasto"
    script.parent.mkdir()
    script.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(script), "train"])
    monkeypatch.setattr("shutil.which", lambda _: str(script))
    assert invocation.program() == "impasto"
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert invocation.program() == invocation.quoted(script)
    monkeypatch.chdir(tmp_path)
    assert invocation.program() == str(Path("bin") / "impasto")


def test_a_module_goes_by_the_python_that_was_typed(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SOURCE / "__main__.py"), "train"])
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "impasto", "train"])
    assert invocation.program() == "python3 -m impasto"


@pytest.mark.skipif(os.name == "nt", reason="quoting of a POSIX shell")
@pytest.mark.parametrize("word", ["my run", "it's", "a;b", "$HOME", "*", "ü", "plain/path-1.toml"])
def test_words_survive_a_posix_shell(word):
    assert shlex.split(invocation.command("resume", word))[-2:] == ["resume", word]


@pytest.mark.parametrize(
    ("word", "typed"),
    [("C:\\my run", '"C:\\my run"'), ("C:\\run", "C:\\run"), ("a&b", '"a&b"')],
)
def test_words_are_quoted_for_windows(monkeypatch, word, typed):
    monkeypatch.setattr("impasto.invocation.os", WindowsOs())
    assert invocation.quoted(word) == typed


def test_an_extra_is_installed_from_the_checkout_and_never_by_the_projects_name(monkeypatch):
    monkeypatch.setattr(sys, "prefix", "/somewhere/else")
    typed = shlex.split(invocation.install_extra("tagging"))
    assert typed[-2:] == ["-e", f"{SOURCE.parents[1]}[tagging]"]
    monkeypatch.setattr(invocation, "_checkout", lambda: None)
    assert shlex.split(invocation.install_extra("tagging"))[-1].startswith("onnxruntime")
    assert "impasto" not in shlex.split(invocation.install_extra("trackers"))


def test_an_environment_that_start_py_made_is_added_to_by_it(monkeypatch, tmp_path):
    (tmp_path / invocation.STAMP).touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    hint = invocation.install_extra("trackers")
    assert hint.endswith("--with trackers")
    assert "start.py" in hint


def test_start_py_hears_of_a_missing_extra_and_the_user_does_not(monkeypatch, tmp_path, capsys):
    from impasto.cli.main import run_and_report

    def fails():
        raise invocation.missing_extra("trackers", "logging.trackers asks for wandb.")

    with pytest.raises(SystemExit) as caught:
        run_and_report(fails)
    assert caught.value.code == MissingDependencyError.exit_code
    assert "Install it with: " in capsys.readouterr().err
    monkeypatch.setenv(invocation.EXTRA_FILE, str(tmp_path / "extra.txt"))
    with pytest.raises(SystemExit):
        run_and_report(fails)
    assert (tmp_path / "extra.txt").read_text(encoding="utf-8") == "trackers"
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(invocation.EXTRAS, "tagging trackers")  # it exists, but does not work
    with pytest.raises(SystemExit):
        run_and_report(fails)
    assert "Install it with: " in capsys.readouterr().err


def test_every_extra_that_may_be_missing_is_in_pyproject():
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    pattern = re.compile(r"missing_extra\(\s*\"([a-z]+)\"")
    asked = {
        name
        for path in SOURCE.rglob("*.py")
        for name in pattern.findall(path.read_text(encoding="utf-8"))
    }
    assert {"tagging", "trackers", "deepspeed"} <= asked
    assert asked <= set(project["project"]["optional-dependencies"])


def test_nothing_advises_to_install_the_project_by_its_name():
    """The project's name on the package registry does not belong to it, so no hint uses it."""
    pattern = re.compile(r"pip install\s+['\"]?impasto")
    pages = [*SOURCE.rglob("*.py"), *DOCS.rglob("*.md"), *DOCS.parent.glob("*.md")]
    assert not [str(page) for page in pages if pattern.search(page.read_text(encoding="utf-8"))]


def test_only_one_place_writes_pip_commands():
    found = [
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if "pip install" in path.read_text(encoding="utf-8")
    ]
    assert found == ["invocation.py"]
