"""Run the project's trainer on the pretended GPU: `drive.py LIBRARY ORDERS ANSWERS`, JSON files.

ORDERS is a list of cases, each with a name, settings, and optionally a fault; ANSWERS receives the
findings of each. One process runs them all, since importing takes longer than most of them.
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
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)  # before torch queries devices

sys.path.insert(0, str(Path(__file__).parents[2]))
from impasto.cli.imports import leave_out_quantizers

leave_out_quantizers()
import diffusers
import stand_ins
from clocks import FINDINGS
from device import install
from gpu_cases import broken_inputs, broken_step

from impasto.config.load import build_run_config
from impasto.errors import ImpastoError, OutOfMemoryError
from impasto.models.networks import tokenizers
from impasto.training import loop, trainer
from impasto.training.events import SilentEvents
from impasto.training.steps import micro_steps

for name in ("AutoencoderKL", "UNet2DConditionModel", "DDIMScheduler", "EulerDiscreteScheduler"):
    getattr(diffusers, name)  # lazily imported


class Watched(SilentEvents):
    """Records the waits and allocations of each step apart from those outside steps."""

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
    gc.freeze()  # garbage collections skip imported objects
    for order in orders:
        if order.get("each_site"):
            answers |= run_out_of_memory_everywhere(order, answers[order["like"]])
        else:
            answers[order["name"]] = run(order)
        Path(sys.argv[3]).write_text(json.dumps(answers), encoding="utf-8")


def remembered(build: Any) -> Any:
    """Return a caching version of a tokenizer's builder: building takes half of a case's time."""
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
    """Run a case again, out of memory at each place where its second step allocates some.

    The first place gets a separate run, which can be resumed, and so does each place of an update
    that becomes a CUDA graph, since its recording differs after a failure. In the next run the same
    step fails at all other places, one after the other, and each failure leaves its states in a
    separate folder; after a failure while the optimizer changed the weights, another run continues
    with the rest.
    """
    of_graph = "/optim/" if "cuda_graphs" in order["settings"]["training"] else "no place"
    numbered = list(enumerate(sorted(whole["allocations"][1])))
    alone = [place for place in numbered if place[0] == 0 or of_graph in place[1]]
    others = [place for place in numbered if place not in alone]
    answers = {}
    base = order["settings"]["output_dir"]
    for places in (*([place] for place in alone), others):
        while places:
            settings = {**order["settings"], "output_dir": f"{base}-at-{places[0][0]}"}
            answers |= run_out_of_memory({**order, "settings": settings}, places, base)
    return answers


def run_out_of_memory(
    order: dict[str, Any], places: list[tuple[int, str]], base: str
) -> dict[str, dict[str, Any]]:
    """Run a case that fails at as many places as possible; those are removed from the list."""
    answers: dict[str, dict[str, Any]] = {}

    def failed(answer: dict[str, Any]) -> None:
        number, site = places.pop(0)
        answers[f"{order['name']}{number}"] = {"site": site, **answer}
        run = Path(order["settings"]["output_dir"])
        if answer.keys() == {"error"}:
            states = Path(f"{base}{number}") / "states"
            states.mkdir(parents=True)
            for state in (run / "states").glob("step-*"):
                state.rename(states / state.name)
        else:
            run.rename(f"{base}{number}")

    failed(run({**order, "places": places, "failed": failed}))
    return answers


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Run one case and return its findings."""
    FINDINGS.reset()
    stand_ins.PAGES.clear()
    began = time.process_time()
    events = Watched()
    original = loop.TrainingLoop.step, micro_steps.training_step, micro_steps.step_inputs
    real = original[0]
    if "places" in order:
        real = failing_update(real, order["places"], order["failed"])
    loop.TrainingLoop.step = watched_update(events, real)
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
        error = told(found)
    except Exception:  # reported to the test, which fails
        error = traceback.format_exc()
    finally:
        FINDINGS.fail_at = None
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


def watched_update(events: Watched, real: Any) -> Any:
    def update(self: Any, update: Any, batches: Any) -> None:
        waits, allocations = FINDINGS.waits.copy(), FINDINGS.allocations.copy()
        real(self, update, batches)
        events.waits[update.step] = dict(FINDINGS.waits - waits)
        events.allocations[update.step] = dict(FINDINGS.allocations - allocations)

    return update


def failing_update(real: Any, places: list[tuple[int, str]], failed: Any) -> Any:
    """Return an update whose step 2 fails at the first place, and is repeated for the next.

    The last place ends the run, and so does one after which weights have changed.
    """

    def update(self: Any, update: Any, batches: Any) -> None:
        if update.step != 1:
            real(self, update, batches)
            return
        given = list(batches)
        while True:
            _, FINDINGS.fail_at = places[0]
            if len(places) == 1:
                real(self, update, iter(given))
                return
            try:
                with self._failures.explaining_errors("training", update.step):
                    real(self, update, iter(given))
            except OutOfMemoryError as error:
                if self._optimizer_update.is_stepping:
                    raise
                failed({"error": told(error)})
            else:
                raise AssertionError(f"no memory was allocated at {places[0]}")

    return update


def told(error: ImpastoError) -> str:
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
