"""A full-size SD 1.5 with random weights, its images, and runs of it as processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from bench.pictures import draw_photographs

PICTURES = 8


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        peak_bytes: The peak memory of its process.
        seconds: From the command to its end.
        update_s: Seconds of each step except the first, from its metrics.
        memory_mib: Memory of the GPU, or else of the process, from its metrics.
    """

    peak_bytes: int
    seconds: float
    update_s: list[float]
    memory_mib: float


def make_model(scratch: Path, dtype: str | None = "fp32", architecture: str = "sd1") -> Path:
    """Write a model with the real names and shapes, once per scratch folder, and return its path.

    Args:
        scratch: The folder to store it in.
        dtype: The dtype of a single file; None for the Diffusers folder in fp16 that it is made
            from.
        architecture: The name that `impasto init` takes.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    folder, file = scratch / architecture, scratch / f"{architecture}-{dtype}.safetensors"
    if not folder.is_dir():
        impasto("init", architecture, folder, "--dtype", "fp16")
    if dtype is None:
        return folder
    if not file.is_file():
        impasto("convert", folder, file, "--dtype", dtype)
    return file


def make_images(scratch: Path, side: int = 256) -> Path:
    """Write photographs with captions that fill a bucket of this side; return their folder."""
    pictures = scratch / f"pictures-{side}"
    if not pictures.is_dir():
        draw_photographs(pictures, (side + 64, side + 64), PICTURES)
        for picture in pictures.glob("*.jpg"):
            picture.with_suffix(".txt").write_text(f"photograph {picture.stem}", encoding="utf-8")
    return pictures


def settings(
    scratch: Path, dtype: str | None = "fp32", side: int = 256, architecture: str = "sd1"
) -> dict[str, Any]:
    """Return the settings of a run of one step on images of one size, without a training state."""
    return {
        "output_dir": str(scratch / "run"),
        "model": {"path": str(make_model(scratch, dtype, architecture))},
        "dataset": {
            "image_dir": str(make_images(scratch, side)),
            "resolution": side,
            "enable_bucket": False,
            "cache_dir": str(scratch / f"derived-{side}"),
        },
        "training": {"max_steps": 1, "fit_check": False},
        "optimizer": {},
        "logging": {"every_steps": 1},
        "saving": {"state_every_steps": 0, "keep_final_state": False},
    }


def changed(values: dict[str, Any], changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return settings with `changes` applied, section by section."""
    return {**values, **{k: {**values.get(k, {}), **v} for k, v in changes.items()}}


def run_to_end(values: dict[str, Any], scratch: Path) -> Finished:
    """Train through the command line, and measure the process."""
    file, run = scratch / "run.toml", Path(values["output_dir"])
    shutil.rmtree(run, ignore_errors=True)
    file.write_text(tomli_w.dumps(values), encoding="utf-8")
    peak, seconds = run_command(
        [sys.executable, "-m", "impasto", "train", str(file)], scratch / "log.txt"
    )
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if "images_per_s" in record]
    batch = values["training"].get("batch_size", 1)
    update_s = [batch / record["images_per_s"] for record in records[1:]]
    shutil.rmtree(run)
    return Finished(peak, seconds, update_s, max(record["memory_mib"] for record in records))


def run_command(
    command: list[str],
    log: Path,
    folder: Path | None = None,
    environment: dict[str, str] | None = None,
) -> tuple[int, float]:
    """Run a command; return its peak memory in bytes, and its seconds.

    Raises:
        RuntimeError: It failed; the message has its output.
    """
    began = time.perf_counter()
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(log.read_text(encoding="utf-8", errors="replace")[-4000:])
    return usage.ru_maxrss * 1024, time.perf_counter() - began


def impasto(*words: object) -> None:
    subprocess.run(
        [sys.executable, "-m", "impasto", *map(str, words)], check=True, stdout=subprocess.DEVNULL
    )
