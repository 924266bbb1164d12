"""Records a running training: metrics, trackers, and the loss of each image."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from impasto.config.run import RunConfig
from impasto.data.caching.encoding import said_of_remade
from impasto.data.loading.sampler import EpochSampler
from impasto.errors import StorageError
from impasto.models.trainable import TrainedModule
from impasto.publishing import redact_settings
from impasto.remote_paths import shown
from impasto.runs import RunDirectory
from impasto.training.events import TrainingEvents
from impasto.training.monitoring.image_losses import ImageLosses
from impasto.training.monitoring.metrics import MetricsCollector, MetricsWindow
from impasto.training.monitoring.trackers import (
    TrackedRun,
    Tracker,
    open_trackers,
    shown_numbers,
)
from impasto.training.monitoring.vram_overflow import watch_for_overflow


@dataclass(frozen=True)
class RecorderInputs:
    """The objects that a recorder reads while a run trains.

    Attributes:
        config: The settings.
        accelerator: The processes.
        sampler: Tells how many samples have been seen after a step.
        optimizer: Its groups hold the learning rates.
        module_by_group: The name of the model part that each group belongs to.
        modules: The trained parts, and the steps in which each is trained.
        num_timesteps: Timesteps of the noise schedule.
        lost: Image that cannot be used any more -> reason; grows during training.
        remade: Images whose latents had to be encoded again in float32; grows during training.
        number_of_images: Number of images trained on.
    """

    config: RunConfig
    accelerator: Accelerator
    sampler: EpochSampler
    optimizer: torch.optim.Optimizer
    module_by_group: Sequence[str]
    modules: Sequence[TrainedModule]
    num_timesteps: int
    lost: Mapping[Path, str]
    remade: Collection[Path]
    number_of_images: int


class Recorder:
    """Measures a run and writes its metrics; every process has one, and the main one writes.

    Args:
        of: The objects to read.
        run: The run directory that metrics are written to.
        events: Receives the events of the run.
        preparing_s: Seconds that loading, scanning and encoding took.

    Attributes:
        meter: Collects the losses and durations of steps.
        image_losses: Collects the loss of each image; None if `logging.image_losses` is off.
    """

    def __init__(
        self, of: RecorderInputs, run: RunDirectory, events: TrainingEvents, preparing_s: float
    ) -> None:
        self._of, self._run, self._events = of, run, events
        self._is_main = of.accelerator.is_main_process
        self._trackers: list[Tracker] = []
        self._lost: set[Path] = set()
        self._told_of_remade = False
        self._vram_overflow = watch_for_overflow(of.accelerator.device)
        graphs_steps = of.config.training.cuda_graphs == "step"
        self.meter = MetricsCollector(of.accelerator, of.num_timesteps, graphs_steps=graphs_steps)
        self.meter.timings_s["preparing"] = preparing_s
        asked = of.config.logging.image_losses
        self.image_losses = ImageLosses(of.accelerator, run) if asked else None

    def open(self, step: int) -> None:
        """Open the files and trackers to continue after `step` steps; later lines are removed."""
        if self.image_losses is not None:
            self.image_losses.rewind(step)
        if not self._is_main:
            return
        if step:
            self._run.truncate_metrics(step)
        else:
            self._run.metrics_file.unlink(missing_ok=True)
        config = self._of.config
        whole = config.model_dump(mode="json", exclude_none=True)
        settings = redact_settings(whole, config.saving.publish)
        logging = config.logging
        tracked = TrackedRun(
            self._run,
            logging.wandb_name or Path(self._run.path).resolve().name,
            logging.wandb_project,
            settings,
            step,
            config.saving.publish,
        )
        self._trackers = open_trackers(logging.trackers, tracked)

    def close(self) -> None:
        """Close the trackers; if one cannot write its last numbers, only note that."""
        for tracker in self._trackers:
            try:
                tracker.close()
            except StorageError as error:
                self._events.note(f"{type(tracker).__name__} could not write the rest: {error}")

    def begin(self, done: int, window: MetricsWindow | None, *, is_due: bool) -> None:
        """Begin to measure after `done` steps.

        Args:
            done: Steps completed.
            window: Measurements of earlier steps that no line of metrics includes; None for none.
            is_due: Whether a line of metrics is due after `done` steps. If there is a window too,
                the line could not be written before, and is written now.
        """
        self.meter.restart()
        if window is not None:
            self.meter.resume(window)
            if is_due:
                self.log(done)

    def log(self, done: int) -> None:
        """Write a line of metrics about the steps since the last one; waits for the device.

        If the disk is full, the measurements stay in the window, which is saved with the state.
        """
        summary = self.meter.read()
        if summary is None:
            return
        for path, reason in self._newly_lost():
            self._events.note(f"{shown(path)} cannot be used any more and is skipped: {reason}")
        self._note_remade()
        if self.image_losses is not None:
            self.image_losses.write(done)
        if self._vram_overflow is not None:
            warning = self._vram_overflow.look(
                summary.images_per_s, summary.data_wait, torch.cuda.memory_reserved()
            )
            if warning is not None:
                self._events.note(warning)
        record = {
            "step": done,
            "epoch": (done - 1) // self._of.sampler.steps_per_epoch,
            "samples_seen": self._of.sampler.samples_before(done),
            "loss": float(summary.losses.mean()),
            **summary.by_range,
            **self._rates(done),
            "images_per_s": summary.images_per_s,
            "data_wait": round(summary.data_wait, 4),
            "memory_mib": round(summary.memory_mib),
        }
        if summary.grad_norm is not None:
            record["grad_norm"] = summary.grad_norm
        self._append(record)
        self.meter.restart()
        self._pass_on(record)

    def keep(self, done: int, *, alone: bool = False) -> None:
        """Write the losses of images, which a state after `done` steps does not hold.

        Args:
            done: Steps completed; the losses of later steps are dropped.
            alone: Whether to write without waiting for other processes.
        """
        if self.image_losses is not None:
            self.image_losses.write(done, alone=alone)

    def write(self, record: dict[str, Any]) -> None:
        """Write a line of metrics with the time, and pass it to events and trackers."""
        self._append(record)
        self._pass_on(record)

    def _append(self, record: dict[str, Any]) -> None:
        if self._is_main:
            self._run.require_locked()
            self._run.append_metrics({**record, "time": round(time.time(), 3)})

    def _pass_on(self, record: dict[str, Any]) -> None:
        if self._is_main:
            self._events.measured(record)
            step, numbers = shown_numbers(record)
            for tracker in self._trackers:
                tracker.log(numbers, step)

    def _rates(self, done: int) -> dict[str, float]:
        """Return the learning rates: `lr` of the first part, `lr_<part>` of each other one.

        The rate is 0 for a part that was not trained in the last of `done` steps. `d_lr` is added
        for optimizers that estimate their learning rate.
        """
        groups = self._of.optimizer.param_groups
        rates: dict[str, float] = {}
        for name, group in zip(self._of.module_by_group, groups, strict=True):
            rates.setdefault(name, float(group["lr"]))
        rates |= {m.name: 0.0 for m in self._of.modules if not m.is_trained_at(done - 1)}
        first = self._of.module_by_group[0]
        named = {"lr" if name == first else f"lr_{name}": rate for name, rate in rates.items()}
        found = groups[0].get("d")  # Prodigy's and D-Adaptation's estimate, which lr multiplies
        return named if found is None else {**named, "d_lr": float(found) * named["lr"]}

    def _note_remade(self) -> None:
        """Note, once, that latents were encoded again in float32; the cause stays the same."""
        if self._of.remade and not self._told_of_remade:
            self._told_of_remade = True
            said = said_of_remade(len(self._of.remade), self._of.number_of_images)
            self._events.note(said)

    def _newly_lost(self) -> list[tuple[Path, str]]:
        """Return the images, with reasons, that could not be read since the last call."""
        lost = self._of.lost
        fresh = [(path, reason) for path, reason in list(lost.items()) if path not in self._lost]
        self._lost.update(path for path, _ in fresh)
        return fresh
