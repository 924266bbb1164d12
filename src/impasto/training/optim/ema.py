"""A running average of the weights, which gives better images and validation losses.

Polyak and Juditsky 1992; decay per step as in Ho et al. 2020 (arXiv:2006.11239), appendix B,
with a warm-up of (1 + n) / (10 + n) as in TensorFlow's ExponentialMovingAverage. Other decays are
passed as a function of the step, as those of `posthoc.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor, nn

from impasto.checkpoints.tensors import LazyTensor
from impasto.errors import RunError
from impasto.training.optim.offload import new_stream
from impasto.training.optim.pinned_memory import pinned_like

Decay = Callable[[int], float]
"""The step after which the average is updated, from 0 -> the decay: the fraction of the old average
that is retained."""

WIDENED_AT_ONCE = 16 << 20
"""Number of 16-bit weights that are widened to float32 at a time, unless one tensor has more."""


class EmaWeights:
    """Exponential moving averages of parameters, in float32.

    Args:
        parameters: The parameters to average, by name.
        decay: The fraction of the old average that a step retains, in (0, 1); or a function that
            returns it for all steps since the last update, in [0, 1).
        power: The decay rises as 1 - (1 + steps)^-power up to `decay`; crowsonkb/k-diffusion,
            `EMAWarmup`. None uses TensorFlow's warm-up.
        every: Steps between updates; an update then uses the decay of as many steps, decay^every.
        on_cpu: Whether the averages are kept in RAM.
        copies_values: Whether weights must stay at their place in memory, so that `swapped_in`
            copies values; otherwise it swaps the tensors, which takes no memory.
        overlapped: Whether updates run while training continues, which may then change the weights
            only after `wait_for_copies`; None means they do if the weights are on a GPU and the
            averages in RAM.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        decay: float | Decay,
        *,
        power: float | None = None,
        every: int = 1,
        on_cpu: bool = False,
        copies_values: bool = False,
        overlapped: bool | None = None,
    ) -> None:
        self._parameters = dict(parameters)
        self._every = every
        self._decay = decay if callable(decay) else partial(rising_decay, decay, power, every)
        self._copies = on_cpu or copies_values
        self._averages = {
            name: parameter.detach().to(
                "cpu" if on_cpu else parameter.device, torch.float32, copy=True
            )
            for name, parameter in self._parameters.items()
        }

        on_gpu = any(p.device.type == "cuda" for p in self._parameters.values())
        self._async_updater = AsyncEmaUpdater() if (on_cpu and on_gpu) or overlapped else None

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the averages after the step `step`, counted from 0, if one is due."""
        if (step + 1) % self._every:
            return
        averages = list(self._averages.values())
        fraction = 1 - self._decay(step)
        weights = [parameter.detach() for parameter in self._parameters.values()]
        if self._async_updater is not None:
            self._async_updater.take(weights, partial(lerp_in_float32, averages, fraction=fraction))
        else:
            lerp_in_float32(averages, weights, fraction)

    def wait_for_copies(self) -> None:
        """Make the next change of the weights wait until an overlapped update has copied them."""
        if self._async_updater is not None:
            self._async_updater.wait_on_device()

    def _flush(self) -> None:
        if self._async_updater is not None:
            self._async_updater.flush()

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Replace the weights by their averages within the context; restore them bit for bit."""
        self._flush()
        if self._copies:
            kept = [p.detach().to("cpu", copy=True) for p in self._parameters.values()]
            self._overwrite(self._averages.values())
        else:
            self._exchange()
        try:
            yield
        finally:
            if self._copies:
                self._overwrite(kept)
            else:
                self._exchange()

    def tensors(self) -> dict[str, Tensor]:
        """Return the averages by parameter name, after pending updates; tensors are not copied."""
        self._flush()
        return dict(self._averages)

    def restore(self, tensors: Mapping[str, LazyTensor]) -> None:
        """Load the averages of a saved state, by parameter name.

        Raises:
            RunError: The names differ from those of this run's parameters.
        """
        if tensors.keys() != self._averages.keys():
            raise RunError(
                "The saved weight average is of other networks than this run trains. It belongs to "
                "another model or other settings."
            )
        self._flush()
        for name, average in self._averages.items():
            average.copy_(tensors[name].read())

    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self._averages[name] = self._averages[name], parameter.data

    @torch.no_grad()
    def _overwrite(self, values: Iterable[Tensor]) -> None:
        for parameter, value in zip(self._parameters.values(), values, strict=True):
            parameter.copy_(value)


