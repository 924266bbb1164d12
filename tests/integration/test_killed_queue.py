"""The queue on real runs: after any kill, each run is trained once, to the same bits."""

import os
import signal
import subprocess
import sys
import time

import pytest
from browsing import end_queue
from flat_models import one_level_model
from runs import exported
from support.warm import running

from impasto.runs import RunDirectory
from impasto.runs.queue import Queue
from impasto.training.trainer import train

nano_model = one_level_model


def eventually(holds, seconds=120.0):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def started(tmp_path):
    """Collects processes, which are ended with the test."""
    found = []
    yield found
    for process in found:
        process.kill()
        process.wait()
    end_queue(tmp_path / "queue")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
@pytest.mark.parametrize("every", [3, pytest.param(0, marks=pytest.mark.slow)])
def test_what_is_killed_is_continued_and_comes_to_the_same(
    run_file, train_config, tmp_path, started, every
):
    """`kill -9` of runner and training, with or without a state; then the same command again."""
    settings = {"training": {"max_steps": 30}, "saving": {"state_every_steps": every}}
    whole = train(train_config(output_dir=str(tmp_path / "whole"), **settings))
    folder, run = tmp_path / "queue", RunDirectory(tmp_path / "run")
    Queue(folder).add(run_file(**settings).read_text(encoding="utf-8"), "dog", tmp_path)
    words = [sys.executable, "-m", "impasto", "queue", "run", "--queue", str(folder)]
    forks = running.with_forks()
    runner = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=forks)
    started.append(runner)
    eventually(lambda: sum(1 for _ in run.read_metrics()) > 5)
    os.kill(run.status()["pid"], signal.SIGSTOP)  # it stays between its steps
    assert Queue(folder).find(1).state == "working"
    runner.kill()
    runner.wait()
    assert Queue(folder).find(1).state == "working", "its training continues"
    os.kill(run.status()["pid"], signal.SIGKILL)
    eventually(lambda: Queue(folder).find(1).state == "waiting")
    assert bool(run.saved_steps()) == bool(every)
    assert run.exported_model() is None, "it was killed between its steps"
    again = subprocess.run(
        words, stdout=subprocess.PIPE, text=True, timeout=300, check=False, env=forks
    )
    assert again.returncode == 0
    job = Queue(folder).find(1)
    assert (job.state, job.tries) == ("done", 2), again.stdout
    assert exported(run) == exported(whole)
