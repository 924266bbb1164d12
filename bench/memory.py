"""Memory of whole runs of a full-size SD 1.5: from the command to the written file, by method.

Each is a process of its own: loading, encoding, two updates at 256 px and batch 1, the export.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import tomli_w

from bench.training import full_size_settings

LEAN = {"gradient_checkpointing": True, "mixed_precision": "bf16"}
VARIANTS: dict[str, dict[str, Any]] = {
    "U-Net, float32, AdamW": {},
    "U-Net, bf16 computing, 8-bit AdamW, checkpointing": {
        "training": LEAN,
        "optimizer": {"kind": "adamw8bit"},
    },
    "U-Net, bf16 weights, 8-bit AdamW, checkpointing": {
        "training": {**LEAN, "weights": "bf16"},
        "optimizer": {"kind": "adamw8bit"},
    },
    "hypernetwork, bf16 computing, checkpointing": {
        "training": LEAN,
        "method": {"kind": "hypernetwork"},
    },
}


def measure(scratch: Path) -> dict[str, str]:
    scratch.mkdir(parents=True, exist_ok=True)
    values = full_size_settings(scratch)
    values["dataset"]["cache_dir"] = str(scratch / "derived")
    rows = {}
    for name, changes in VARIANTS.items():
        merged = {**values, **{k: {**values.get(k, {}), **v} for k, v in changes.items()}}
        merged["training"] = {**merged["training"], "max_steps": 2}
        peak, seconds = peak_of(merged, scratch)
        rows[f"{name}: at most, GiB"] = f"{peak / 2**30:.1f}"
        rows[f"{name}: in all, s"] = f"{seconds:.0f}"
    return rows


def peak_of(values: dict[str, Any], scratch: Path) -> tuple[int, float]:
    """Bytes of memory that a run had at most, and its seconds."""
    file, run = scratch / "run.toml", Path(values["output_dir"])
    file.write_text(tomli_w.dumps(values), encoding="utf-8")
    began = time.perf_counter()
    with (scratch / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "impasto", "train", str(file)], stdout=log, stderr=log
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError((scratch / "log.txt").read_text(encoding="utf-8"))
    shutil.rmtree(run)
    return usage.ru_maxrss * 1024, time.perf_counter() - began
