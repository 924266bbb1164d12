"""Commands in forks of a warm parent end, fail and are killed like those of fresh interpreters."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.warm import running

from impasto.version import __version__

pytestmark = pytest.mark.skipif(
    not running.is_possible(), reason="processes with PyTorch cannot be forked here"
)

SAYS = """
import json, os, sys
print(json.dumps([sys.argv[1:], os.getcwd(), os.environ.get("IMPASTO_SAID"), sys.stdin.read()]))
sys.stderr.write("gr\\u00fcn")
"""
ENDS = {
    "falls off its end": "import atexit; atexit.register(print, 'after'); print('before')",
    "a code": "raise SystemExit(7)",
    "words": "raise SystemExit('wrong')",
    "Ctrl-C": "raise KeyboardInterrupt",
    "kill -9": "import os; print('lost'); os.kill(os.getpid(), 9)",
    "at once": "import os; os._exit(3)",
    "a thread": "import threading; threading.Timer(0.2, print, ['late']).start()",
}


@pytest.fixture
def forked(monkeypatch):
    """Make starting an interpreter fail."""
    monkeypatch.setattr(running.subprocess, "Popen", None)


@pytest.fixture(scope="module", autouse=True)
def parent():
    assert running.warm_parent(os.environ)


def both(*words, **options):
    return [running.run(*words, fresh=fresh, **options) for fresh in (False, True)]


@pytest.mark.parametrize("end", ENDS)
def test_it_ends_as_a_fresh_one(end):
    warm, fresh = both("-c", ENDS[end])
    assert (warm.returncode, warm.stdout) == (fresh.returncode, fresh.stdout)
    assert warm.stderr.splitlines()[-1:] == fresh.stderr.splitlines()[-1:]


def test_words_folder_variables_and_streams_are_its_own(tmp_path):
    env = {**os.environ, "IMPASTO_SAID": "so"}
    warm, fresh = both("-c", SAYS, "a b", "ü", cwd=tmp_path, env=env, input="asked\n")
    assert warm.stdout == fresh.stdout
    assert str(tmp_path) in warm.stdout
    assert "asked" in warm.stdout
    assert warm.stderr == fresh.stderr == "grün"


def test_files_and_modules_are_run_as_main(tmp_path):
    (tmp_path / "beside.py").write_text("NAME = 'beside'", encoding="utf-8")
    program = "import sys, beside\nprint(__name__, __file__, sys.argv, beside.NAME, sys.path[0])"
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    for words in ([tmp_path / "program.py", 1], ["-m", "program", 2], ["-m", "absent"]):
        warm, fresh = both(*words, cwd=tmp_path)
        assert (warm.returncode, warm.stdout) == (fresh.returncode, fresh.stdout)
        assert warm.stderr == fresh.stderr


def test_it_has_imported_the_libraries_and_no_checks_of_shapes(forked):
    program = "import sys; print('torch' in sys.modules, 'beartype' in sys.modules)"
    assert running.run("-c", program).stdout == "True False\n"


def test_what_ray_left_in_the_environment_keeps_no_command_from_being_forked(forked, monkeypatch):
    """An earlier test may have imported Ray; the parent has not, so nothing has read the
    variables."""
    monkeypatch.setenv("RAY_CLIENT_MODE", "0")
    monkeypatch.setenv("PYTHONBREAKPOINT", "ray.util.rpdb._driver_set_trace")
    program = "import os, sys; print('ray' in sys.modules, os.environ['RAY_CLIENT_MODE'])"
    assert running.run("-c", program).stdout == "False 0\n"


def test_it_is_a_process_of_its_own(forked):
    process = running.start("-c", "import time; time.sleep(600)")
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    process.terminate()
    assert process.wait() == -signal.SIGTERM
    process.communicate()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


@pytest.mark.parametrize(
    ("name", "value"), [("PYTHONHASHSEED", "1"), ("ATEN_CPU_CAPABILITY", "default")]
)
def test_what_an_import_has_read_is_read_anew(name, value):
    """Python or PyTorch reads these variables at start-up, so a fork would be too late."""
    environment = {**os.environ, name: value}
    assert running.warm_parent(environment) is None
    done = running.run("-c", f"import os; print(os.environ[{name!r}])", env=environment)
    assert done.stdout == f"{value}\n"


@pytest.mark.parametrize("end", ["raise SystemExit(5)", "import os; os.kill(os.getpid(), 9)"])
def test_the_stand_in_of_a_launched_process_ends_as_it_does(end):
    words = running.launched(["-c", f"print('said', flush=True)\n{end}"], os.environ)[1:]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (5 if "5" in end else -9, "said\n")


def test_a_stand_in_hands_on_signals_and_takes_its_process_with_it():
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    words = running.launched(["-c", program], os.environ)[1:]
    for number in (signal.SIGTERM, signal.SIGKILL):
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as stand_in:
            process = int(stand_in.stdout.readline())
            stand_in.send_signal(number)
            assert stand_in.wait() == -number
            assert stand_in.stdout.read() == ""  # ends when all writers have closed it
        with pytest.raises(ProcessLookupError):
            while True:  # its parent reaps it at once
                os.kill(process, 0)


def test_this_interpreter_is_the_one():
    assert running.run("-c", "import sys; print(sys.executable)").stdout.strip() == sys.executable


STARTS = """
import subprocess, sys
for words in (["-P", "-m", "impasto", "--version"], ["-c", "import sys; print(len(sys.modules))"]):
    subprocess.run([sys.executable, *words])
"""


@pytest.mark.parametrize("only", [(), ("train", "--version"), ("train",)])
def test_commands_that_a_process_starts_are_forked_and_interpreters_are_not(tmp_path, only):
    """A process's own Impasto commands are forked, as a studio's are; here requests are
    recorded."""
    env = running.with_forks(only=only)
    stand_in, noting = Path(env[running.PYTHON]), tmp_path / "python"
    noting.write_text(
        stand_in.read_text(encoding="utf-8").replace("exec", "echo asked; exec", 1),
        encoding="utf-8",
    )
    noting.chmod(0o755)
    env[running.PYTHON] = str(noting)
    done = subprocess.run(
        [sys.executable, "-c", STARTS], env=env, capture_output=True, text=True, check=False
    )
    *asked, version, modules = done.stdout.splitlines()
    assert asked == (["asked"] if only != ("train",) else [])
    assert version == f"impasto, version {__version__}"
    assert int(modules) < 200
    assert done.stderr == ""
