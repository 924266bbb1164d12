"""A batch forward and backward: as it is written, or by CUDA graphs of whole steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from impasto.data.loading.sampler import MicroBatch, OptimizerStep
from impasto.data.records import Batch, Size
from impasto.training.compute.param_dtypes import build_weight_copies
from impasto.training.optim.updates import OptimizerUpdate, UpdateInputs
from impasto.training.optim.weight_copies import WeightCopies
from impasto.training.session import Session
from impasto.training.step import StepOutput, micro_batch_loss, step_inputs, training_step
from impasto.training.steps.step_graphs import StepGraphs, build_step_graphs


class MicroSteps(Protocol):
    """Goes forward and backward; gradients add up until the update takes them.

    Attributes:
        update: Applies the gradients of a step.
    """

    update: OptimizerUpdate

    def begin(self) -> None:
        """Make what the micro-steps of the next optimizer step compute with."""

    def shapes(self, bucket: Size, optimizer_step: OptimizerStep) -> set[tuple[Size, int]]:
        """Bucket and number of images of each batch that a network is called with in a step."""

    def run(
        self, batch: Batch, micro_batch: MicroBatch, optimizer_step: OptimizerStep
    ) -> tuple[StepOutput, Tensor]:
        """Add the gradient of a batch to those there are.

        Returns:
            The losses of its samples, and their share of the step's loss.
        """

    def end_pause(self) -> None:
        """Go on after something that was no training and may have moved weights in memory."""


class PlainMicroSteps:
    """Computes micro-steps as they are written, kernel by kernel.

    Args:
        session: The run.
        copies: Stand in the place of weights while a step computes.
        update: Goes backward, and steps.
    """

    def __init__(self, session: Session, copies: WeightCopies, update: OptimizerUpdate) -> None:
        self._session, self._copies, self.update = session, copies, update
        self._steps_in_backward = session.config.training.optimizer_in_backward != "off"

    def begin(self) -> None:
        """Take over the weights as they are now."""
        self._copies.refresh()

    def shapes(self, bucket: Size, optimizer_step: OptimizerStep) -> set[tuple[Size, int]]:
        """Short batches are shapes of their own."""
        return {(bucket, len(batch.samples)) for batch in optimizer_step.micro_batches}

    def run(
        self, batch: Batch, micro_batch: MicroBatch, optimizer_step: OptimizerStep
    ) -> tuple[StepOutput, Tensor]:
        """Forward and backward as they are written."""
        session = self._session
        with self._copies.swapped_in():  # in the backward pass too: blocks are computed again there
            with session.precision.autocast():
                output = training_step(session.unet, session.conditioner, batch, session.recipe)
            loss = micro_batch_loss(
                output.losses, optimizer_step.size, session.accelerator.num_processes
            )
            if self._steps_in_backward:
                for average in session.averages:
                    average.wait_for_copies()
            self.update.backward(loss, is_last=micro_batch is optimizer_step.micro_batches[-1])
        return output, loss.detach()

    def end_pause(self) -> None:
        """Do nothing: no step that is kept depends on where the weights are."""


class GraphedMicroSteps:
    """Computes each micro-step by the CUDA graph of its shape, and the update by one of its own.

    Args:
        session: The run.
        copies: Stand in the place of weights while a step computes.
        graphs: Have the micro-steps and the update.
    """

    def __init__(self, session: Session, copies: WeightCopies, graphs: StepGraphs) -> None:
        self._session, self._copies, self._graphs = session, copies, graphs
        self.update: OptimizerUpdate = graphs.update
        self._has_copies = False

    def begin(self) -> None:
        """Take over the weights once; after that the graph of the update does.

        Inputs are made ahead of the graphs, so this is where the host waits if it is far ahead.
        """
        self._graphs.begin_step()
        if not self._has_copies:
            self._copies.refresh()
            self._has_copies = True

    def shapes(self, bucket: Size, optimizer_step: OptimizerStep) -> set[tuple[Size, int]]:
        """Short batches are filled up to the size of full ones of their dataset and bucket."""
        full_size = self._session.sampler.full_batch_size
        return {(bucket, full_size(batch)) for batch in optimizer_step.micro_batches}

    def run(
        self, batch: Batch, micro_batch: MicroBatch, optimizer_step: OptimizerStep
    ) -> tuple[StepOutput, Tensor]:
        """What follows from the batch is made ahead of the graph."""
        session = self._session
        with session.precision.autocast():
            inputs = step_inputs(session.conditioner, batch, session.recipe)
        full = session.sampler.full_batch_size(micro_batch)
        return self._graphs.micro_step(inputs, 1 / optimizer_step.size, full)

    def end_pause(self) -> None:
        """Record anew if weights are elsewhere now."""
        self._graphs.forget_if_moved()


def build_micro_steps(
    session: Session, parameters: Sequence[Tensor], note: Callable[[str], None]
) -> MicroSteps:
    """The micro-steps that a run's settings ask for.

    Args:
        session: The run.
        parameters: All that learns, in the order of its states.
        note: Is told what a person should know.

    Raises:
        ConfigError: What was given in code does not go with graphs.
    """
    training = session.config.training
    inputs = UpdateInputs(
        session.optimizer,
        parameters,
        session.precision,
        training.max_grad_norm,
        training.optimizer_in_backward,
        session.stream,
    )
    copies = build_weight_copies(session.config, session.trainable)
    if training.cuda_graphs == "step":
        graphs = build_step_graphs(session, inputs, copies, note)
        return GraphedMicroSteps(session, copies, graphs)
    return PlainMicroSteps(session, copies, session.strategy.build_update(inputs))
