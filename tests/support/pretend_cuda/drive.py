"""Runs the project's trainer on the pretended GPU: `drive.py LIBRARY ORDERS ANSWERS`, JSON files.

An order is a list of cases, each with a name, settings, and perhaps a fault. Answers say of each
what was found. One process runs them all, since importing takes longer than most of them.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

os.fsync = os.fstat  # as in conftest.py
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)  # before torch asks what there is

sys.path.insert(0, str(Path(__file__).parents[2]))
import diffusers
import stand_ins
from clocks import FINDINGS
from device import install
from gpu_cases import broken_inputs, broken_step

from impasto.config.load import build_run_config
from impasto.errors import ImpastoError
from impasto.models.networks import tokenizers
from impasto.training import loop, micro_steps, trainer
from impasto.training.events import SilentEvents

for name in ("AutoencoderKL", "UNet2DConditionModel", "DDIMScheduler", "EulerDiscreteScheduler"):
    getattr(diffusers, name)  # lazily imported


class Watched(SilentEvents):
    """Tells the waits of each step from those of what is done beside them."""

    def __init__(self) -> None:
        self.waits: dict[int, dict[str, int]] = {}
        self.allocations: dict[int, dict[str, int]] = {}
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def main() -> None:
    orders = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    install()
    tokenizers.tokenizer_of = remembered(tokenizers.tokenizer_of)
    answers: dict[str, Any] = {}
    gc.collect()
    gc.freeze()  # no collection looks at what was imported
    for order in orders:
        if order.get("each_site"):
            answers |= run_out_of_memory_everywhere(order, answers[order["like"]])
        else:
            answers[order["name"]] = run(order)
        Path(sys.argv[3]).write_text(json.dumps(answers), encoding="utf-8")


def remembered(build: Any) -> Any:
    """The tokenizer of all cases is the same, and takes half the time of one."""
    known: dict[Any, Any] = {}

    def of(files: Any, pad_token: str) -> Any:
        key = (tuple(sorted(files.items())), pad_token)
        if key not in known:
            known[key] = build(files, pad_token)
        return known[key]

    return of


def run_out_of_memory_everywhere(
    order: dict[str, Any], whole: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """A run like another one, once for each place where its second step takes memory."""
    answers = {}
    for number, site in enumerate(sorted(whole["allocations"][1])):
        name = f"{order['name']}{number}"
        settings = {**order["settings"], "output_dir": f"{order['settings']['output_dir']}{number}"}
        answers[name] = {"site": site, **run({**order, "settings": settings, "fail_at": site})}
    return answers


def run(order: dict[str, Any]) -> dict[str, Any]:
    """One case."""
    FINDINGS.reset()
    stand_ins.PAGES.clear()
    began = time.process_time()
    events = Watched()
    original = loop.TrainingLoop.step, micro_steps.training_step, micro_steps.step_inputs
    loop.TrainingLoop.step = watched_update(events, original[0], order.get("fail_at"))
    if order["settings"]["training"].get("cuda_graphs") == "step":
        micro_steps.step_inputs = broken_inputs(order.get("fault"), original[2])
    else:
        micro_steps.training_step = broken_step(order.get("fault"), original[1])
    error = None
    try:
        config = build_run_config(order["settings"], source=order["name"])
        if order.get("resume"):
            trainer.resume(config.output_dir, events)
        else:
            trainer.train(config, events)
    except ImpastoError as found:
        error = f"{type(found).__name__}: {found}"
    except Exception:  # told to the test, which fails
        error = traceback.format_exc()
    finally:
        loop.TrainingLoop.step, micro_steps.training_step, micro_steps.step_inputs = original
    return {
        "error": error,
        "waits": events.waits,
        "allocations": events.allocations,
        "notes": events.notes,
        "races": dict(FINDINGS.races),
        "frees": dict(FINDINGS.frees),
        "pages": len(stand_ins.PAGES),
        "cpu_s": time.process_time() - began,
    }


def watched_update(events: Watched, real: Any, fail_at: str | None) -> Any:
    def update(self: Any, update: Any, batches: Any) -> None:
        waits, allocations = FINDINGS.waits.copy(), FINDINGS.allocations.copy()
        FINDINGS.fail_at = fail_at if update.step == 1 else None
        real(self, update, batches)
        FINDINGS.fail_at = None
        events.waits[update.step] = dict(FINDINGS.waits - waits)
        events.allocations[update.step] = dict(FINDINGS.allocations - allocations)

    return update


if __name__ == "__main__":
    main()
