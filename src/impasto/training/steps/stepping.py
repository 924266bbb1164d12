"""One optimizer step of a session: its micro-batches, clipping, and the weight update.

The training loop (`loop.py`) adds states, metrics and messages; the learning-rate range test
(`lr_finding.py`) uses it without these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from impasto.data.loading.sampler import MicroBatch, OptimizerStep
from impasto.data.records import Batch
from impasto.diffusion.uncertainty import Uncertainty
from impasto.randomness import derive_seed
from impasto.training.devices import seed_torch
from impasto.training.optim.chunked import ChunkedOptimizer
from impasto.training.optim.state import LrSetter, parameter_names
from impasto.training.session import Session
from impasto.training.step import StepOutput
from impasto.training.steps.micro_steps import build_micro_steps

OnOutput = Callable[[MicroBatch, StepOutput], None]
"""Called with the losses of each micro-batch, which are on the device."""


@dataclass(frozen=True)
class StepResult:
    """Loss and gradient norm of an optimizer step, on the device, and its learning-rate factor.

    Attributes:
        loss: Mean loss over the samples of the step, over all processes.
        norm: The gradient's norm before clipping; None if it was not measured.
        lr_factor: The factor that the learning rates were multiplied by.
    """

    loss: Tensor
    norm: Tensor | None
    lr_factor: float


class Stepper:
    """Runs the optimizer steps of a session.

    Args:
        session: The run.
        note: Receives notes for the user.

    Attributes:
        micro_steps: Run forward and backward passes.
        update: Applies the gradients of a step.
    """

    def __init__(self, session: Session, note: Callable[[str], None]) -> None:
        self._session = session
        self._lr = LrSetter(session.optimizer)
        names = parameter_names(session.trainable.modules)
        self.micro_steps = build_micro_steps(session, list(names), note)
        self.update = self.micro_steps.update

    def step(
        self, optimizer_step: OptimizerStep, batches: Iterator[Batch], seen: OnOutput
    ) -> StepResult:
        """Run all micro-batches of a step, clip the gradient, and update the weights.

        Afterwards `update.is_stepping` is True until the caller, who has counted the step, resets
        it.

        Args:
            optimizer_step: The samples of the step.
            batches: This process's micro-batches of the step.
            seen: Called with the losses of each micro-batch.

        Raises:
            NonFiniteError: The update was not applied, since a loss or gradient is not finite.
        """
        session = self._session
        lr_factor = self._begin(optimizer_step.step)
        total = torch.zeros((), device=session.accelerator.device)
        given = zip(optimizer_step.micro_batches, batches, strict=True)
        for number, (micro_batch, batch) in enumerate(given):
            self._seed_batch(optimizer_step.step, number)
            is_last = micro_batch is optimizer_step.micro_batches[-1]
            with session.strategy.gradient_sync(now=is_last):
                output, loss = self.micro_steps.run(batch, micro_batch, optimizer_step)
                if session.uncertainty is not None:
                    factor = session.accelerator.num_processes / optimizer_step.size
                    session.uncertainty.add(output.t, output.losses, output.weights, factor)
                seen(micro_batch, output)
                total += loss
        for average in session.averages:
            average.wait_for_copies()  # this late, since the copies overlap with the step
        self._seed_update(optimizer_step)
        norm = self.update.apply(self._mean_over_processes(total))
        self.update.is_stepping = True  # the rest belongs to the step, even if it was skipped
        if session.uncertainty is not None:
            self._learn_weights(session.uncertainty)
        return StepResult(total, norm, lr_factor)

    def _learn_weights(self, uncertainty: Uncertainty) -> None:
        """Update the learned loss weights by the mean of their gradients over processes."""
        gradient = uncertainty.gradient()
        gradient.copy_(self._mean_over_processes(gradient))
        uncertainty.step()

    def _begin(self, step: int) -> float:
        """Set the learning rate and all else that depends on the step; return the LR factor."""
        session, config = self._session, self._session.config
        lr_factor = session.lr_schedule(step, session.total_steps)
        self._lr.set(lr_factor)
        if config.training.cuda_graphs == "network":  # the last step's outputs are free for reuse
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        reading = [trained for trained in session.trainable.modules if trained.reads_text]
        if reading:
            session.captions.learn(now=any(trained.is_trained_at(step) for trained in reading))
        if isinstance(session.optimizer, ChunkedOptimizer):
            session.optimizer.begin(derive_seed(config.seed, "rounding", step))
        self.micro_steps.begin()
        return lr_factor

    def _seed_batch(self, step: int, number: int) -> None:
        """Seed PyTorch's generators, which dropout draws from, by a batch's place in its step.

        Several processes then draw the same numbers as one process that trains on their batches one
        after another.
        """
        accelerator = self._session.accelerator
        place = number * accelerator.num_processes + accelerator.process_index
        keys = ("torch", step, place) if place else ("torch", step)
        seed_torch(derive_seed(self._session.config.seed, *keys))

    def _seed_update(self, optimizer_step: OptimizerStep) -> None:
        """Seed the update, so that an optimizer draws the same random numbers in all processes."""
        if self._session.accelerator.num_processes * len(optimizer_step.micro_batches) > 1:
            keys = ("torch", optimizer_step.step, "update")
            seed_torch(derive_seed(self._session.config.seed, *keys))

    def _mean_over_processes(self, value: Tensor) -> Tensor:
        """Return the mean over processes, so that all see a non-finite loss in the same step."""
        if self._session.accelerator.num_processes == 1:
            return value
        return cast("Tensor", self._session.accelerator.reduce(value, "mean"))
