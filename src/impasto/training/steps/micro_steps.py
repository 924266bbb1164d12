"""Forward and backward passes of a micro-batch: eagerly, or by CUDA graphs of whole steps."""

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
    """Runs forward and backward passes; gradients accumulate until the update applies them.

    Attributes:
        update: Applies the gradients of a step.
    """

    update: OptimizerUpdate

    def begin(self) -> None:
        """Prepare the weights for the micro-steps of the next optimizer step."""

    def shapes(self, bucket: Size, optimizer_step: OptimizerStep) -> set[tuple[Size, int]]:
        """Return (bucket, batch size) of all batches that the network is called with in a step."""

    def run(
        self, batch: Batch, micro_batch: MicroBatch, optimizer_step: OptimizerStep
    ) -> tuple[StepOutput, Tensor]:
        """Compute the gradient of a batch and add it to the accumulated ones.

        Returns:
            The losses of its samples, and the batch's contribution to the mean loss of the step.
        """

    def end_pause(self) -> None:
        """Prepare to continue after a pause, which may have moved weights in memory."""


class PlainMicroSteps:
    """Computes micro-steps eagerly, kernel by kernel.

    Args:
        session: The run.
        copies: Copies of weights that replace them while a step computes.
        update: Runs the backward pass, and updates the weights.
    """

    def __init__(self, session: Session, copies: WeightCopies, update: OptimizerUpdate) -> None:
        self._session, self._copies, self.update = session, copies, update
        self._steps_in_backward = session.config.training.optimizer_in_backward != "off"

    def begin(self) -> None:
        """Refresh the copies of weights from their present values."""
        self._copies.refresh()

    def shapes(self, bucket: Size, optimizer_step: OptimizerStep) -> set[tuple[Size, int]]:
        """Return (bucket, batch size) of each batch; a short batch is a separate shape."""
        return {(bucket, len(batch.samples)) for batch in optimizer_step.micro_batches}

    def run(
        self, batch: Batch, micro_batch: MicroBatch, optimizer_step: OptimizerStep
    ) -> tuple[StepOutput, Tensor]:
        """Compute the gradient of a batch eagerly, and add it to the accumulated ones."""
        session = self._session
        with self._copies.swapped_in():  # for backward too, where checkpointed blocks run again
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
        """Do nothing, since no recorded graph depends on the weights' addresses."""


class GraphedMicroSteps:
    """Computes each micro-step by the CUDA graph of its shape, and the update by another graph.

    Args:
        session: The run.
        copies: Copies of weights that replace them while a step computes.
        graphs: The graphs of the micro-steps and of the update.
    """

    def __init__(self, session: Session, copies: WeightCopies, graphs: StepGraphs) -> None:
        self._session, self._copies, self._graphs = session, copies, graphs
        self.update: OptimizerUpdate = graphs.update
        self._has_copies = False

    def begin(self) -> None:
        """Refresh the copies of weights the first time; later the graph of the update does so.

        If the CPU is several steps ahead of the GPU, it waits here.
        """
        self._graphs.begin_step()
        if not self._has_copies:
            self._copies.refresh()
            self._has_copies = True

    def shapes(self, bucket: Size, optimizer_step: OptimizerStep) -> set[tuple[Size, int]]:
        """Return (bucket, batch size) of each batch, padded to the full size of its dataset."""
        full_size = self._session.sampler.full_batch_size
        return {(bucket, full_size(batch)) for batch in optimizer_step.micro_batches}

    def run(
        self, batch: Batch, micro_batch: MicroBatch, optimizer_step: OptimizerStep
    ) -> tuple[StepOutput, Tensor]:
        """Compute the inputs of a batch eagerly, then replay the graph of its shape."""
        session = self._session
        with session.precision.autocast():
            inputs = step_inputs(session.conditioner, batch, session.recipe)
        full = session.sampler.full_batch_size(micro_batch)
        return self._graphs.micro_step(inputs, 1 / optimizer_step.size, full)

    def end_pause(self) -> None:
        """Record the graphs again if weights have moved in memory."""
        self._graphs.forget_if_moved()


def build_micro_steps(
    session: Session, parameters: Sequence[Tensor], note: Callable[[str], None]
) -> MicroSteps:
    """Build the micro-steps of a run: graphed if `cuda_graphs` is "step", else eager.

    Args:
        session: The run.
        parameters: All trained parameters, in the order of saved states.
        note: Receives notes for the user.

    Raises:
        ConfigError: An override does not work with CUDA graphs.
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
