"""The time from the command to the first step of a full-size SDXL, latents and captions cached.

Only the U-Net is trained, in bf16, with Adafactor in the backward pass, as is usual on a card with
12 GB. With the source tree of another version (`--against`), the two versions take turns, so that
both run at the same load.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from bench.full_size import changed, settings

ROUNDS = 2
SIDE = 256
OWN = Path(__file__).parents[1] / "src"


@dataclass(frozen=True)
class Start:
    """The cost of starting a run.

    Attributes:
        seconds: From the command until the run directory reports that it trains.
        cpu_seconds: User and system time of its process until then.
        peak_bytes: The peak memory of its process until then.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def measure(scratch: Path, against: Path | None = None) -> dict[str, str]:
    """Return median, minimum and maximum of several starts, and the time to read the file."""
    values = changed(
        settings(scratch, "fp16", SIDE, "sdxl"),
        {
            "training": {
                "mixed_precision": "bf16",
                "weight_dtype": "bf16",
                "gradient_checkpointing": True,
                "optimizer_in_backward": "exact",
                "cache_text_to_disk": True,
                "fit_check": True,
            },
            "optimizer": {"kind": "adafactor"},
        },
    )
    trees = {"now": OWN, **({"before": against} if against else {})}
    start(values, scratch, OWN)  # fills the latent and text caches and the page cache
    found: dict[str, list[Start]] = {name: [] for name in trees}
    for _ in range(ROUNDS):
        for name, tree in trees.items():
            found[name].append(start(values, scratch, tree))
    rows = {"reading the file, s": f"{_reading_s(Path(values['model']['path'])):.1f}"}
    for name, starts in found.items():
        rows[f"{name}: command to first step, s"] = _spread([one.seconds for one in starts])
        rows[f"{name}: CPU s of it"] = _spread([one.cpu_seconds for one in starts])
        rows[f"{name}: at most, GiB"] = f"{max(one.peak_bytes for one in starts) / 2**30:.1f}"
    if against:
        for what in ("seconds", "cpu_seconds"):
            now, before = (
                statistics.median(getattr(one, what) for one in found[name])
                for name in ("now", "before")
            )
            rows[f"now against before, {what}"] = f"{now / before:.2f}"
    return rows


def start(values: dict[str, Any], scratch: Path, tree: Path) -> Start:
    """Run until the first step is about to be taken, and end the run then."""
    file, run, log = scratch / "run.toml", scratch / "run", scratch / "log.txt"
    shutil.rmtree(run, ignore_errors=True)
    file.write_text(tomli_w.dumps(values), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    began = time.perf_counter()
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "impasto", "train", str(file)],
            stdout=out, stderr=out, env=environment,
        )  # fmt: skip
    while '"training"' not in _text_of(run / "status.json"):
        if process.poll() is not None:
            raise RuntimeError(_text_of(log)[-4000:])
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    process.kill()
    _, _, usage = os.wait4(process.pid, 0)
    shutil.rmtree(run)
    return Start(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def _reading_s(file: Path) -> float:
    """Return the seconds to read all bytes of a file, in whatever state the page cache is."""
    began = time.perf_counter()
    with file.open("rb", buffering=0) as source:
        while source.read(16 << 20):
            pass
    return time.perf_counter() - began


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""
