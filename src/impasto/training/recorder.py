"""What a run writes down while it trains: metrics, trackers, and the loss of each picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from impasto.publishing import published_settings
from impasto.runs import RunDirectory
from impasto.training.events import TrainingEvents
from impasto.training.image_losses import ImageLosses
from impasto.training.meter import Meter
from impasto.training.session import Session
from impasto.training.spill import watch_for
from impasto.training.trackers import Tracker, open_trackers, shown_numbers


class Recorder:
    """Keeps the numbers of a run; every process has one, the first one writes.

    Args:
        session: What is trained.
        run: Where metrics go.
        events: Who is told.
        preparing_s: Seconds that loading, scanning and encoding took.
    """

    def __init__(
        self, session: Session, run: RunDirectory, events: TrainingEvents, preparing_s: float
    ) -> None:
        self._session, self._run, self._events = session, run, events
        self._is_main = session.accelerator.is_main_process
        self._trackers: list[Tracker] = []
        self._lost: set[Path] = set()
        self._spill = watch_for(session.accelerator.device)
        self.meter = Meter(session.accelerator, session.recipe.schedule.num_timesteps)
        self.meter.timings_s["preparing"] = preparing_s
        asked = session.config.logging.image_losses
        self.image_losses = ImageLosses(session.accelerator, run) if asked else None

    def open(self, step: int) -> None:
        """Begin after `step` updates; what was written after them is forgotten."""
        if self.image_losses is not None:
            self.image_losses.rewind(step)
        if not self._is_main:
            return
        if step:
            self._run.rewind_metrics(step)
        else:
            self._run.metrics_file.unlink(missing_ok=True)
        config = self._session.config
        whole = config.model_dump(mode="json", exclude_none=True)
        settings = published_settings(whole, config.saving.publish)
        self._trackers = open_trackers(config.logging.trackers, self._run, settings)

    def close(self) -> None:
        """Have the trackers write what is left."""
        for tracker in self._trackers:
            tracker.close()

    def log(self, done: int) -> None:
        """Write a line of metrics about the updates since the last one; waits for the device."""
        reading = self.meter.read()
        if reading is None:
            return
        for path, reason in self._newly_lost():
            self._events.note(f"{path} cannot be read any more and is passed over: {reason}")
        if self.image_losses is not None:
            self.image_losses.write()
        if self._spill is not None:
            warning = self._spill.look(reading.images_per_s, torch.cuda.memory_reserved())
            if warning is not None:
                self._events.note(warning)
        record = {
            "step": done,
            "epoch": (done - 1) // self._session.sampler.updates_per_epoch,
            "samples_seen": self._session.sampler.samples_before(done),
            "loss": float(reading.losses.mean()),
            **reading.by_range,
            **self._rates(),
            "images_per_s": reading.images_per_s,
            "data_wait": round(reading.data_wait, 4),
            "memory_mib": round(reading.memory_mib),
        }
        if reading.grad_norm is not None:
            record["grad_norm"] = reading.grad_norm
        self.write(record)

    def keep(self) -> None:
        """Write down what a state does not keep: the losses of images."""
        if self.image_losses is not None:
            self.image_losses.write()

    def write(self, record: dict[str, Any]) -> None:
        """Write a line of metrics, and pass it on."""
        if self._is_main:
            self._run.require_held()
            self._run.append_metrics(record)
            self._events.measured(record)
            step, numbers = shown_numbers(record)
            for tracker in self._trackers:
                tracker.log(numbers, step)

    def _rates(self) -> dict[str, float]:
        """`lr` of the first part, `lr_<part>` of what is trained beside it."""
        groups = self._session.optimizer.param_groups
        rates: dict[str, float] = {}
        for part, group in zip(self._session.part_by_group, groups, strict=True):
            rates.setdefault(part, float(group["lr"]))
        first = self._session.trainable.parts[0].name
        named = {"lr" if part == first else f"lr_{part}": rate for part, rate in rates.items()}
        found = groups[0].get("d")  # Prodigy's and D-Adaptation's estimate, which lr multiplies
        return named if found is None else {**named, "d_lr": float(found) * named["lr"]}

    def _newly_lost(self) -> list[tuple[Path, str]]:
        """Pictures that training met and could not read since the last look."""
        lost = self._session.data.lost
        fresh = [(path, reason) for path, reason in list(lost.items()) if path not in self._lost]
        self._lost.update(path for path, _ in fresh)
        return fresh
