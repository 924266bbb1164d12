"""Runs on a GPU, pretended or real: the ways of training, and faults in one of their steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

AT_ONCE = "_local_scalar_dense at training/optim/updates.py:"
LOOKS_AT_LOSS_AND_NORM = {f"{AT_ONCE}<genexpr>": 2}
"""The waits of optimizers that cannot skip a step on the device, by name and count."""

RECORDS = "cuda.synchronize at training/optim/graph_recorder.py:record"
"""The wait when CUDA graphs are recorded: in step 2 for the update, in step 3 for a batch."""

Settings = dict[str, dict[str, Any]]

LITTLE = {"split": 0.2, "timesteps": 1, "standard_error": 0, "training_images": 1}
"""A validation that takes little time."""

CASES: dict[str, tuple[Settings, dict[str, int]]] = {
    "fp32": ({"saving": {"state_every_steps": 1, "keep_states": 9}}, {}),
    "bf16, accumulation, text encoder": (
        {
            "training": {"mixed_precision": "bf16", "gradient_accumulation_steps": 2},
            "method": {"train_text_encoder": True},
        },
        {},
    ),
    "fp16, average": (
        {"training": {"mixed_precision": "fp16", "ema_decay": 0.9}, "validation": LITTLE}, {}
    ),
    "bf16 weights": (
        {"training": {"mixed_precision": "bf16", "weight_dtype": "bf16", "rounding": "kahan"}},
        {},
    ),
    "copies of weights, held and averaged": (
        {
            "training": {"mixed_precision": "bf16", "weight_copies": True, "posthoc_ema": True},
            "optimizer": {"start_decay": 10.0}, "loss": {"uncertainty": True},
            "noise": {"immiscible": True},
        },
        {},
    ),
    "copies of weights, fp16, accumulation": (
        {
            "training": {
                "mixed_precision": "fp16", "weight_copies": True, "gradient_accumulation_steps": 2,
            }
        },
        {},
    ),
    "no limit, checkpointing, average on the CPU, random crops": (
        {
            "training": {
                "max_grad_norm": 0.0, "gradient_checkpointing": True, "ema_decay": 0.9,
                "ema_on_cpu": True,
            },
            "dataset": {"random_crop": True},
        },
        {},
    ),
    "8 bits": ({"optimizer": {"kind": "stand_ins.EightBits"}}, LOOKS_AT_LOSS_AND_NORM),
    "schedule-free": ({"optimizer": {"kind": "adamw_schedule_free"}}, LOOKS_AT_LOSS_AND_NORM),
    "prodigy": (
        {"optimizer": {"kind": "prodigy", "lr": 1.0}},
        {
            **LOOKS_AT_LOSS_AND_NORM,  # and the waits of pytorch-optimizer's own step
            "copy from pageable memory at training/optim/corrected.py:step_with_rate": 1,
            "_local_scalar_dense at training/optim/corrected.py:step_with_rate": 2,
        },
    ),
    "offload": (
        {"training": {"offload_optimizer": True}},
        {"stream.synchronize at training/optim/offload.py:wait": 1},
    ),
    "exact": (
        {"training": {"optimizer_in_backward": "exact"}},
        {"tolist at training/optim/updates.py:_measured": 1},
    ),
    "exact, no limit": ({"training": {"optimizer_in_backward": "exact", "max_grad_norm": 0.0}}, {}),
    "last norm": ({"training": {"optimizer_in_backward": "last_norm"}}, {}),
    "hypernetwork": ({"method": {"kind": "hypernetwork"}, "saving": {"format": None}}, {}),
    "steps as graphs": (
        {
            "training": {"cuda_graphs": "step"},
            "saving": {"state_every_steps": 1, "keep_states": 9},
        },
        {RECORDS: 1},
    ),
    "steps as graphs, averaged copies": (
        {
            "training": {
                "cuda_graphs": "step", "mixed_precision": "bf16", "weight_copies": True,
                "gradient_checkpointing": True, "ema_decay": 0.9, "ema_on_cpu": True,
            }
        },
        {RECORDS: 1},
    ),
    "steps as graphs, learned weights": (
        {
            "training": {"cuda_graphs": "step", "posthoc_ema": True, "ema_on_cpu": True},
            "loss": {"uncertainty": True}, "noise": {"immiscible": True},
        },
        {RECORDS: 1},
    ),
    "monitored": (
        {
            "validation": {**LITTLE, "every_steps": 2},
            "previews": {"every_steps": 2, "width": 32, "height": 32, "steps": 1,
                         "prompts": ["a ball"]},
        },
        {},
    ),
}  # fmt: skip
"""Name -> settings, and the host's waits for the device in a step."""

FAULTS: dict[str, dict[str, Any]] = {
    "kept, loss": {},
    "kept, gradient": {},
    "no limit, gradient": {"max_grad_norm": 0.0},
    "fp16, loss": {"mixed_precision": "fp16"},
    "fp16, gradient": {"mixed_precision": "fp16"},
    "average, gradient": {"ema_decay": 0.9},
    "accumulation, loss": {"gradient_accumulation_steps": 2},
    "copies, loss": {"mixed_precision": "bf16", "weight_copies": True},
    "copies, gradient": {"mixed_precision": "bf16", "weight_copies": True},
    "steps as graphs, loss": {"cuda_graphs": "step"},
    "steps as graphs, gradient": {"cuda_graphs": "step"},
    "exact, gradient": {"optimizer_in_backward": "exact"},
    "exact, no limit, loss": {"optimizer_in_backward": "exact", "max_grad_norm": 0.0},
    "exact, no limit, gradient": {"optimizer_in_backward": "exact", "max_grad_norm": 0.0},
    "last norm, loss": {"optimizer_in_backward": "last_norm"},
    "last norm, gradient": {"optimizer_in_backward": "last_norm"},
}
"""Name, which ends with the value that is not finite in the second step -> settings."""


def fault_of(name: str) -> dict[str, Any]:
    """Return a fault's non-finite value, and the number of its forward pass, one of step 2."""
    at = 3 if "gradient_accumulation_steps" in FAULTS[name] else 2
    return {"what": name.rpartition(", ")[2], "at": at}


class Blow(torch.autograd.Function):
    """Returns a value unchanged, and makes its gradient infinite."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * float("inf")


def broken_step(fault: dict[str, Any] | None, real: Callable[..., Any]) -> Callable[..., Any]:
    """Return the training step, with a non-finite loss or gradient in one forward pass."""
    passes = [0]

    def step(*args: Any) -> Any:
        output = real(*args)
        passes[0] += 1
        if fault is None or passes[0] != fault["at"]:
            return output
        if fault["what"] == "gradient":
            return replace(output, losses=Blow.apply(output.losses))
        return replace(output, losses=output.losses * float("nan"))

    return step


def broken_inputs(fault: dict[str, Any] | None, real: Callable[..., Any]) -> Callable[..., Any]:
    """Return the inputs of graphed steps, with a non-finite loss or gradient in one pass."""
    passes = [0]

    def inputs(*args: Any) -> Any:
        made = real(*args)
        passes[0] += 1
        if fault is None or passes[0] != fault["at"]:
            return made
        factor = 1e38 if fault["what"] == "gradient" else float("nan")
        return replace(made, weights=made.weights * factor)

    return inputs
