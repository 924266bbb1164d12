"""Collects losses on the device and time on the clock between two lines of metrics."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Reading:
    """What the updates since the last reading amounted to.

    Attributes:
        losses: [N] the loss of each update, over all processes, on the CPU.
        grad_norm: The mean norm of the gradient before clipping; None where nothing is clipped.
        images_per_s: Pictures of all processes per second of training, other work left out.
        data_wait: The share of that time that was spent waiting for data.
        memory_mib: The GPU's at its most since the start; without one, the process's now.
    """

    losses: Tensor
    grad_norm: float | None
    images_per_s: float
    data_wait: float
    memory_mib: float


class Meter:
    """Keeps tensors where they are until they are read, so that no update waits for the device."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._samples = 0
        self._began = time.perf_counter()
        self._aside_s = self._waited_s = 0.0
        self.timings_s: dict[str, float] = {}

    def add(self, loss: Tensor, norm: Tensor | None, samples: int) -> None:
        """Note an update: its mean loss, the gradient's norm, and its pictures."""
        self._losses.append(loss)
        if norm is not None:
            self._norms.append(norm)
        self._samples += samples

    def waiting_for(self, items: Iterator[T]) -> Iterator[T]:
        """The same items; the time until each is there counts as waiting for data."""
        while True:
            began = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            self._waited_s += time.perf_counter() - began
            yield item

    @contextlib.contextmanager
    def aside(self, activity: str) -> Iterator[None]:
        """Time something that is not training, and keep it out of the rate."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self._aside_s += seconds
            self.timings_s[activity] = self.timings_s.get(activity, 0.0) + seconds

    def restart(self) -> None:
        """Begin a new window."""
        self._losses, self._norms, self._samples = [], [], 0
        self._began, self._aside_s, self._waited_s = time.perf_counter(), 0.0, 0.0

    def read(self) -> Reading | None:
        """Wait for the device, give what came together, and begin a new window."""
        if not self._losses:
            return None
        losses = torch.stack(self._losses)
        if self._accelerator.num_processes > 1:
            losses = self._accelerator.reduce(losses, "mean")
        values = losses.cpu()
        seconds = time.perf_counter() - self._began - self._aside_s
        norm = float(torch.stack(self._norms).mean()) if self._norms else None
        reading = Reading(
            values, norm, self._samples / seconds, self._waited_s / seconds, _memory_mib()
        )
        self.timings_s["training"] = self.timings_s.get("training", 0.0) + seconds
        self.restart()
        return reading


def _memory_mib() -> float:
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated() / 2**20
    return float(psutil.Process().memory_info().rss) / 2**20
