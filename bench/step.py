"""A step of the trainer with each memory or speed option; on a GPU, its matrix-product efficiency.

Every row of `step_rows` is a session of the trainer on the same images, with cached latents and
text. With several jobs each row is a separate process: they compile in parallel, which takes
minutes, and are timed one at a time while all others are stopped. Each result is printed at once.

`python -m bench.step ROW SCRATCH TURNS ANSWER KERNELS` measures one row; KERNELS may be empty.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from impasto.allocation import tune_allocation

if __name__ == "__main__":
    tune_allocation()  # as the command line does, before torch is imported

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.full_size import changed, settings
from bench.memory import predicted
from bench.step_rows import Row, chosen_rows
from impasto.config.load import build_run_config
from impasto.config.run import RunConfig
from impasto.data.loading.step_batches import iterate_steps
from impasto.datasets.batching import heaviest_group
from impasto.errors import ImpastoError
from impasto.runs import RunDirectory
from impasto.training.assembly.build import build_session
from impasto.training.builders.overrides import Overrides
from impasto.training.devices import build_accelerator, default_device
from impasto.training.events import SilentEvents
from impasto.training.loop import TrainingLoop
from impasto.training.planning.duration import matmul_rate
from impasto.training.planning.resolve import build_memory_fitter
from impasto.training.session import Session
from impasto.training.steps.prefetch import build_prefetcher

Alone = Callable[[], contextlib.AbstractContextManager[None]]
"""Returns the context in which a row is timed."""

UPDATES = {"cpu": 4, "cuda": 20}
WARM = {"cpu": 0, "cuda": 3}
"""Steps after the first that are not timed: CUDA graphs are recorded in them."""
KERNELS = 70


@dataclass(frozen=True)
class Steps:
    """The durations of steps.

    Attributes:
        first_s: Seconds of the first step, which compiles.
        each_s: Seconds of each other step, with a wait for the GPU after it.
        in_a_row_s: Mean seconds of a step in as many without a wait in between, as in training.
        asking_s: Mean seconds that the CPU takes to launch such a step's kernels.
        peak_bytes: The peak that PyTorch's allocator reserved on the GPU during steps.
    """

    first_s: float
    each_s: list[float]
    in_a_row_s: float
    asking_s: float
    peak_bytes: int


def measure(
    scratch: Path, wanted: Sequence[str] = (), jobs: int = 1, kernels: Path | None = None
) -> dict[str, str]:
    """Measure the rows whose names contain one of `wanted`.

    Args:
        scratch: The folder of models and images.
        wanted: Parts of names, as in `sd1, batch 8, bf16`; all rows by default.
        jobs: How many rows are prepared in parallel. Memory must suffice for all of them.
        kernels: A folder for a table per row of its GPU kernels, longest first.
    """
    try:
        rows = chosen_rows(default_device().type, wanted)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    for size in {(row.architecture, row.side) for row in rows}:
        _settings(scratch, *size)
    if kernels is not None:
        kernels.mkdir(parents=True, exist_ok=True)
    if jobs > 1:
        with ThreadPoolExecutor(jobs) as pool:
            told = pool.map(partial(_told_by_a_program, scratch, kernels), rows)
            return dict(zip((row.name for row in rows), told, strict=True))
    return {
        row.name: _printed(row, _told(row, scratch, contextlib.nullcontext, kernels))
        for row in rows
    }


def _told_by_a_program(scratch: Path, kernels: Path | None, row: Row) -> str:
    """Measure a row in a separate process, which can be stopped while others are timed."""
    answer = scratch / f"answer-{uuid4().hex}.txt"
    words = [row.name, scratch, scratch / "turns", answer, kernels or ""]
    done = subprocess.run(
        [sys.executable, "-m", "bench.step", *map(str, words)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, check=False,
    )  # fmt: skip
    if answer.is_file():
        return _printed(row, answer.read_text(encoding="utf-8"))
    said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["nothing"]
    return _printed(row, f"failed with {done.returncode}: {said[-1][:200]}")


def _printed(row: Row, told: str) -> str:
    print(f"{row.name}: {told}", flush=True)
    return told


def _settings(scratch: Path, architecture: str, side: int) -> dict[str, Any]:
    """Return the settings of a run; its model is `init`'s on a GPU, a single file on a CPU."""
    dtype = None if default_device().type == "cuda" else "fp32"
    return settings(scratch, dtype, side, architecture)


