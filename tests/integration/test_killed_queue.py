"""The queue on real runs: whatever is killed, each is trained once, to the same bits."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import impasto
from runs import exported

from impasto.runs import RunDirectory
from impasto.runs.queue import Queue
from impasto.training.trainer import train


def eventually(holds, seconds=120.0):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def started():
    """Processes that are ended with the test."""
    found = []
    yield found
    for process in found:
        process.kill()
        process.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
def test_what_is_killed_is_continued_and_comes_to_the_same(
    run_file, train_config, tmp_path, started
):
    """`kill -9` of runner and training, before the first state and after it; one command again."""
    settings = {"training": {"max_steps": 90}, "saving": {"state_every_steps": 40}}
    whole = train(train_config(output_dir=str(tmp_path / "whole"), **settings))
    folder, run = tmp_path / "queue", RunDirectory(tmp_path / "run")
    added = impasto("queue", "add", run_file(**settings), "--queue", folder)
    assert added.returncode == 0, added.stderr
    words = [sys.executable, "-m", "impasto", "queue", "run", "--queue", str(folder)]
    for step, kept in ((10, []), (45, [40])):
        runner = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        started.append(runner)
        eventually(lambda step=step: sum(1 for _ in run.read_metrics()) > step)
        assert Queue(folder).find(1).state == "working"
        runner.kill()
        runner.wait()
        assert Queue(folder).find(1).state == "working", "its training lives on"
        os.kill(run.status()["pid"], signal.SIGKILL)
        eventually(lambda: Queue(folder).find(1).state == "waiting")
        assert run.saved_steps() == kept, "it was killed in the middle"
    again = impasto("queue", "run", "--queue", folder)
    assert again.returncode == 0, again.stderr
    job = Queue(folder).find(1)
    assert (job.state, job.tries) == ("done", 3), again.stdout
    assert exported(run) == exported(whole)
