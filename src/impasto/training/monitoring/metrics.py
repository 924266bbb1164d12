"""Collects losses and durations between two lines of metrics, without waiting for the device."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

from impasto.training.step import StepOutput

T = TypeVar("T")
RANGES = 4  # quarters of the timesteps, whose losses are reported separately


@dataclass(frozen=True)
class MetricsSummary:
    """Measurements of the steps since the last line of metrics.

    Attributes:
        losses: [N] the loss of each step, over all processes, on the CPU.
        grad_norm: The mean gradient norm before clipping, of steps that did not overflow; None if
            all did, or it is not measured.
        images_per_s: Images of all processes per second of training; other work is not counted.
        data_wait: The fraction of that time spent waiting for data.
        memory_mib: Peak VRAM since the start: of tensors, or with `training.cuda_graphs` step the
            memory that PyTorch has reserved, since tensors within graphs are not counted
            separately. Without a GPU, the RAM that the process uses now.
        by_range: `loss_t0_249` and so on: the mean loss of samples by quarters of the timesteps.
    """

    losses: Tensor
    grad_norm: float | None
    images_per_s: float
    data_wait: float
    memory_mib: float
    by_range: dict[str, float]


@dataclass(frozen=True)
class MetricsWindow:
    """Measurements of steps that no line of metrics includes yet; saved with a state.

    Attributes:
        losses: The loss of each step.
        norms: The gradient norms of those steps in which it was measured.
        sums: [RANGES, 2] per range of timesteps, the sum of the samples' losses and their number.
    """

    losses: list[float]
    norms: list[float]
    sums: list[list[float]]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> MetricsWindow:
        """Return the window of metrics in the JSON of a training state.

        Raises:
            KeyError, TypeError, ValueError: The content is not a dict that `asdict` made of one.
        """
        sums = [[float(value) for value in row] for row in content["sums"]]
        if [len(row) for row in sums] != [2] * RANGES:
            raise ValueError(f"window.sums does not have the shape [{RANGES}, 2]")
        losses, norms = ([float(value) for value in content[key]] for key in ("losses", "norms"))
        return cls(losses, norms, sums)


@dataclass(frozen=True)
class _Step:
    """The measurements of an optimizer step, on the device.

    Attributes:
        done: Steps completed after it.
        loss: [] its mean loss.
        norm: [] the gradient's norm; None if it was not measured.
        outputs: The losses of its samples, one entry per forward pass.
    """

    done: int
    loss: Tensor
    norm: Tensor | None
    outputs: Sequence[StepOutput]


class MetricsCollector:
    """Collects tensors on the device until they are read, so that no step waits for the device.

    Args:
        accelerator: The processes, which divide the samples of each step.
        num_timesteps: Timesteps of the schedule.
        graphs_steps: Whether whole steps are CUDA graphs, whose memory is counted differently.

    Attributes:
        timings_s: Seconds spent so far, by activity.
    """

    def __init__(
        self, accelerator: Accelerator, num_timesteps: int, *, graphs_steps: bool = False
    ) -> None:
        self._accelerator, self._graphs_steps = accelerator, graphs_steps
        self._num_timesteps = num_timesteps
        self._steps: list[_Step] = []
        self._outputs: list[StepOutput] = []  # of the current step
        self._before: MetricsWindow | None = None
        self._samples = 0
        self._began = time.perf_counter()
        self._aside_s = self._waited_s = 0.0
        self.timings_s: dict[str, float] = {}

    def add(self, done: int, loss: Tensor, norm: Tensor | None, samples: int) -> None:
        """Add a completed step.

        Args:
            done: Steps completed, including this one.
            loss: [] mean loss of the step.
            norm: [] norm of its gradient; None if it was not measured.
            samples: Images of the step, over all processes.
        """
        self._steps.append(_Step(done, loss, norm, self._outputs))
        self._outputs = []
        self._samples += samples

    def add_samples(self, output: StepOutput) -> None:
        """Add the samples of a forward pass; they belong to the next step that is added."""
        self._outputs.append(StepOutput(output.losses.detach(), output.t, output.weights))

    def time_waiting(self, items: Iterator[T]) -> Iterator[T]:
        """Yield items, and count the time that each takes to arrive as waiting for data."""
        while True:
            began = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            self._waited_s += time.perf_counter() - began
            yield item

    def leave_out(self, samples: int) -> None:
        """Exclude the images of a step from the training speed, whose time is excluded already."""
        self._samples -= samples

    @contextlib.contextmanager
    def aside(self, activity: str) -> Iterator[None]:
        """Time work other than training, and exclude it from the training speed."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self._aside_s += seconds
            self.timings_s[activity] = self.timings_s.get(activity, 0.0) + seconds

    def restart(self) -> None:
        """Discard all measurements, and start a new window."""
        self._steps, self._outputs, self._samples = [], [], 0
        self._before = None
        self._began, self._aside_s, self._waited_s = time.perf_counter(), 0.0, 0.0

    def window(self, done: int) -> MetricsWindow | None:
        """Wait for the device, and return the measurements since the last line of metrics.

        None if there were no steps, and with several processes, which save states only together
        with a line of metrics.

        Args:
            done: Steps to include; later ones were not applied.
        """
        steps = [step for step in self._steps if step.done <= done]
        if self._accelerator.num_processes > 1 or not self._has_any(steps):
            return None
        losses = self._losses(steps)
        sums = self._sums_by_range(steps, losses.device).tolist()
        norms = [float(norm) for norm in self._norms(steps)]
        return MetricsWindow(losses.tolist(), norms, sums)

    def resume(self, window: MetricsWindow) -> None:
        """Continue with the window of a stopped run, whose time is not counted."""
        self._before = window

    def read(self) -> MetricsSummary | None:
        """Wait for the device, and return a summary of the window; None if it has no steps.

        The window continues until `restart` is called.
        """
        steps = self._steps
        if not self._has_any(steps):
            return None
        losses = self._losses(steps)
        if self._accelerator.num_processes > 1:
            losses = self._accelerator.reduce(losses, "mean")
        sums = self._sums_by_range(steps, losses.device)
        values = losses.cpu()
        seconds = time.perf_counter() - self._began - self._aside_s
        summary = MetricsSummary(
            values,
            _mean_of_finite(self._norms(steps)),
            self._samples / seconds,
            self._waited_s / seconds,
            _memory_mib(graphs_steps=self._graphs_steps),
            self._named_means(sums),
        )
        self.timings_s["training"] = self.timings_s.get("training", 0.0) + seconds
        return summary

    def _has_any(self, steps: Sequence[_Step]) -> bool:
        return bool(steps) or (self._before is not None and bool(self._before.losses))

    def _losses(self, steps: Sequence[_Step]) -> Tensor:
        """Return [N] losses, one per step, beginning with those from before a resume."""
        device = self._accelerator.device
        before = [] if self._before is None else self._before.losses
        return torch.stack(
            [*(torch.tensor(loss, device=device) for loss in before), *(s.loss for s in steps)]
        )

    def _norms(self, steps: Sequence[_Step]) -> list[Tensor]:
        """Return the measured norms, beginning with those from before a resume."""
        device = self._accelerator.device
        before = [] if self._before is None else self._before.norms
        taken = (step.norm for step in steps if step.norm is not None)
        return [*(torch.tensor(norm, device=device) for norm in before), *taken]

    def _sums_by_range(self, steps: Sequence[_Step], device: torch.device) -> Tensor:
        """Return [RANGES, 2] sums of losses and their numbers, over all processes.

        Samples of weight 0 are left out. After a resume only the main process adds the sums from
        before, since all processes are summed.
        """
        sums = torch.zeros((RANGES, 2), device=device)
        if self._before is not None and self._accelerator.is_main_process:
            sums += torch.tensor(self._before.sums, device=device)
        outputs = [output for step in steps for output in step.outputs]
        if outputs:
            losses = torch.cat([output.losses for output in outputs])
            t = torch.cat([output.t for output in outputs])
            counted = torch.stack([losses, (losses != 0).to(losses)], dim=1)
            sums.index_add_(0, t * RANGES // self._num_timesteps, counted)
        if self._accelerator.num_processes > 1:
            sums = self._accelerator.reduce(sums, "sum")
        return sums

    def _named_means(self, sums: Tensor) -> dict[str, float]:
        edges = [number * self._num_timesteps // RANGES for number in range(RANGES + 1)]
        return {
            f"loss_t{edges[number]}_{edges[number + 1] - 1}": total / count
            for number, (total, count) in enumerate(sums.tolist())
            if count
        }


def _memory_mib(*, graphs_steps: bool) -> float:
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        most = torch.cuda.max_memory_reserved if graphs_steps else torch.cuda.max_memory_allocated
        return most() / 2**20
    return float(psutil.Process().memory_info().rss) / 2**20


def _mean_of_finite(norms: Sequence[Tensor]) -> float | None:
    """Return the mean of the finite norms (others are of skipped steps); None if there are none."""
    known = torch.stack(list(norms)).cpu() if norms else torch.empty(0)
    finite = known[torch.isfinite(known)]
    return float(finite.mean()) if len(finite) else None
