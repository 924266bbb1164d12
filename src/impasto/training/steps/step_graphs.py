"""Whole training steps as CUDA graphs: one per batch shape, and one for the update.

A step of SD 1.x consists of thousands of kernels, which the CPU launches one by one; with a small
batch, a fast GPU waits for it. A graph launches them all at once. Inputs are copied to buffers at
fixed addresses, short batches are padded with samples of weight 0, and the results (gradients,
losses) are at fixed addresses too. The first step of each shape runs eagerly, so that libraries and
compilers set themselves up and all kernels are loaded; the next one is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

from impasto.errors import ConfigError
from impasto.training.optim.graph_recorder import (
    MOST_GRAPHS,
    CudaGraphRecorder,
    GraphRecorder,
    NotRecordableError,
    Work,
)
from impasto.training.optim.graphed_update import GraphedUpdate
from impasto.training.optim.step_queue import StepQueue
from impasto.training.optim.updates import UpdateInputs
from impasto.training.optim.weight_copies import WeightCopies
from impasto.training.session import Session
from impasto.training.step import StepInputs, StepOutput, losses_of

LossFunction = Callable[[StepInputs], Tensor]
"""Returns [B] losses, computed without any wait of the CPU for the device."""


@dataclass
class _Shape:
    """The input and output buffers of one batch shape, and its graph.

    Attributes:
        inputs: Input buffers, filled before each step.
        losses: [B] losses of the last step.
        is_ready: Whether an eager step has accumulated gradients into existing buffers, as the
            graph will.
        replay: Replays the graph; None if it is not recorded yet.
    """

    inputs: StepInputs
    losses: Tensor
    is_ready: bool = False
    replay: Work | None = None

    @classmethod
    def like(cls, inputs: StepInputs, size: int) -> _Shape:
        """Allocate buffers for batches of `size` samples, otherwise shaped like `inputs`."""

        def copied(x: Tensor) -> Tensor:
            return torch.empty((size, *x.shape[1:]), dtype=x.dtype, device=x.device)

        return cls(inputs.map(copied), torch.zeros(size, device=inputs.weights.device))

    def fill(self, inputs: StepInputs) -> None:
        """Copy a batch into the buffers; pad a short one with its last sample at weight 0."""
        given = len(inputs.t)
        for target, value in zip(self.inputs.tensors(), inputs.tensors(), strict=True):
            target[:given].copy_(value)
            if given < len(target):
                target[given:].copy_(value[-1:].expand_as(target[given:]))
        if given < len(self.inputs.weights):
            self.inputs.weights[given:].zero_()


class StepGraphs:
    """Runs micro-steps by one CUDA graph per input shape; all share one update.

    Args:
        losses_of: The forward pass.
        update: Runs the backward pass, and updates the weights.
        copies: Copies of weights that replace them while a step computes.
        recorder: Records graphs.
        network: Holds all trained parameters and all other weights that the forward pass reads.
        note: Receives a note, once, if there are more shapes than graphs.

    Attributes:
        update: Runs the backward pass, and updates the weights.
    """

    def __init__(
        self,
        losses_of: LossFunction,
        update: GraphedUpdate,
        copies: WeightCopies,
        recorder: GraphRecorder,
        network: nn.Module,
        note: Callable[[str], None],
    ) -> None:
        self.update = update
        self._losses_of, self._copies, self._recorder = losses_of, copies, recorder
        self._network, self._note = network, note
        self._queue = StepQueue(recorder.mark)
        self._shapes: dict[object, _Shape] = {}
        self._weights_at = self._addresses()
        self._has_noted = False
        device = next(network.parameters()).device
        self._factor, self._loss = (torch.zeros((), device=device) for _ in range(2))

    def begin_step(self) -> None:
        """Wait until only a few queued steps are left on the GPU."""
        self._queue.begin_step()

    def micro_step(self, inputs: StepInputs, factor: float, size: int) -> tuple[StepOutput, Tensor]:
        """Compute the gradient of a batch and add it to the accumulated ones.

        Args:
            inputs: The tensors of the batch.
            factor: Factor that turns the sum of its losses into its contribution to the mean loss
                of the step.
            size: Number of samples of a full batch of this kind.

        Returns:
            The losses of its samples, and the batch's contribution to the mean loss of the step.

        Raises:
            ConfigError: A gradient would flow into the inputs, which are copied.
            NotRecordableError: The work cannot be recorded, or a parameter has its first gradient
                after the first step.
        """
        if any(x.requires_grad for x in inputs.tensors()):
            raise ConfigError(
                'training.cuda_graphs = "step" does not work with a trained conditioner or noise '
                "given in code, since neither is computed in the graph. Set cuda_graphs to "
                '"off".'
            )
        key = (size, *((x.shape[1:], x.dtype) for x in inputs.tensors()), inputs.mask is None)
        if key not in self._shapes:
            self._shapes[key] = _Shape.like(inputs, size)
        shape = self._shapes[key]
        shape.fill(inputs)
        self._factor.fill_(factor)
        self._do(shape)
        given = len(inputs.t)
        losses = shape.losses[:given].clone()
        return StepOutput(losses, inputs.t, inputs.weights), self._loss.clone()

    def forget_if_moved(self) -> None:
        """Discard all graphs if weights have moved in memory; they are recorded again when used."""
        addresses = self._addresses()
        if addresses != self._weights_at:
            self._weights_at = addresses
            self.update.forget()
            for shape in self._shapes.values():
                shape.replay = None

    def _do(self, shape: _Shape) -> None:
        work = partial(self._step, shape)
        if shape.replay is None:
            if not shape.is_ready or self._is_full():
                self._recorder.run(work)
                self._require_no_stray_gradient()
                shape.is_ready = self.update.has_gradients
                return
            shape.replay = self._recorder.record(work)
            self._require_no_stray_gradient()
        shape.replay()

    def _require_no_stray_gradient(self) -> None:
        """Make sure that the recorded update covers all parameters that have a gradient.

        Raises:
            NotRecordableError: A parameter has its first gradient after the first step.
        """
        stray = self.update.stray_parameter()
        if stray is not None:
            names = (name for name, p in self._network.named_parameters() if p is stray)
            raise NotRecordableError(
                f"{next(names, 'a parameter')} has a gradient now and had none in the first step, "
                f"but only parameters that had one then are updated"
            )

    def _step(self, shape: _Shape) -> None:
        """Run forward and backward on the buffers of a shape, and store its losses there."""
        with self._copies.swapped_in():  # for backward too, where checkpointed blocks run again
            losses = self._losses_of(shape.inputs)
            loss = torch.sum(losses) * self._factor
            self.update.backward(loss)
        shape.losses.copy_(losses.detach())
        self._loss.copy_(loss.detach())

    def _is_full(self) -> bool:
        """Return whether the limit of graphs is reached; the first time, note that it is."""
        recorded = sum(shape.replay is not None for shape in self._shapes.values())
        if recorded < MOST_GRAPHS:
            return False
        if not self._has_noted:
            self._has_noted = True
            self._note(
                f"There are more than {MOST_GRAPHS} batch shapes (image sizes times caption "
                f"lengths). Each CUDA graph takes VRAM, so the others are trained on without "
                f"graphs, which is slower. Fewer buckets (dataset.bucket_reso_steps) avoid this."
            )
        return True

    def _addresses(self) -> list[int]:
        """Return the addresses of all weights, trained and frozen, since graphs read both."""
        tensors = chain(self._network.parameters(), self._network.buffers())
        return [tensor.data_ptr() for tensor in tensors]


def build_step_graphs(
    session: Session, inputs: UpdateInputs, copies: WeightCopies, note: Callable[[str], None]
) -> StepGraphs:
    """Build the CUDA graphs of a session.

    Args:
        session: The run.
        inputs: The objects that its update works with.
        copies: Copies of weights that replace them while a step computes.
        note: Receives notes for the user.

    Raises:
        ConfigError: The network has both gradient checkpointing and dropout.
    """
    save_no_random_states(session.trainable.network)
    recorder = build_recorder(session.accelerator.device)

    def losses(tensors: StepInputs) -> Tensor:
        with session.precision.autocast():
            return losses_of(session.unet, tensors, session.recipe)

    update = GraphedUpdate(inputs, recorder, copies)
    return StepGraphs(losses, update, copies, recorder, session.trainable.network, note)


def build_recorder(device: torch.device) -> GraphRecorder:
    """Return the recorder of CUDA graphs for a device."""
    return CudaGraphRecorder(device)


def save_no_random_states(network: nn.Module) -> None:
    """Stop checkpointed blocks from saving the generator's state, which a graph cannot record.

    Only dropout needs that state, and Stable Diffusion's U-Net has no dropout.

    Raises:
        ConfigError: The network has both gradient checkpointing and dropout.
    """
    blocks = [m for m in network.modules() if getattr(m, "gradient_checkpointing", False)]
    dropouts = [m for m in network.modules() if isinstance(m, _DropoutNd) and m.p > 0]
    if blocks and dropouts:
        raise ConfigError(
            'training.cuda_graphs = "step" does not work with gradient_checkpointing and dropout '
            "together, since dropout would have to draw the same random numbers again. Turn one "
            "of the three off (a hypernetwork's dropout is method.dropout, or recorded in the file "
            "it starts from)."
        )
    for block in blocks:
        block._gradient_checkpointing_func = partial(  # type: ignore[assignment]
            checkpoint, use_reentrant=False, preserve_rng_state=False
        )
