"""start.py: one clear sentence for each way in which the setup can fail."""

import ast
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import chain
from pathlib import Path

import pytest

from impasto.data.folders import formats

START = Path(__file__).parents[2] / "start.py"


@pytest.fixture
def start():
    return runpy.run_path(str(START), run_name="start")


def test_python_3_6_can_read_what_refuses_it():
    """Systems of 2018 have such a `python3`."""
    ast.parse(START.read_text(encoding="utf-8"), feature_version=(3, 6))


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

    def read(*words):
        rest, options = start["read_words"](list(words))
        return rest, options["index"], options["reinstall"], options["extras"]

    assert read("train", "x.toml", "--plan") == (["train", "x.toml", "--plan"], None, False, [])
    assert read("--torch-index", "there", "demo") == (["demo"], "there", False, [])
    assert read("--torch-index=there", "--reinstall", "demo") == (["demo"], "there", True, [])
    assert read("--with", "trackers", "--with=tagging") == (
        [],
        None,
        False,
        ["trackers", "tagging"],
    )
    monkeypatch.setenv("IMPASTO_TORCH_INDEX", "elsewhere")
    assert read("demo") == (["demo"], "elsewhere", False, [])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--fast", "demo"], "does not know the option --fast"),
        (["--torch-index"], "--torch-index needs a value"),
        (["--with", "magic", "demo"], "There is no extra magic; choose from"),
    ],
)
def test_wrong_options_end_with_one_sentence(start, words, sentence, capsys):
    with pytest.raises(SystemExit):
        start["read_words"](words)
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "checked", "given"),
    [
        ([], True, ["--dist", "worksteal"]),
        (["--fast", "-x"], False, ["tests/property", "-x"]),
        (["tests/unit", "-k", "scan"], False, ["tests/unit", "-k", "scan"]),
    ],
    ids=["all", "fast", "some"],
)
def test_tests_are_all_or_fast_or_as_said(start, monkeypatch, words, checked, given):
    inside, called, compiled = start["run_tests"].__globals__, [], []
    monkeypatch.setitem(inside, "call", lambda command, env, _: called.append((command, env)) or 0)
    monkeypatch.setitem(inside, "start_compiling", lambda _: Compiling(compiled))
    assert start["run_tests"](words, {"IMPASTO_LAUNCHER": "./start.sh"}) == 0
    assert compiled == ["wait"] * checked
    names = [Path(command[0]).stem for command, _ in called]
    assert names == [*(check[0] for check in start["CHECKS"] if checked), "pytest"]
    command, environment = called[-1]
    assert [word for word in command if word in given] == given
    assert "IMPASTO_LAUNCHER" not in environment
    assert ("OMP_NUM_THREADS" in environment) == (words[:1] != ["tests/unit"])
    ignored = [Path(word.partition("=")[2]) for word in command if word.startswith("--ignore=")]
    assert bool(ignored) == ("--fast" in words)
    assert all((START.parent / file).is_file() for file in ignored)


class Compiling:
    """A process that compiles the tests, and the calls that it receives."""

    def __init__(self, asked):
        self.wait, self.kill = (partial(asked.append, name) for name in ("wait", "kill"))


def test_a_check_that_fails_ends_all(start, monkeypatch):
    inside, compiled = start["run_tests"].__globals__, []
    monkeypatch.setitem(inside, "call", lambda command, *_: 3 if "mypy" in command[0] else 0)
    monkeypatch.setitem(inside, "start_compiling", lambda _: Compiling(compiled))
    assert start["run_tests"]([], {}) == 3
    assert compiled == ["kill"]


def test_a_verb_gets_the_extra_that_it_needs(start, tmp_path):
    extras = start["extras_of"]
    assert extras(["test"]) == ["dev"]
    assert extras(["demo"]) == ["tagging"]
    assert extras(["studio", "--open"]) == ["studio", "tagging"]  # it runs the demo and taggers
    assert extras(["dataset", "tag", str(tmp_path)]) == ["tagging"]
    assert extras(["dataset", "scan", str(tmp_path)]) == []
    assert extras(["train", "x\0.toml"]) == []
    assert set(chain(*start["EXTRAS"].values())) <= set(start["known_extras"]())


