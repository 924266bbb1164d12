"""The time to convert a full-size file, against copying and hashing the same bytes."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from impasto.checkpoints.keymap import ComponentKind
from impasto.files import sha256_of
from impasto.models.reading.opening import OpenOptions
from impasto.models.writing.architectures import find_architecture, write_random_model
from impasto.models.writing.conversion import convert_model, form_of

PAIRS = 3


def measure(
    scratch: Path, architecture: str = "sd1", dtype: torch.dtype = torch.float32
) -> dict[str, str]:
    """Measure conversions of a random model, in pairs with a copy of the same file.

    Beside the source, at most one file of its size is on the disk at a time.
    """
    scratch.mkdir(parents=True)
    folder, source = scratch / architecture, scratch / "source.safetensors"
    write_random_model(find_architecture(architecture), folder, seed=0, dtype=dtype)
    convert(folder, source)
    shutil.rmtree(folder)
    gib = source.stat().st_size / 2**30
    is_fp16 = dtype == torch.float16  # then a conversion to fp16 is the plain one
    target = scratch / "target.safetensors"
    copies, plain, halves = [], [], []
    for _ in range(PAIRS):
        copies.append(timed(lambda: copy_and_hash(source, target), target))
        plain.append(timed(lambda: convert(source, target), target))
        if not is_fp16:
            halves.append(timed(lambda: convert(source, target, torch.float16), target))
    name = "convert to fp16 against copy and hash"
    to_fp16 = {} if is_fp16 else {name: f"{ratio(halves, copies):.2f}"}
    return {
        "size of the file, GiB": f"{gib:.2f}",
        "copy, flush and hash, s": f"{statistics.median(copies):.1f}",
        "convert to another file, s": f"{statistics.median(plain):.1f}",
        "convert against copy and hash, median": f"{ratio(plain, copies):.2f}",
        **to_fp16,
        "memory beyond mapped files while converting to fp16, MiB": f"{peak_mib(source):.0f}",
    }


def ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def timed(work: Callable[[], object], target: Path) -> float:
    """Return the seconds that `work` takes to write `target`, which is removed afterwards."""
    began = time.perf_counter()
    work()
    duration_s = time.perf_counter() - began
    target.unlink()
    return duration_s


def copy_and_hash(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    sha256_of(target)


def convert(source: Path, target: Path, dtype: torch.dtype | None = None) -> None:
    dtypes = dict.fromkeys(ComponentKind, dtype) if dtype else {}
    convert_model(str(source), target, form_of(target, None), dtypes, OpenOptions())


def peak_mib(source: Path) -> float:
    """Return the peak of a conversion's anonymous memory above an idle process, in MiB."""
    program = (
        "import sys, threading, time; from pathlib import Path; import torch\n"
        "from bench.convert import convert, anonymous_mib\n"
        "before = most = anonymous_mib(); going = True\n"
        "def watch():\n"
        "    global most\n"
        "    while going: most = max(most, anonymous_mib()); time.sleep(0.005)\n"
        "thread = threading.Thread(target=watch); thread.start()\n"
        "source = Path(sys.argv[1]); target = source.with_name('peak.safetensors')\n"
        "convert(source, target, torch.float16); going = False; thread.join()\n"
        "target.unlink(); print(most - before)\n"
    )
    command = [sys.executable, "-c", program, str(source)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def anonymous_mib() -> float:
    """Return this process's memory that is not a mapped file, in MiB; NaN except on Linux."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return float("nan")
    line = next(x for x in status.read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) / 1024
