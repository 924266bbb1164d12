"""`kill -9` of the studio, of the training, and of both, at many moments: pages tell the truth."""

import re
import sys
import time
from contextlib import closing

import httpx2
import psutil
import pytest
from browsing import served
from runs import StopAt, exported
from studios import FROM_HERE

from impasto.runs import RunDirectory
from impasto.studio.folders import address_of
from impasto.training.trainer import train

MOMENTS = tuple(0.4 + 0.8 * number for number in range(10))
"""Seconds after a run was asked to go on: it starts, loads, encodes, trains, saves."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows"),
]


def trainers_of(run):
    """The processes that were started to train a run."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "resume" in words and str(run.path) in words:
            found.append(process)
    return found


def wait_for_end(process):
    """Until a process is over; its parent may not have asked for its end yet."""
    until = time.monotonic() + 60
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.02)


def opened(address):
    """A client that has opened the printed address."""
    client = httpx2.Client(base_url=re.sub(r"/\?.*", "", address), headers=FROM_HERE)
    until = time.monotonic() + 60
    while True:
        try:
            client.get(address)
            return client
        except httpx2.TransportError:
            assert time.monotonic() < until


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
            process.kill()
            wait_for_end(process)


def both_states(client, name, run):
    """What the page says and what is true; a run that goes on may change between the two looks."""
    for _ in range(5):
        shown, true = shown_state(client, name), run.state()
        if shown == true.state:
            break
    return shown, true


@pytest.mark.parametrize("victims", ["server", "trainer", "both"])
def test_every_page_tells_the_truth_and_nothing_is_lost(train_config, tmp_path, victims):
    settings = {
        "training": {"max_steps": 500, "ema_decay": 0.9},
        "saving": {"state_every_steps": 10, "keep_states": 2},
    }
    whole = train(train_config(output_dir=str(tmp_path / "whole"), **settings))
    config = train_config(output_dir=str(tmp_path / "runs" / "dog"), **settings)
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(12))
    run = RunDirectory(config.output_dir)
    name = address_of([tmp_path / "runs"], run.path)
    saved = run.saved_steps()[-1]
    for moment in MOMENTS:
        with served(tmp_path / "runs") as (address, server), closing(opened(address)) as client:
            answer = client.post(f"/runs/{name}/resume")
            assert answer.status_code in ((303,) if victims != "server" else (303, 409))
            time.sleep(moment)
            kill(victims, server, run)
        with served(tmp_path / "runs") as (address, _), closing(opened(address)) as client:
            shown, true = both_states(client, name, run)
            assert shown == true.state
            if victims != "server":
                assert not true.is_alive
                assert shown in ("killed", "failed", "finished"), "not training for ever"
            for page in ("/", "/parts/runs", "/tasks", f"/runs/{name}/curves"):
                assert client.get(page).status_code == 200
            assert run.saved_steps()[-1] >= saved, "a state was lost"
            saved = run.saved_steps()[-1]
    with served(tmp_path / "runs") as (address, _), closing(opened(address)) as client:
        if not run.state().is_alive and run.state().state != "finished":
            assert client.post(f"/runs/{name}/resume").status_code == 303
        until = time.monotonic() + 600
        while shown_state(client, name) != "finished":
            assert time.monotonic() < until
            time.sleep(0.5)
    assert exported(run) == exported(whole)
    steps = [line["step"] for line in run.read_metrics()]
    assert steps == sorted(set(steps)), "a line of metrics was written twice"