def rising_decay(decay: float, power: float | None, every: int, step: int) -> float:
    """Return the fraction of the old average retained over `every` steps, at most `decay` each.

    It rises with the step: as (1 + step) / (10 + step), or with `power` as 1 - (1 + step)^-power.
    """
    rising = (1 + step) / (10 + step)
    if power is not None:
        rising = 1 - (1 + step) ** -power
    return float(min(decay, rising) ** every)


@torch.no_grad()
def lerp_in_float32(averages: Sequence[Tensor], weights: Sequence[Tensor], fraction: float) -> None:
    """Add `fraction` of (weights - averages) to the averages, in float32.

    16-bit weights are widened a few at a time: all at once would take as much memory as the
    averages, 3.2 GiB for SD 1.x.
    """
    pairs = list(zip(averages, weights, strict=True))
    alike = [pair for pair in pairs if pair[0].dtype == pair[1].dtype]
    _lerp(
        [average for average, _ in alike],
        [weight.to(average) for average, weight in alike],
        fraction,
    )
    group: list[tuple[Tensor, Tensor]] = []
    for average, weight in [pair for pair in pairs if pair[0].dtype != pair[1].dtype]:
        if group and sum(a.numel() for a, _ in group) + average.numel() > WIDENED_AT_ONCE:
            _lerp([a for a, _ in group], [w.to(a) for a, w in group], fraction)
            group = []
        group.append((average, weight))
    _lerp([a for a, _ in group], [w.to(a) for a, w in group], fraction)


@torch.no_grad()
def _lerp(averages: list[Tensor], weights: list[Tensor], fraction: float) -> None:
    if averages:
        torch._foreach_lerp_(averages, weights, fraction)


class AsyncEmaUpdater:
    """Copies weights to RAM asynchronously, and updates averages with them in a thread.

    The copies run on a separate stream, into pinned buffers that are reused each time. Streamed
    weights are in RAM already, and are read there.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._work: Future[None] | None = None
        self._buffers: list[Tensor] = []
        self._stream: torch.cuda.Stream | None = None
        self._reads_in_place = False

    def take(self, weights: Sequence[Tensor], mix: Callable[[list[Tensor]], None]) -> None:
        """Start copying weights to RAM, and call `mix` with the copies once they have arrived."""
        self.flush()
        device = next((w.device for w in weights if w.device.type == "cuda"), weights[0].device)
        pinned = device.type == "cuda"
        self._reads_in_place = any(weight.device != device for weight in weights)
        if not self._buffers:
            self._buffers = [
                pinned_like(weight, "training.ema_on_cpu", pinned=pinned)
                for weight in weights
                if weight.device == device
            ]
            self._stream = new_stream(device) if pinned else None
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))
        buffers = iter(self._buffers)
        there = [next(buffers) if weight.device == device else weight for weight in weights]
        with torch.cuda.stream(self._stream):
            for kept, weight in zip(there, weights, strict=True):
                if kept is not weight:
                    kept.copy_(weight, non_blocking=True)
        event = self._stream.record_event() if self._stream is not None else None

        def arrive() -> None:
            if event is not None:
                event.synchronize()
            mix(there)

        self._work = self._pool.submit(arrive)

    def wait_on_device(self) -> None:
        """Make the device wait for the copies; block for weights that the thread reads in place."""
        if self._reads_in_place:
            self.flush()
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def flush(self) -> None:
        """Block until the pending update is complete; re-raise its error if it failed."""
        if self._work is not None:
            self._work.result()
            self._work = None