def _told(row: Row, scratch: Path, alone: Alone, kernels: Path | None) -> str:
    """Measure a row, and return the result as a line of text."""
    device = default_device()
    asked = changed(_settings(scratch, row.architecture, row.side), row.changes)
    own = row.name.replace(", ", "-").replace(" ", "_")  # rows may be prepared in parallel
    asked["output_dir"] = str(scratch / f"run-{own}")
    asked["dataset"] = {
        **asked["dataset"], "num_repeats": row.batch, "cache_dir": str(scratch / f"derived-{own}"),
    }  # fmt: skip
    asked["training"] = {**asked["training"], "batch_size": row.batch, "max_steps": 10_000}
    if kernels is not None:
        kernels = kernels / f"{own}.txt"
    try:
        steps, share = _steps(asked, device, alone, kernels)
    except (ImpastoError, RuntimeError) as error:
        return f"failed: {str(error).splitlines()[0][:80]}"
    gc.collect()
    seconds = statistics.median(steps.each_s)
    if device.type != "cuda":
        return f"{seconds:.2f} s a step; first step {steps.first_s:.0f} s"
    foreseen = predicted(asked)
    tensors = foreseen.total - foreseen.workspace
    return (
        f"{1000 * seconds:.0f} ms ({1000 * min(steps.each_s):.0f} to "
        f"{1000 * max(steps.each_s):.0f}), {row.batch / steps.in_a_row_s:.1f} images/s in a row, "
        f"{1000 * steps.asking_s:.0f} ms of one the program's, {100 * share:.0f} % of the "
        f"measured peak, {steps.peak_bytes / 2**30:.1f} GiB ({tensors / 2**30:.1f} predicted); "
        f"first step {steps.first_s:.0f} s"
    )


def _steps(
    values: dict[str, Any], device: torch.device, alone: Alone, kernels: Path | None
) -> tuple[Steps, float]:
    """Time the steps of a run, and return them with their fraction of the matrix-product rate."""
    on_gpu = device.type == "cuda"
    if on_gpu:  # a row that failed leaves memory behind
        gc.collect()
        torch._dynamo.reset()  # earlier rows' graphs count towards its limit
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    config = build_run_config(values, source="bench")
    session = build_session(config, build_accelerator(), SilentEvents(), Overrides())
    loop = TrainingLoop(session, RunDirectory(config.output_dir), SilentEvents())
    number, warm = UPDATES[device.type], WARM[device.type]
    ahead = session.conditioner if session.encodes_ahead else None
    updates = iterate_steps(
        session.data, session.sampler, 0, config.training.max_steps or 0, rank=0,
        prefetch=build_prefetcher(device, ahead),
    )  # fmt: skip
    wait = torch.cuda.synchronize if on_gpu else lambda: None

    def step() -> None:
        loop.step(*next(updates))

    def waited_for() -> float:
        began = time.perf_counter()
        step()
        wait()
        return time.perf_counter() - began

    first_s = waited_for()
    for _ in range(warm):
        waited_for()
    with alone():
        for _ in range(warm):
            waited_for()
        each_s = [waited_for() for _ in range(number)]
        began = time.perf_counter()
        for _ in range(number if on_gpu else 0):
            step()
        asked_s = time.perf_counter() - began
        wait()
        whole_s = time.perf_counter() - began
        share = _share(config, session, statistics.median(each_s), device) if on_gpu else 0.0
        peak = torch.cuda.max_memory_reserved() if on_gpu else 0
        if kernels is not None and on_gpu:
            _write_kernels(kernels, step)
    return Steps(first_s, each_s, whole_s / number, asked_s / number, peak), share


def _share(config: RunConfig, session: Session, seconds: float, device: torch.device) -> float:
    """Return the step's fraction of the bf16 matrix-product rate of this card, measured now."""
    group = heaviest_group(config, session.prepared.plan.images)
    flops = build_memory_fitter(config, group).footprint(config).flops
    return flops / seconds / matmul_rate(device, torch.bfloat16)


def _write_kernels(file: Path, step: Callable[[], None]) -> None:
    """Write the longest kernels of two steps, with the milliseconds and calls per step."""
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        step()
        step()
        torch.cuda.synchronize()
    found = [e for e in recorded.key_averages() if e.device_type == DeviceType.CUDA]
    found.sort(key=lambda event: -event.self_device_time_total)
    spent = sum(event.self_device_time_total for event in found) / 2000
    calls = sum(event.count for event in found) / 2
    lines = [f"{spent:.1f} ms of {calls:.0f} kernels a step"] + [
        f"{event.self_device_time_total / 2000:8.3f} ms {event.count / 2:6.1f} x {event.key[:150]}"
        for event in found[:KERNELS]
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Measure one row when it has its turn, and write the result into a file."""
    from bench.turns import Turns  # not on Windows

    name, scratch, folder, answer, kernels = sys.argv[1:]
    (row,) = chosen_rows(default_device().type, [name])
    turns = Turns(Path(folder))
    with turns.joined():
        told = _told(row, Path(scratch), turns.alone, Path(kernels) if kernels else None)
    Path(answer).write_text(told, encoding="utf-8")


if __name__ == "__main__":
    main()
