"""Times torch.compile separately, in the first step of each batch shape."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from impasto.data.loading.sampler import OptimizerStep
from impasto.data.records import Size
from impasto.training.compute.compile import Compile, within_limit
from impasto.training.monitoring.metrics import MetricsCollector
from impasto.training.steps.micro_steps import MicroSteps


class CompileTimer:
    """Keeps steps that compile out of the training speed, and times them as "compiling".

    Args:
        compiles: Which part of the U-Net is compiled; "off" for none.
        micro_steps: Tells the shapes of a step's batches.
        meter: Measures the run.
        note: Receives a note before each compilation, which takes minutes.
    """

    def __init__(
        self,
        compiles: Compile,
        micro_steps: MicroSteps,
        meter: MetricsCollector,
        note: Callable[[str], None],
    ) -> None:
        self._compiles, self._micro_steps = compiles, micro_steps
        self._meter, self._note = meter, note
        self._compiled: set[tuple[Size, int]] = set()

    @contextlib.contextmanager
    def step(self, bucket: Size, optimizer_step: OptimizerStep) -> Iterator[None]:
        """Wrap one optimizer step; if it has a new batch shape, time it as compilation.

        Raises:
            RunError: torch.compile has reached its limit of graphs.
        """
        if self._compiles == "off":
            yield
            return
        shapes = self._micro_steps.shapes(bucket, optimizer_step)
        if shapes <= self._compiled:
            with within_limit():
                yield
            return
        self._compiled |= shapes
        self._note(f"Compiling for {bucket} images, {optimizer_step.size} at a time ...")
        with self._meter.aside("compiling"), within_limit():
            yield
        self._meter.leave_out(optimizer_step.size)
