"""A run's work beside the U-Net's step, on the tiny model: text, optimizers, states, drawing."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from impasto.config.optimizer import OptimizerConfig
from impasto.demo.recipe import demo_config
from impasto.models.trainable import TrainedModule
from impasto.runs import RunDirectory
from impasto.sampling.prompts import Prompt
from impasto.training.assembly.build import build_session
from impasto.training.builders.overrides import Overrides
from impasto.training.devices import build_accelerator, default_device
from impasto.training.events import SilentEvents
from impasto.training.optim.chunked import AT_ONCE, ChunkRules
from impasto.training.optim.optimizers import build_optimizer
from impasto.training.optim.rounding import build_rounding
from impasto.training.saving.saver import Saver

WEIGHTS = 32 << 20  # numbers that the optimizers are timed on
RULES: dict[str, tuple[str, torch.dtype, str | None]] = {
    "adamw": ("adamw", torch.float32, None),
    "adamw8bit": ("adamw8bit", torch.float32, None),
    "lion": ("lion", torch.float32, None),
    "adafactor": ("adafactor", torch.float32, None),
    "adamw, bf16 weights, stochastic rounding": ("adamw", torch.bfloat16, "stochastic"),
    "adamw, bf16 weights, Kahan": ("adamw", torch.bfloat16, "kahan"),
}


def measure(scratch: Path) -> dict[str, str]:
    scratch.mkdir(parents=True, exist_ok=True)
    config = demo_config(scratch / "run", ["previews.prompts=[]", "training.fit_check=false"])
    session = build_session(config, build_accelerator(), SilentEvents(), Overrides())
    captions = [f"an image of the thing number {n}, blue" for n in range(64)]
    fresh, states = session.captions, session.trainable.states
    saver = Saver(
        session.resumable(),
        session.export_source(),
        session.accelerator,
        session.eval_weights,
        RunDirectory(config.output_dir),
        SilentEvents(),
    )
    sampler = session.previewer.sampler
    prompt = Prompt("a red house", width=128, height=128, steps=10, guidance_scale=2.0)
    seconds = {
        "64 captions to states, s": _median(lambda: states(fresh_ids(fresh, captions))),
        "a state of the tiny model saved, s": _median(
            lambda: saver.save_state(0, None, now=True), before=lambda: _forget(config.output_dir)
        ),
        "an image of 128 px drawn in 10 steps, s": _median(lambda: sampler.draw(prompt)),
    }
    rows = {name: f"{value:.3f}" for name, value in seconds.items()}
    first = None
    for name, (kind, dtype, rounding) in RULES.items():
        value = optimizer_seconds(kind, dtype, rounding)
        first = first or value
        rows[f"a step of {name} over {WEIGHTS >> 20} Mi numbers, s; against adamw"] = (
            f"{value:.3f}; {value / first:.2f}"
        )
    return rows


def fresh_ids(conditioner: Any, captions: list[str]) -> torch.Tensor:
    """Return token ids, one chunk per caption."""
    return torch.tensor([conditioner.tokens[0](caption).ids[0] for caption in captions])


def optimizer_seconds(kind: str, dtype: torch.dtype, rounding: str | None) -> float:
    device = default_device()
    module = nn.ParameterList(
        nn.Parameter(torch.randn(WEIGHTS // 8, device=device).to(dtype)) for _ in range(8)
    )
    rules = AT_ONCE if rounding is None else ChunkRules(build_rounding(rounding, device))  # type: ignore[arg-type]
    optimizer = build_optimizer(
        [TrainedModule("unet", module, 1e-5)], OptimizerConfig(kind=kind), rules
    )
    for parameter in module:
        parameter.grad = torch.randn_like(parameter)

    def step() -> None:
        if rounding is not None:
            optimizer.begin(0)  # type: ignore[attr-defined]
        optimizer.step()
        for parameter in module:
            parameter.grad = (
                torch.randn_like(parameter) if parameter.grad is None else parameter.grad
            )

    return _median(step)


def _forget(run: Path) -> None:
    shutil.rmtree(run / "states", ignore_errors=True)


def _median(work: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    times = []
    for _ in range(5):
        before()
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
