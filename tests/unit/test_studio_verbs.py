"""Commands that a page waits for: every failure is an error with a sentence."""

import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_run_status import GONE, make_run

from impasto.errors import RunError
from impasto.runs.processes import SAFELY
from impasto.studio.machine import Machine
from impasto.studio.pages import runs as run_pages
from impasto.studio.verbs import ask_verb, run_verb


class Ended:
    """A process that has ended."""

    def __init__(self, printed=b"", code=0, error=b""):
        self.stdout, self.returncode, self.stderr = printed, code, error


@pytest.fixture
def ending(monkeypatch):
    """Make commands end as the test sets; return their arguments."""
    started = []

    def choose(ended):
        def run(words, **options):
            started.append((words, options))
            if isinstance(ended, Exception):
                raise ended
            return ended

        monkeypatch.setattr(subprocess, "run", run)
        return started

    return choose


def test_a_command_is_no_part_of_the_task_that_the_studio_may_be(ending, tmp_path, monkeypatch):
    monkeypatch.setenv("IMPASTO_TASK", str(tmp_path))
    started = ending(Ended(b"{}"))
    assert ask_verb(["a", tmp_path]) == {}
    ((words, options),) = started
    assert words[1:] == [*SAFELY, "-m", "impasto", "a", str(tmp_path)]
    assert "IMPASTO_TASK" not in options["env"]
    assert os.environ["IMPASTO_TASK"] == str(tmp_path)


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (Ended(code=5, error=b"Warning: old\nError: There is no file <x>.\n"), "There is no file"),
        (Ended(code=5, error=b"Error: bad. Error: said twice."), "bad. Error: said twice"),
        (Ended(code=9), "exit code 9"),
        (subprocess.TimeoutExpired("impasto", 1), "takes longer than 1 s"),
        (FileNotFoundError(2, "none", "/nowhere"), "could not be started"),
    ],
)
def test_what_went_wrong_is_one_kind_of_error(ending, tmp_path, ended, words):
    ending(ended)
    with pytest.raises(RunError, match=words) as caught:
        run_verb(["doctor"], patience_s=1)
    assert not str(caught.value).startswith("Error: ")
    with pytest.raises(RunError):
        Machine(tmp_path / "machine.json", tmp_path).examine()
    assert not (tmp_path / "machine.json").exists()


def test_requests_that_wait_for_a_command_hold_no_other(client, studio, folder, monkeypatch):
    run = make_run(folder / "dog", phase="finished", process=GONE)
    page = f"/runs/{studio.folders.name_of(run)}/report"
    waiting, over = threading.Semaphore(0), threading.Event()

    def wait(_):
        waiting.release()
        over.wait()
        raise RunError("It is over.")

    monkeypatch.setattr(run_pages, "run_verb", wait)
    with client, ThreadPoolExecutor(41) as visitors:
        asked = [visitors.submit(client.get, page) for _ in range(40)]
        try:
            for _ in range(5):
                assert waiting.acquire(timeout=60)
            assert visitors.submit(client.get, "/tasks").result(60).status_code == 200
        finally:
            over.set()
        assert {one.result().status_code for one in asked} == {500}


@pytest.mark.parametrize("printed", [b"", b"{", b"[" * 100_000])
def test_an_answer_that_is_no_json_is_an_error(ending, printed):
    ending(Ended(printed))
    with pytest.raises(RunError, match="did not answer as expected"):
        ask_verb(["doctor"])
