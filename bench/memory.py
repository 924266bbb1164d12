"""The memory of whole runs of a full-size SD 1.5, measured and predicted, by method.

Each run is a separate process, from the command to the exported file: loading, encoding, three
steps at 256 px and batch 1, the export. Predictions are those of `train --plan`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.full_size import changed, run_to_end, settings
from impasto.config.load import build_run_config
from impasto.datasets.build import survey
from impasto.training.devices import default_device
from impasto.training.planning.memory import Footprint
from impasto.training.planning.resolve import predict

UPDATES = 3
BACKWARD = {"optimizer_in_backward": "last_norm", "cache_text_to_disk": True}
LEAN = {**BACKWARD, "gradient_checkpointing": True}
EIGHT_BITS = {"optimizer": {"kind": "adamw8bit"}}
VARIANTS: dict[str, dict[str, Any]] = {
    "float32 AdamW": {},
    "steps in the backward pass": {"training": BACKWARD},
    "steps in the backward pass, checkpointing": {"training": LEAN},
    "8-bit AdamW": EIGHT_BITS,
    "8-bit AdamW, steps in the backward pass": {"training": BACKWARD, **EIGHT_BITS},
    "8-bit AdamW, steps in the backward pass, checkpointing": {"training": LEAN, **EIGHT_BITS},
    "bf16 weights, 8-bit AdamW, steps in the backward pass, checkpointing": {
        "training": {**LEAN, "mixed_precision": "bf16", "weight_dtype": "bf16"},
        **EIGHT_BITS,
    },
    "hypernetwork, checkpointing": {
        "training": {"gradient_checkpointing": True},
        "method": {"kind": "hypernetwork"},
    },
}


def measure(scratch: Path) -> dict[str, str]:
    values = settings(scratch)
    rows = {}
    for name, changes in VARIANTS.items():
        asked = changed(values, changes)
        asked["training"] = {**asked["training"], "max_steps": UPDATES}
        foreseen = predicted(asked).total
        found = run_to_end(asked, scratch)
        peak = found.peak_bytes
        if default_device().type == "cuda":
            peak = int(found.memory_mib * 2**20)
        rows[f"{name}: at most, GiB; predicted; ratio"] = (
            f"{peak / 2**30:.1f}; {foreseen / 2**30:.1f}; {foreseen / peak:.2f}"
        )
        rows[f"{name}: a step; the whole run, s"] = (
            f"{min(found.update_s):.1f}; {found.seconds:.0f}"
        )
    return rows


def predicted(values: dict[str, Any]) -> Footprint:
    """Return the prediction of `train --plan`."""
    config = build_run_config(values, source="bench")
    return predict(config, survey(config))
