"""Times by itself what torch.compile takes in the first step of each shape of batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from impasto.data.loading.sampler import OptimizerStep
from impasto.data.records import Size
from impasto.training.compute.compile import Compile, within_limit
from impasto.training.monitoring.metrics import MetricsCollector
from impasto.training.steps.micro_steps import MicroSteps


class CompileTimer:
    """Times the steps that compile apart from those that train, so that rates stay true.

    Args:
        compiles: What of the U-Net is compiled.
        micro_steps: Knows the shapes of a step's batches.
        meter: Measures the run.
        note: Is told that code is being made, which takes minutes.
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
        """Run a step within; one with a shape of its own compiles, and counts for no rate.

        Raises:
            RunError: torch.compile has made more graphs than it may.
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
