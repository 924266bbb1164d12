"""A full-size SD 1.5 with random weights, 256 px, batch 1, float32: its start and its step.

The trainer's step runs in a process that allocates memory as the command line does, with steps
after and in the backward pass; the loops of other programs run in a process that does not. The
processes take turns.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import tomli_w

from bench.full_size import changed, settings

ROUNDS, STEPS = 2, 3
BACKWARD = {"training": {"optimizer_in_backward": "last_norm"}}
LOOPS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "ours": ({}, ["bare", "ours"]),
    "ours in the backward pass": (BACKWARD, ["ours"]),
    "others": ({}, ["diffusers", "diffusers, with the VAE", "sd-scripts"]),
}


def measure(scratch: Path) -> dict[str, str]:
    values = settings(scratch, "fp16")
    rows = {}
    asked = changed(values, {"training": {"fit_check": True}})
    for name in ("cold caches", "warm caches", "warm caches again"):
        rows[f"command to first step, {name}, s"] = f"{seconds_to_first_step(asked, scratch):.1f}"
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for process in LOOPS:
            for name, found in _in_a_process(process, scratch).items():
                times.setdefault(f"{process}: {name}", []).extend(found)
    medians = {name: statistics.median(found) for name, found in times.items()}
    rows |= {
        f"{name}, s": f"{medians[name]:.2f} ({min(found):.2f} to {max(found):.2f})"
        for name, found in times.items()
    }
    for ours in ("ours: ours", "ours in the backward pass: ours"):
        for name in ("ours: bare", *(f"others: {loop}" for loop in LOOPS["others"][1])):
            rows[f"{ours} against {name}"] = f"{medians[ours] / medians[name]:.2f}"
    return rows


def _in_a_process(name: str, scratch: Path) -> dict[str, list[float]]:
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "0" if name == "others" else "1"}
    done = subprocess.run(
        [sys.executable, "-m", "bench.full", name, str(scratch)],
        check=True, capture_output=True, text=True, encoding="utf-8", env=environment,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _loops(name: str, scratch: Path) -> dict[str, list[float]]:
    """Return the step times of some loops, run in this process."""
    if name != "others":
        from impasto.allocation import tune_allocation

        tune_allocation()
    from bench.training import Comparison
    from impasto.config.load import build_run_config
    from impasto.training.assembly.build import build_session
    from impasto.training.builders.overrides import Overrides
    from impasto.training.devices import build_accelerator
    from impasto.training.events import SilentEvents

    changes, loops = LOOPS[name]
    values = changed(settings(scratch, "fp16"), changes)
    values["training"]["max_steps"] = 1000
    config = build_run_config(values, source="bench")
    session = build_session(config, build_accelerator(), SilentEvents(), Overrides())
    return Comparison(session, batch=1, side=256).times(STEPS, 1, loops)


def seconds_to_first_step(values: dict[str, Any], scratch: Path) -> float:
    """Return the seconds from the command until the run directory reports that it trains."""
    file, run = scratch / "run.toml", scratch / "run"
    file.write_text(tomli_w.dumps(values), encoding="utf-8")
    began = time.perf_counter()
    with (scratch / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "impasto", "train", str(file)], stdout=log, stderr=log
        )
        while '"training"' not in _text_of(run / "status.json"):
            if process.poll() is not None:
                raise RuntimeError(_text_of(scratch / "log.txt"))
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        process.kill()
        process.wait()
    shutil.rmtree(run)
    return seconds


def _text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


if __name__ == "__main__":
    print(json.dumps(_loops(sys.argv[1], Path(sys.argv[2]))))
