"""Stages: results in order; a bad item costs only itself, even if it kills its process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from impasto.data.engines.stages import Failure, LocalExecutor, chunks


class Square:
    """Squares numbers; fails for sevens, and ends its process for 13."""

    def __call__(self, batch):
        if 13 in batch and os.environ.get("IMPASTO_TEST_PARENT") != str(os.getpid()):
            os._exit(1)
        return [Failure("seven") if n == 7 else n * n for n in batch]


@pytest.mark.parametrize(("workers", "processes"), [(0, False), (3, False), (2, True)])
def test_results_come_in_the_order_of_the_items(workers, processes):
    executor = LocalExecutor(Square(), workers, processes)
    outcomes = [pair for batch in executor.run(chunks(range(12), 5)) for pair in batch]
    assert outcomes == [(n, Failure("seven") if n == 7 else n * n) for n in range(12)]


def test_an_item_that_ends_its_process_costs_only_itself(monkeypatch):
    monkeypatch.setenv("IMPASTO_TEST_PARENT", str(os.getpid()))
    executor = LocalExecutor(Square(), 1, processes=True, ahead=3)
    outcomes = dict(pair for batch in executor.run(chunks(range(10, 20), 2)) for pair in batch)
    assert "ended the process" in outcomes.pop(13).reason
    assert outcomes == {n: n * n for n in range(10, 20) if n != 13}


class Watched(LocalExecutor):
    """Stores its pools, so that a test can wait until one of them has broken."""

    def _pool(self, workers=None):
        pool = super()._pool(workers)
        self.__dict__.setdefault("pools", []).append(pool)
        return pool


def test_a_pool_that_breaks_while_batches_are_handed_over_costs_only_the_item(monkeypatch):
    monkeypatch.setenv("IMPASTO_TEST_PARENT", str(os.getpid()))
    executor = Watched(Square(), 1, processes=True, ahead=4)

    def source():
        yield [12]
        yield [13, 14]
        while not executor.pools[0]._broken:  # the next batch gets a broken pool
            time.sleep(0.01)
        yield [15]
        yield [16]

    outcomes = dict(pair for batch in executor.run(source()) for pair in batch)
    assert "ended the process" in outcomes.pop(13).reason
    assert outcomes == {n: n * n for n in (12, 14, 15, 16)}


def test_no_more_is_begun_than_is_looked_ahead():
    begun = []

    def source():
        for n in range(50):
            begun.append(n)
            yield [n]

    running = LocalExecutor(Square(), workers=2, ahead=2).run(source())
    next(running)
    assert len(begun) <= 5
    running.close()


HERE = Path(__file__).parent
SCRIPT = """
print("begun")
from impasto.data.engines.stages import LocalExecutor
from test_stages import Square
batches = LocalExecutor(Square(), 2, processes=True).run([[2], [3]])
print([pair for batch in batches for pair in batch])
"""


@pytest.mark.parametrize("way", ["file", "prompt"])
def test_a_script_without_a_guard_is_run_once(way, tmp_path):
    """`spawn` would run it again in each process, and cannot find interactive input."""
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    words = [str(tmp_path / "script.py")] if way == "file" else ["-"]
    found = subprocess.run(
        [sys.executable, *words],
        input=SCRIPT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert found.stdout.splitlines() == ["begun", "[(2, 4), (3, 9)]"], found.stderr
