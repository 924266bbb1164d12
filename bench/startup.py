"""The start-up times that a user waits for: the help text, and importing the trainer."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 5


def measure(scratch: Path) -> dict[str, str]:
    del scratch
    commands = {
        "impasto --help, s": [sys.executable, "-m", "impasto", "--help"],
        "python -c pass, s": [sys.executable, "-c", "pass"],
        "import of the trainer, s": [sys.executable, "-c", "import impasto.training.trainer"],
    }
    return {name: f"{median_seconds(command):.2f}" for name, command in commands.items()}


def median_seconds(command: list[str]) -> float:
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)
