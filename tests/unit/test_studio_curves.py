"""Curves of large metrics files take bounded memory, however many are requested at once."""

import json
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from runs_made import made_run

from impasto.studio import curves, kept_curves
from impasto.studio.curves import read_curves
from impasto.studio.folders import address_of
from impasto.studio.kept_curves import KeptCurves
from impasto.studio.pages import runs as pages

VALUES = {f"loss_{n}": 0.5 for n in range(10)}
LINES = 5_000


@pytest.fixture
def run(folder):
    found = made_run(folder / "dog")
    with found.metrics_file.open("w", encoding="utf-8") as file:
        for step in range(LINES):
            file.write(json.dumps({"step": step, "time": 1.0, **VALUES}) + "\n")
    return found


def test_a_large_file_takes_few_bytes_for_a_value(run):
    """Ten values per line take 16 bytes each, plus the overhead of growing arrays."""
    tracemalloc.start()
    found = read_curves(run.metrics_file)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 10
    assert most < 30 * 10 * LINES


def test_a_step_that_no_run_reaches_is_left_out(run):
    with run.metrics_file.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 10**30, "loss_0": 1.0}) + "\n")
    steps, _ = read_curves(run.metrics_file)["loss_0"]
    assert max(steps) < LINES


def copies_of(run, count):
    """Write runs beside a run with the same metrics; cached curves of one do not serve another."""
    for n in range(count):
        made_run(run.path.with_name(f"copy-{n}")).metrics_file.write_bytes(
            run.metrics_file.read_bytes()
        )
        yield run.path.with_name(f"copy-{n}")


def test_large_files_are_read_one_after_the_other(client, studio, run, monkeypatch):
    """A page that compares runs requests all of them at once."""
    at_once, most, guard = [0], [0], threading.Lock()

    def read(file, *, exact):
        with guard:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.1)
        with guard:
            at_once[0] -= 1
        return {}

    monkeypatch.setattr(kept_curves, "read_curves", read)
    monkeypatch.setattr(kept_curves, "_MOST_ANSWERS", 0)
    size = run.metrics_file.stat().st_size
    for module in (pages, kept_curves):
        monkeypatch.setattr(module, "SKETCHED_FROM", size)
    addresses = [
        f"/runs/{address_of(studio.folders.runs, copy)}/curves" for copy in copies_of(run, 6)
    ]
    exact = [f"{address}?exact=1" for address in addresses]
    with client, ThreadPoolExecutor(6) as visitors:
        answers = [*visitors.map(client.get, exact)]
        assert [answer.status_code for answer in answers] == [200] * 6
        assert most[0] == 1
        [*visitors.map(client.get, addresses)]
        assert most[0] > 1, "first requests do not wait"
        most[0] = 0
        monkeypatch.setattr(pages, "SKETCHED_FROM", size + 1)
        [*visitors.map(client.get, exact)]
        assert most[0] > 1, "small files are read at once"


def test_exact_curves_are_read_once_as_long_as_the_file_is_as_it_was(
    client, studio, run, monkeypatch
):
    times = []

    def read(file, *, exact):
        times.append(exact)
        return read_curves(file, exact=exact)

    monkeypatch.setattr(kept_curves, "read_curves", read)
    for module in (curves, pages, kept_curves):
        monkeypatch.setattr(module, "SKETCHED_FROM", 1000)
    address = f"/runs/{studio.folders.name_of(run)}/curves"
    first = client.get(address)
    exact = client.get(f"{address}?exact=1")
    again = client.get(address)
    assert [a.headers["x-curves"] for a in (first, exact, again)] == ["sketched", "exact", "exact"]
    assert times == [False, True]
    assert first.json() != exact.json() == again.json()
    with run.metrics_file.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": LINES, "loss_0": 0.25}) + "\n")
    grown = client.get(f"{address}?exact=1").json()
    assert grown["loss_0"][1][-1] == 0.25
    assert times == [False, True, True]


def test_few_answers_are_kept_and_no_large_one(run, monkeypatch):
    kept = KeptCurves()
    monkeypatch.setattr(kept_curves, "_MOST_ANSWERS", 2)
    files = [copy / run.metrics_file.name for copy in copies_of(run, 3)]
    for file in files:
        kept.read(file, exact=True)
    assert [kept.find(file) is None for file in files] == [True, False, False]
    monkeypatch.setattr(kept_curves, "_MOST_BYTES", 1000)
    kept.read(files[0], exact=True)
    assert kept.find(files[0]) is None


def test_the_page_fetches_the_curves_early_and_by_the_same_address(client, studio, run):
    """The early fetch uses the script's address, or the browser would fetch the curves twice."""
    address = f"/runs/{studio.folders.name_of(run)}"
    head = client.get(address).text.partition("</head>")[0]
    assert f'<link rel="preload" as="fetch" href="{address}/curves" crossorigin' in head
