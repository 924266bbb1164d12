"""A step of the trainer under each lever; on a GPU, its share of what matrix products reach.

Every variant is a session of the trainer on the same images, with cached latents and text. On a
processor it is the full-size SD 1.5 at 256 px and batch 1; on a GPU SD 1.5 and SD 2 at 512 px, and
SDXL at 1024 px.
"""

from __future__ import annotations

import gc
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from bench.full_size import changed, settings
from bench.memory import predicted
from impasto.config.load import build_run_config
from impasto.data.dataset import iterate_steps
from impasto.datasets.batching import heaviest_group
from impasto.errors import ImpastoError
from impasto.runs import RunDirectory
from impasto.training.build import build_session
from impasto.training.devices import build_accelerator, default_device
from impasto.training.events import SilentEvents
from impasto.training.loop import TrainingLoop
from impasto.training.overrides import Overrides
from impasto.training.planning.duration import matmul_rate
from impasto.training.planning.resolve import build_memory_fitter
from impasto.training.prefetch import build_prefetcher

ON_PROCESSOR: dict[str, dict[str, Any]] = {
    "plain": {},
    "steps in the backward pass": {"training": {"optimizer_in_backward": "last_norm"}},
    "channels last": {"training": {"channels_last": True}},
    "checkpointing": {"training": {"gradient_checkpointing": True}},
    "checkpointing, highest resolution": {
        "training": {"gradient_checkpointing": True, "checkpointed_levels": 1}
    },
    "bf16": {"training": {"mixed_precision": "bf16"}},
    "bf16 weights": {"training": {"mixed_precision": "bf16", "weight_dtype": "bf16"}},
    "8-bit AdamW": {"optimizer": {"kind": "adamw8bit"}},
}
_FAST = {"mixed_precision": "bf16", "channels_last": True, "cache_text_to_disk": True}
ON_GPU: dict[str, dict[str, Any]] = {
    "bf16": {"training": {"mixed_precision": "bf16", "cache_text_to_disk": True}},
    "bf16, copies of weights": {
        "training": {"mixed_precision": "bf16", "cache_text_to_disk": True, "weight_copies": True}
    },
    "bf16, steps as CUDA graphs": {
        "training": {
            "mixed_precision": "bf16", "cache_text_to_disk": True, "cuda_graphs": "step",
        }
    },
    "bf16, copies of weights, steps as CUDA graphs": {
        "training": {
            "mixed_precision": "bf16", "cache_text_to_disk": True, "weight_copies": True,
            "cuda_graphs": "step",
        }
    },
    "bf16, channels last": {"training": _FAST},
    "bf16, channels last, blocks compiled": {"training": {**_FAST, "compile": "blocks"}},
    "bf16, channels last, compiled": {"training": {**_FAST, "compile": "full"}},
    "bf16, channels last, compiled, CUDA graphs": {
        "training": {**_FAST, "compile": "full", "cuda_graphs": "network"}
    },
    "bf16, channels last, compiled, copies of weights": {
        "training": {**_FAST, "compile": "full", "weight_copies": True}
    },
    "bf16, channels last, compiled, copies of weights, CUDA graphs": {
        "training": {**_FAST, "compile": "full", "weight_copies": True, "cuda_graphs": "network"}
    },
    "bf16, channels last, compiled, copies of weights, steps as CUDA graphs": {
        "training": {**_FAST, "compile": "full", "weight_copies": True, "cuda_graphs": "step"}
    },
    "bf16, channels last, compiled, float8": {
        "training": {**_FAST, "compile": "full", "float8": True}
    },
    "bf16, channels last, blocks compiled, float8": {
        "training": {**_FAST, "compile": "blocks", "float8": True}
    },
    "bf16 weights, channels last, compiled": {
        "training": {**_FAST, "weight_dtype": "bf16", "compile": "full"}
    },
    "bf16 weights, channels last, compiled, float8": {
        "training": {**_FAST, "weight_dtype": "bf16", "compile": "full", "float8": True}
    },
    "least memory": {
        "training": {
            **_FAST, "weight_dtype": "bf16", "optimizer_in_backward": "last_norm",
            "gradient_checkpointing": True,
        },
        "optimizer": {"kind": "adamw8bit"},
    },
    "least memory, states offloaded": {
        "training": {
            **_FAST, "weight_dtype": "bf16", "optimizer_in_backward": "last_norm",
            "gradient_checkpointing": True, "offload_optimizer": True,
        },
        "optimizer": {"kind": "adamw8bit"},
    },
}  # fmt: skip
SIZES_ON_GPU: dict[str, tuple[int, tuple[int, ...]]] = {
    "sd1": (512, (1, 8, 32)),
    "sd2": (512, (1, 8, 32)),
    "sdxl": (1024, (1, 4)),
}
"""Pixels of a side, and images at a time."""
SDXL = (
    "bf16",
    "bf16, channels last, blocks compiled",
    "bf16, channels last, blocks compiled, float8",
    "bf16, channels last, compiled",
    "bf16, channels last, compiled, float8",
)
"""The rows of SDXL, whose other levers do what they do for SD 2."""
UPDATES = {"cpu": 4, "cuda": 20}