def test_the_studio_alone_opens_on_the_demo(start):
    assert start["completed"](["studio"]) == ["studio", "--demo", "--open"]
    demo = start["completed"](["studio", "--port", "80"])
    assert demo == ["studio", "--port", "80", "--demo", "--open"]
    remote = ["studio", "--listen=0.0.0.0"]
    assert start["completed"](remote) == [*remote, "--demo"]
    for words in (["studio", "--runs", "x"], ["studio", "--data=x"], ["studio", "--help"]):
        assert start["completed"](words) == words
    assert start["completed"](["train", "studio"]) == ["train", "studio"]


def test_pictures_of_a_phone_are_noticed(start, tmp_path):
    assert not start["holds_heif"](tmp_path / "nowhere")
    (tmp_path / "10_cat").mkdir()
    (tmp_path / "10_cat" / "IMG_1.HEIC").touch()
    assert start["holds_heif"](tmp_path)
    assert set(start["HEIF_ENDINGS"]) == formats.HEIF, "the extra must cover exactly these suffixes"


FAKE = """
import os, pathlib, sys
runs = pathlib.Path(sys.argv[1])
runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
if len(runs.read_text()) == 1:
    pathlib.Path(os.environ["IMPASTO_EXTRA_FILE"]).write_text({extra!r})
    raise SystemExit(7)
raise SystemExit(3)
"""


@pytest.mark.parametrize(
    ("extra", "have", "runs", "code"),
    [("trackers", ["tagging"], 2, 3), ("trackers", ["trackers"], 1, 7), ("magic", [], 1, 7)],
    ids=["missing", "installed already", "unknown"],
)
def test_an_extra_that_a_program_asks_for_is_installed_once(
    start, tmp_path, extra, have, runs, code
):
    file, asked = tmp_path / "fake.py", []
    file.write_text(FAKE.format(extra=extra))
    inside = start["run_program"].__globals__
    inside["program"] = lambda _: sys.executable
    inside["installed"] = lambda _: have
    inside["set_up"] = lambda extras, _: asked.append(extras)
    counter = tmp_path / "runs.txt"
    assert start["run_program"]([str(file), str(counter)], None, dict(os.environ)) == code
    assert len(counter.read_text()) == runs
    assert asked == ([["trackers"]] if runs == 2 else [])


@pytest.mark.parametrize(
    ("index", "system", "build"),
    [
        (None, "Linux", "CPU"),
        (None, "Windows", "CPU"),
        (None, "Darwin", "CPU"),
        ("there/whl/cpu/", "Linux", "CPU"),
        ("there/whl/cu130", "Windows", "CUDA"),
        ("there/whl/rocm7.0", "Linux", "ROCm"),
        ("somewhere", "Windows", "CUDA"),
    ],
)
def test_the_build_of_pytorch_decides_how_much_disk_is_asked_for(
    start, monkeypatch, index, system, build
):
    monkeypatch.setattr("platform.system", lambda: system)
    assert start["build_of"](index) == build
    assert start["NEEDED_GIB"]["CPU"] < start["NEEDED_GIB"]["CUDA"] < start["NEEDED_GIB"]["ROCm"]


def test_too_little_disk_is_said_with_both_numbers(start, monkeypatch, capsys):
    usage = shutil.disk_usage(START.parent)._replace(free=3 * 2**30)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    start["require_room"]("CPU")
    with pytest.raises(SystemExit):
        start["require_room"]("CUDA")
    message = capsys.readouterr().err
    for words in ("a CUDA build", "8.25 GiB", "only 3.0 GiB are free", "--build cpu"):
        assert words in message


