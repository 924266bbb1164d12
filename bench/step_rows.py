"""The rows of `bench step`: options of the trainer, and the sizes at which they are measured.

On a CPU the model is a full-size SD 1.5 at 256 px and batch 1; on a GPU SD 1.5 and SD 2 at 512 px,
and SDXL at 1024 px.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
_LEAN = {
    "mixed_precision": "bf16", "weight_dtype": "bf16", "optimizer_in_backward": "exact",
    "gradient_checkpointing": True, "cache_text_to_disk": True,
}  # fmt: skip
_ADAFACTOR = {"kind": "adafactor", "lr": 1e-6}
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
    "fp16": {"training": {"mixed_precision": "fp16", "cache_text_to_disk": True}},
    "bf16, 8-bit AdamW": {
        "training": {"mixed_precision": "bf16", "cache_text_to_disk": True},
        "optimizer": {"kind": "adamw8bit"},
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
    "least memory, weights streamed": {
        "training": {**_LEAN, "stream_weights": True}, "optimizer": {"kind": "adamw8bit"},
    },
    "lean, Adafactor": {"training": _LEAN, "optimizer": _ADAFACTOR},
    "lean, Adafactor, weights streamed": {
        "training": {**_LEAN, "stream_weights": True}, "optimizer": _ADAFACTOR,
    },
    "lean, Adafactor, blocks compiled": {
        "training": {**_LEAN, "channels_last": True, "compile": "blocks"}, "optimizer": _ADAFACTOR,
    },
    "lean, Adafactor, blocks compiled, float8": {
        "training": {**_LEAN, "channels_last": True, "compile": "blocks", "float8": True},
        "optimizer": _ADAFACTOR,
    },
}  # fmt: skip
SIZES_ON_GPU: dict[str, tuple[int, tuple[int, ...]]] = {
    "sd1": (512, (1, 4, 8, 32)),
    "sd2": (512, (1, 8, 32, 64)),
    "sdxl": (1024, (1, 4)),
}
"""Side in pixels, and batch size."""
SDXL = (
    "bf16",
    "bf16, channels last, blocks compiled",
    "bf16, channels last, blocks compiled, float8",
    "bf16, channels last, compiled",
    "bf16, channels last, compiled, float8",
    "lean, Adafactor",
    "lean, Adafactor, weights streamed",
    "lean, Adafactor, blocks compiled",
    "lean, Adafactor, blocks compiled, float8",
)
"""The options measured for SDXL; the others have the same effect as for SD 2."""


@dataclass(frozen=True)
class Row:
    """A set of options at a size.

    Attributes:
        architecture: The name of the model that `impasto init` takes.
        side: Side of the images in pixels.
        batch: Images per batch.
        lever: The name of the set of options.
        changes: The settings of the set, by section.
    """

    architecture: str
    side: int
    batch: int
    lever: str
    changes: dict[str, dict[str, Any]]

    @property
    def name(self) -> str:
        """The name, as in `sd1, batch 8, bf16`."""
        return f"{self.architecture}, batch {self.batch}, {self.lever}"


def all_rows(device: str) -> list[Row]:
    """Return the rows to measure on a kind of device, `cpu` or `cuda`."""
    if device != "cuda":
        return [Row("sd1", 256, 1, lever, changes) for lever, changes in ON_PROCESSOR.items()]
    return [
        Row(architecture, side, batch, lever, changes)
        for architecture, (side, batches) in SIZES_ON_GPU.items()
        for batch in batches
        for lever, changes in ON_GPU.items()
        if architecture != "sdxl" or lever in SDXL
    ]


def chosen_rows(device: str, wanted: Sequence[str]) -> list[Row]:
    """Return rows by parts of their names, in the order of the parts; a full name selects one row.

    Raises:
        ValueError: No name contains a part.
    """
    rows = {row.name: row for row in all_rows(device)}
    chosen: dict[str, Row] = {}
    for part in wanted or [""]:
        found = [part] if part in rows else [name for name in rows if part in name]
        if not found:
            raise ValueError(f"No row's name contains {part!r}. The rows are: {'; '.join(rows)}.")
        chosen |= {name: rows[name] for name in found}
    return list(chosen.values())
