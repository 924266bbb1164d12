"""Curves of large files of metrics take bounded memory, however many are asked for at once."""

import json
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from runs_made import made_run

from impasto.studio.curves import read_curves
from impasto.studio.pages import runs as pages

VALUES = {f"loss_{n}": 0.5 for n in range(10)}


@pytest.fixture
def run(folder):
    found = made_run(folder / "dog")
    with found.metrics_file.open("w", encoding="utf-8") as file:
        for step in range(20_000):
            file.write(json.dumps({"step": step, "time": 1.0, **VALUES}) + "\n")
    return found


def test_a_large_file_takes_few_bytes_for_a_value(run):
    """Ten values of 20,000 lines: 16 bytes each, and what array growth adds."""
    tracemalloc.start()
    curves = read_curves(run.metrics_file)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(curves) == 10
    assert most < 30 * 10 * 20_000


def test_a_step_that_no_run_reaches_is_left_out(run):
    with run.metrics_file.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 10**30, "loss_0": 1.0}) + "\n")
    steps, _ = read_curves(run.metrics_file)["loss_0"]
    assert max(steps) < 20_000


def test_large_files_are_read_one_after_the_other(client, studio, run, monkeypatch):
    """Of a page that compares runs, all of which it asks for at once."""
    at_once, most, guard = [0], [0], threading.Lock()

    def read(file, *, exact):
        with guard:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.1)
        with guard:
            at_once[0] -= 1
        return {}

    monkeypatch.setattr(pages, "read_curves", read)
    monkeypatch.setattr(pages, "SKETCHED_FROM", run.metrics_file.stat().st_size)
    address = f"/runs/{studio.folders.name_of(run)}/curves"
    with client, ThreadPoolExecutor(6) as visitors:
        answers = [*visitors.map(client.get, [f"{address}?exact=1"] * 6)]
        assert [answer.status_code for answer in answers] == [200] * 6
        assert most[0] == 1
        [*visitors.map(client.get, [address] * 6)]
        assert most[0] > 1, "first looks wait for nobody"
        most[0] = 0
        monkeypatch.setattr(pages, "SKETCHED_FROM", run.metrics_file.stat().st_size + 1)
        [*visitors.map(client.get, [f"{address}?exact=1"] * 6)]
        assert most[0] > 1, "small files are read at once"
