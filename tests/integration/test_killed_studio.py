"""`kill -9` of the studio, of the training, and of both, at many moments: pages stay correct."""

import contextlib
import re
import shutil
import sys
import time

import psutil
import pytest
from flat_models import one_level_model
from runs import StopAt, exported
from truth import Place, check_every_page, opened

from impasto.runs import RunDirectory
from impasto.studio.folders import address_of
from impasto.training.trainer import train

nano_model = one_level_model

MOMENTS = tuple(0.4 + 0.8 * number for number in range(10))
"""Seconds after a request to resume: the run starts, loads, encodes, trains, saves."""

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows"),
]


def trainers_of(run):
    """Return the processes started to train a run, and the one that trains it."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "resume" in words and str(run.path) in words:
            found.append(process)
    if run.state().is_alive:  # a fork shows its parent's arguments
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(run.status()["pid"]))
    return found


def wait_for_end(process):
    """Wait until a process has ended; its parent may not have reaped it yet."""
    until = time.monotonic() + 60
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.02)


def shown_state(client, name):
    page = client.get(f"/runs/{name}")
    assert page.status_code == 200
    return re.search(r'class="state (\w+)"', page.text)[1]


def kill(victims, server, run):
    if victims != "trainer":
        server.kill()
        server.wait()
    if victims != "server":
        for process in trainers_of(run):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has already ended
                process.kill()
                wait_for_end(process)


@pytest.fixture
def place(tmp_path):
    return Place.make(tmp_path)


SETTINGS = {
    "training": {"max_steps": 500, "ema_decay": 0.9},
    "saving": {"state_every_steps": 10, "keep_states": 2},
}


@pytest.fixture(scope="module")
def crashed(shared_config):
    """A run that has crashed after twelve steps. Read-only by agreement."""
    config = shared_config(**SETTINGS)
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(12))
    return RunDirectory(config.output_dir)


@pytest.fixture
def run(crashed, place):
    """A copy of the crashed run among the studio's runs."""
    found = RunDirectory(place.runs / "resumed")
    shutil.copytree(crashed.path, found.path)
    text = found.config_file.read_text(encoding="utf-8")
    found.config_file.write_text(text.replace(str(crashed.path), str(found.path)), encoding="utf-8")
    yield found
    kill("trainer", None, found)


def resume_and_kill(place, run, victims, moment):
    """Resume a run through the studio, kill some of its processes, and check every page.

    `moment` is in seconds; None means during training, in a forked process.
    """
    saved = run.saved_steps()[-1]
    name = address_of([place.runs], run.path)
    with opened(place, forked=() if moment is None else ("plan-worker",)) as (client, server):
        answer = client.post(f"/runs/{name}/resume")
        assert answer.status_code in ((303,) if victims != "server" else (303, 409))
        if moment is None:
            until = time.monotonic() + 60
            while shown_state(client, name) != "training":
                assert time.monotonic() < until
                time.sleep(0.05)
        else:
            time.sleep(moment)
        kill(victims, server, run)
    with opened(place) as (client, _):
        check_every_page(client, place)
    if victims != "server":
        assert run.state().state in ("killed", "failed", "finished"), "a killed run still trains"
    assert run.saved_steps()[-1] >= saved, "a state was lost"


VICTIMS = pytest.mark.parametrize("victims", ["server", "trainer", "both"])


@VICTIMS
def test_every_page_tells_the_truth_of_a_resumed_run_that_was_killed(place, run, victims):
    resume_and_kill(place, run, victims, None)


@pytest.mark.slow
@VICTIMS
def test_whatever_is_killed_nothing_is_lost(place, run, shared_config, victims):
    """After kills at ten moments, the run ends with the bits of an undisturbed one."""
    whole = train(shared_config(output_dir=str(place.path / "whole"), **SETTINGS))
    name = address_of([place.runs], run.path)
    for moment in MOMENTS:
        resume_and_kill(place, run, victims, moment)
    with opened(place) as (client, _):
        if not run.state().is_alive and run.state().state != "finished":
            assert client.post(f"/runs/{name}/resume").status_code == 303
        until = time.monotonic() + 600
        while shown_state(client, name) != "finished":
            assert time.monotonic() < until
            time.sleep(0.5)
    assert exported(run) == exported(whole)
    lines = [line["step"] for line in run.read_metrics()]
    assert lines == sorted(set(lines)), "a line of metrics was written twice"