@pytest.mark.parametrize(
    ("typed", "found", "name"),
    [
        ("python3", None, "python3"),
        ("/opt/py/bin/python3", "/usr/bin/python3", "/opt/py/bin/python3"),
        ("/home/u/.pyenv/versions/3.12/bin/python3", "/home/u/.pyenv/shims/python3", "python3"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="POSIX paths; Windows has the launcher py")
def test_hints_name_python_as_it_was_typed(start, monkeypatch, typed, found, name):
    monkeypatch.setattr("shutil.which", lambda _: found)
    monkeypatch.setattr("pathlib.Path.samefile", lambda *_: False)
    assert start["short_name"](typed) == name


def test_the_launcher_names_itself(start, monkeypatch):
    monkeypatch.setenv("IMPASTO_LAUNCHER", "./start.sh")
    assert start["called_as"]() == "./start.sh"


@pytest.mark.parametrize("file", ["README.md", ".ci/run", "scripts/check", "docs", "start.py"])
def test_no_command_needs_a_program_called_python(file):
    """A plain Debian or macOS has only python3."""
    path = START.parent / file
    for page in sorted(path.rglob("*.md")) if path.is_dir() else [path]:
        assert "python start.py" not in page.read_text(encoding="utf-8"), page


def test_an_installation_is_known_by_its_pins(start):
    same = start["fingerprint"](None)
    assert start["fingerprint"](None) == same
    assert start["fingerprint"]("elsewhere") != same


def test_pins_have_no_addresses(start):
    text = start["CONSTRAINTS"].read_text(encoding="utf-8")
    assert "://" not in text
    assert start["pinned"]("torch") == "torch==2.13.0"


POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


@POSIX
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_reaches_the_program(tmp_path, number):
    """A SIGTERM, as from `docker stop`, reaches impasto, which saves its state and reports it."""
    child = (
        "import os, signal, sys, time; "
        f"signal.signal({int(number)}, lambda *_: (os.write(1, b'saved\\n'), sys.exit(3))); "
        "print('ready', flush=True); time.sleep(100)"
    )
    program = (
        f"import runpy, signal, sys; signal.signal({int(number)}, signal.SIG_DFL); "
        f"start = runpy.run_path({str(START)!r}); "
        f"sys.exit(start['call']([sys.executable, '-c', {child!r}], None))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=60)[0] == "saved\n"
    assert process.returncode == 3


@POSIX
def test_a_signal_that_comes_while_the_program_is_started_reaches_it(tmp_path):
    ready = tmp_path / "ready"
    child = (
        "import os, pathlib, signal, sys, time; "
        "signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'saved\\n'), sys.exit(3))); "
        f"pathlib.Path({str(ready)!r}).touch(); time.sleep(100)"
    )
    program = f"""
import os, pathlib, runpy, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_DFL)
real = subprocess.Popen
def slow(*arguments, **options):
    process = real(*arguments, **options)
    while not pathlib.Path({str(ready)!r}).exists():
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)
    return process
start = runpy.run_path({str(START)!r})
subprocess.Popen = slow
sys.exit(start["call"]([sys.executable, "-c", {child!r}], None))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout) == (3, "saved\n")


@POSIX
def test_ctrl_c_while_installing_is_one_sentence_and_ends_the_installer(tmp_path):
    child = (
        f"import pathlib, time; pathlib.Path({str(tmp_path / 'ready')!r}).touch(); time.sleep(99)"
    )
    program = (
        "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"start = runpy.run_path({str(START)!r}); "
        f"start['waited']([sys.executable, '-c', {child!r}], None)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert errors.count("\n") == 1
    assert "stopped while installing" in errors


def test_two_do_not_install_at_once(tmp_path):
    program = (
        f"import pathlib, runpy, sys; start = runpy.run_path({str(START)!r}); "
        f"start['alone'].__wrapped__.__globals__['LOCK'] = pathlib.Path({str(tmp_path / 'x')!r})\n"
        "with start['alone'](): print('in', flush=True); sys.stdin.readline()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen([sys.executable, "-c", program], **pipes)
    assert first.stdout.readline() == "in\n"
    second = subprocess.Popen([sys.executable, "-c", program], **pipes)
    assert "Another start.py is installing here" in second.stdout.readline()
    first.kill()  # a dead process's lock is ignored
    first.communicate()
    assert second.communicate("\n", timeout=60)[0] == "in\n"


@POSIX
def test_ctrl_c_while_waiting_for_another_is_one_sentence(tmp_path):
    program = (
        "import pathlib, runpy, signal, sys; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"start = runpy.run_path({str(START)!r}); "
        f"start['alone'].__wrapped__.__globals__['LOCK'] = pathlib.Path({str(tmp_path / 'x')!r})\n"
        "with start['alone'](): print('in', flush=True); sys.stdin.readline()"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", program], text=True, **pipes) as first:
        assert first.stdout.readline() == "in\n"
        second = subprocess.Popen([sys.executable, "-c", program], text=True, **pipes)
        assert "Another start.py is installing here" in second.stdout.readline()
        second.send_signal(signal.SIGINT)
        errors = second.communicate(timeout=60)[1]
        first.communicate("\n", timeout=60)
    assert second.returncode == 1
    assert errors.count("\n") == 1
    assert "stopped while waiting for another start.py" in errors


def test_a_lock_that_cannot_be_written_is_one_sentence(start, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    names = start["alone"].__wrapped__.__globals__
    monkeypatch.setitem(names, "LOCK", tmp_path / "file" / ".venv.lock")
    with pytest.raises(SystemExit), start["alone"]():
        pass
    assert "cannot be written: " in capsys.readouterr().err


@pytest.fixture
def environment(start, tmp_path, monkeypatch):
    """A complete environment; the names of `start.py`, which tests may replace."""
    stamp = tmp_path / ".venv" / "impasto-installed.txt"
    stamp.parent.mkdir()
    stamp.write_text(start["fingerprint"](None), encoding="utf-8")
    names = start["set_up"].__globals__
    for name, value in (("VENV", stamp.parent), ("STAMP", stamp), ("LOCK", tmp_path / "lock")):
        monkeypatch.setitem(names, name, value)
    return names


@pytest.mark.usefixtures("environment")
def test_an_environment_that_cannot_be_removed_counts_as_none(start, monkeypatch, capsys):
    """On Windows a running program may block the removal: half of it may be gone."""
    assert start["installed"](None) == []

    def in_use(folder):
        raise PermissionError(13, "Permission denied", str(folder / "python.exe"))

    monkeypatch.setattr(shutil, "rmtree", in_use)
    with pytest.raises(SystemExit):
        start["set_up"]([], None, reinstall=True)
    assert start["installed"](None) is None
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "python.exe). End the programs that run from it" in told


@pytest.mark.parametrize(("card", "free_gib"), [(None, 99), ("an NVIDIA card", 1)])
def test_an_environment_stays_where_none_could_take_its_place(
    start, environment, tmp_path, monkeypatch, capsys, card, free_gib
):
    """The driver that the build needs is missing, or there is no space for it."""
    monkeypatch.setitem(environment, "graphics_card", lambda: card)
    monkeypatch.setattr("platform.system", lambda: "Windows")
    usage = shutil.disk_usage(tmp_path)._replace(free=free_gib << 30)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(SystemExit):
        start["set_up"]([], "build=cuda", reinstall=True)
    assert start["installed"](None) == []
    told = capsys.readouterr().err
    assert ("Free some space" if card else "finds no NVIDIA card") in told


def test_a_user_without_a_home_is_served(start, tmp_path):
    assert start["nearest_folder"](tmp_path / "nobody" / "home") == tmp_path
    assert start["nearest_folder"](Path("~nobody")).is_dir()
