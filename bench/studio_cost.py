"""The cost of the studio for a run that it shows: steps with and without open pages, in turn."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.studio import Visitor, served
from impasto.runs import RunDirectory

ROUNDS = 30
PHASE_S = 6.0
CAUGHT_UP_S = 1.5
PAGES = 3
SHARE_STEPS = 200
_SETTINGS = (
    "training.max_steps=1000000",
    "logging.every_steps=1",
    "validation.every_steps=1000000",
    "previews.every_steps=1000000",
    "saving.state_every_steps=1000000",
)


@dataclass(frozen=True)
class Phase:
    """The steps of a period.

    Attributes:
        step_s: Seconds of the median step.
        cpu_s: CPU seconds of the trainer per step; other load on the machine adds little to it.
    """

    step_s: float
    cpu_s: float


def measure(folder: Path, rounds: int = ROUNDS, phase_s: float = PHASE_S) -> dict[str, str]:
    """Train the demo with and without three open pages of it and a poll of the list of runs.

    The studio is suspended for the steps without it, so that its start-up affects none of them.
    """
    alone, monitored, shares = [], [], []
    with trained(folder / "runs" / "demo") as (run, trainer), open_pages(run.path.parent) as server:
        for number in range(2 * rounds):
            if number % 4 in (0, 3):  # so that neither is always the first of a round
                server.suspend()
                alone.append(steps_of(run, trainer, phase_s))
                server.resume()
                time.sleep(CAUGHT_UP_S)
            else:
                cpu, began = cpu_of(server), time.monotonic()
                monitored.append(steps_of(run, trainer, phase_s))
                shares.append((cpu_of(server) - cpu) / (time.monotonic() - began))
    return {
        "a watched step against one alone, seconds": ratio(
            [phase.step_s for phase in monitored], [phase.step_s for phase in alone]
        ),
        "a watched step against one alone, CPU seconds of the trainer": ratio(
            [phase.cpu_s for phase in monitored], [phase.cpu_s for phase in alone]
        ),
        "share of one core that the studio takes meanwhile": (
            f"{100 * statistics.median(shares):.1f} %"
        ),
        "what a trainer does for whoever watches it": share_of(folder / "share"),
        "rounds, of so many seconds each way": f"{rounds}, {phase_s:.0f} s",
    }


def ratio(monitored: list[float], alone: list[float]) -> str:
    """Format the median of the rounds' ratios, its 95 % interval, and the seconds of a step alone.

    The interval uses order statistics (Conover, Practical Nonparametric Statistics, 3.2), which
    assume no distribution: on a shared machine it has long tails.
    """
    ratios = sorted(w / a for w, a in zip(monitored, alone, strict=True))
    reach = 0.98 * math.sqrt(len(ratios))  # 1.96 standard deviations of a binomial count, p = 1/2
    low = ratios[max(0, math.floor(len(ratios) / 2 - reach) - 1)]
    high = ratios[min(len(ratios) - 1, math.ceil(len(ratios) / 2 + reach))]
    middle = statistics.median(ratios)
    return f"{middle:.3f} (95 %: {low:.3f} to {high:.3f}; alone {statistics.median(alone):.3f} s)"


def share_of(folder: Path, steps: int = SHARE_STEPS) -> str:
    """Return the trainer's work for the studio, in per cent of the CPU time of its steps."""
    words = [sys.executable, "-m", "bench.studio_share", str(folder), str(steps)]
    done = subprocess.run(words, check=True, capture_output=True, text=True, encoding="utf-8")
    found = json.loads(done.stdout.splitlines()[-1])
    step_s = found.pop("step_s")
    parts = ", ".join(f"{part} {100 * share:.2f} %" for part, share in found.items())
    return f"{100 * sum(found.values()):.2f} % of {step_s:.3f} s ({parts})"


def steps_of(run: RunDirectory, trainer: psutil.Process, seconds: float) -> Phase:
    """Measure the steps of the next seconds, from the end of a step to the end of another."""
    began, cpu = next_step(run, trainer), cpu_of(trainer)
    time.sleep(seconds)
    ended, used = next_step(run, trainer), cpu_of(trainer) - cpu
    times = [
        line["time"]
        for line in run.read_metrics()
        if began <= line["step"] <= ended and "loss" in line
    ]
    steps = [after - before for before, after in itertools.pairwise(times)]
    return Phase(statistics.median(steps), used / (ended - began))


def next_step(run: RunDirectory, trainer: psutil.Process) -> int:
    """Return the number of the next step at the moment when its metrics are written.

    Raises:
        psutil.NoSuchProcess: The training has ended.
    """
    before = run.metrics_file.stat().st_size
    while run.metrics_file.stat().st_size == before:
        if trainer.status() == psutil.STATUS_ZOMBIE:
            raise psutil.NoSuchProcess(trainer.pid)
        time.sleep(0.002)
    return max(line["step"] for line in run.read_metrics())


def cpu_of(process: psutil.Process) -> float:
    """Return the CPU seconds of a process, user and system.

    On Linux they come from its CPU clock, which is not rounded to ticks.
    """
    if sys.platform == "linux":
        return time.clock_gettime(~process.pid << 3 | 2)  # as glibc's clock_getcpuclockid
    return sum(process.cpu_times()[:2])


@contextmanager
def trained(place: Path) -> Iterator[tuple[RunDirectory, psutil.Process]]:
    """Run the demo's training; yield it after 20 steps, and kill it afterwards."""
    words = [sys.executable, "-m", "impasto", "demo", "--out", str(place)]
    sets = [word for setting in _SETTINGS for word in ("--set", setting)]
    process = subprocess.Popen([*words, *sets], stdout=subprocess.DEVNULL)
    run = RunDirectory(place)
    try:
        while sum(1 for _ in run.read_metrics()) < 20:
            if process.poll() is not None:
                raise RuntimeError("the training of the demo has ended")
            time.sleep(0.5)
        yield run, psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


@contextmanager
def open_pages(runs: Path) -> Iterator[psutil.Process]:
    """Run the studio with three pages of the newest run open and its list of runs polled."""
    ended = threading.Event()
    with served(runs) as (server, address):
        visitor = Visitor(address)
        page = visitor.pages()[0]
        visitor.get(page)
        visitor.get(f"{page}/curves")
        streams = [visitor.open(f"{page}/stream") for _ in range(PAGES)]

        def read(stream: object) -> None:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                while not ended.is_set() and stream.readline():  # type: ignore[attr-defined]
                    pass

        def ask() -> None:
            while not ended.wait(5):
                visitor.get("/parts/runs")

        threads = [threading.Thread(target=read, args=(s,), daemon=True) for s in streams]
        threads.append(threading.Thread(target=ask, daemon=True))
        for thread in threads:
            thread.start()
        time.sleep(2)  # the server has started by then
        yield psutil.Process(server.pid)
        ended.set()
        threads[-1].join()