def measure(scratch: Path, wanted: str = "") -> dict[str, str]:
    """The rows whose names have `wanted` in them, as in `sd1, batch 8, bf16`; all by default."""
    device = default_device()
    on_gpu = device.type == "cuda"
    rows: dict[str, str] = {}
    sizes = SIZES_ON_GPU if on_gpu else {"sd1": (256, (1,))}
    for architecture, (side, batches) in sizes.items():
        levers = ON_GPU if on_gpu else ON_PROCESSOR
        if architecture == "sdxl":
            levers = {lever: ON_GPU[lever] for lever in SDXL}
        for batch in batches:
            names = {
                f"{architecture}, batch {batch}, {lever}": changes
                for lever, changes in levers.items()
            }
            chosen = {name: changes for name, changes in names.items() if wanted in name}
            if chosen:
                values = settings(scratch, side=side, architecture=architecture)
                values["dataset"]["num_repeats"] = batch
                rows |= _measured(chosen, values, device, batch)
    if not rows:
        raise SystemExit(f"No row has {wanted!r} in its name.")
    return rows


def _measured(
    variants: dict[str, dict[str, Any]], values: dict[str, Any], device: torch.device, batch: int
) -> dict[str, str]:
    """Seconds of a step by row, and what they are against the first."""
    rows, first = {}, None
    for name, changes in variants.items():
        asked = changed(values, changes)
        asked["training"] = {**asked["training"], "batch_size": batch, "max_steps": 10_000}
        try:
            seconds, peak, share, warm = _update(asked, device)
        except (ImpastoError, RuntimeError) as error:
            rows[name] = f"failed: {str(error).splitlines()[0][:80]}"
            continue
        first = first or seconds
        told = f"{seconds:.2f} s a step, {seconds / first:.2f} of the first"
        if device.type == "cuda":
            foreseen = predicted(asked)
            tensors = foreseen.total - foreseen.workspace
            told = (
                f"{1000 * seconds:.0f} ms, {batch / seconds:.1f} images/s, {100 * share:.0f} % of "
                f"the measured peak, {peak / 2**30:.1f} GiB ({tensors / 2**30:.1f} "
                "predicted)"
            )
        rows[name] = f"{told}; first step {warm:.0f} s"
    return rows


def _update(values: dict[str, Any], device: torch.device) -> tuple[float, int, float, float]:
    """Median seconds of a step, peak bytes, share of the peak, and the first one's seconds."""
    if device.type == "cuda":  # also after a row that failed
        gc.collect()
        torch._dynamo.reset()  # graphs of rows before would count as this one's
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    config = build_run_config(values, source="bench")
    session = build_session(config, build_accelerator(), SilentEvents(), Overrides())
    loop = TrainingLoop(session, RunDirectory(config.output_dir), SilentEvents())
    number = UPDATES[device.type]
    updates = iterate_steps(
        session.data,
        session.sampler,
        0,
        number + 1,
        rank=0,
        prefetch=build_prefetcher(device, session.conditioner if session.encodes_ahead else None),
    )
    times = []
    for update, batches in updates:
        began = time.perf_counter()
        loop.step(update, batches)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_reserved() if device.type == "cuda" else 0
    seconds = statistics.median(times[1:])
    share = 0.0
    if device.type == "cuda":
        group, _ = heaviest_group(config, session.prepared.plan.images)
        flops = build_memory_fitter(config, group).footprint(config).flops
        share = flops / seconds / matmul_rate(device, torch.bfloat16)
    del session, loop, updates
    gc.collect()
    return seconds, peak, share, times[0]
