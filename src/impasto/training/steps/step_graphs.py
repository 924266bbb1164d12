"""Whole training steps as CUDA graphs: one for each shape of batches, and one for the update.

A step of SD 1.x is some thousands of kernels, which the host launches one by one; a fast GPU with a
small batch waits for it. A graph launches them all at once. Inputs are copied to places that never
change, short batches are filled up with samples of weight 0, and what the step leaves (gradients,
losses) is at such places too. The first step of each shape runs as it is written, which prepares
what libraries and compilers make once and loads all kernels; then it is recorded.
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
"""[B] losses, computed on the device alone."""


@dataclass
class _Shape:
    """The places of batches of one shape, and their graph.

    Attributes:
        inputs: Filled before each step.
        losses: [B] what the step leaves.
        is_ready: Whether a step has run that added to gradients at their places, as a graph does.
        replay: Does the step; None where it is not recorded yet.
    """

    inputs: StepInputs
    losses: Tensor
    is_ready: bool = False
    replay: Work | None = None

    @classmethod
    def like(cls, inputs: StepInputs, size: int) -> _Shape:
        """Places for batches of `size` samples, which are otherwise like this one."""

        def copied(x: Tensor) -> Tensor:
            return torch.empty((size, *x.shape[1:]), dtype=x.dtype, device=x.device)

        return cls(inputs.map(copied), torch.zeros(size, device=inputs.weights.device))

    def fill(self, inputs: StepInputs) -> None:
        """Copy a batch to its places; what is missing is the last sample again, with weight 0."""
        given = len(inputs.t)
        for target, value in zip(self.inputs.tensors(), inputs.tensors(), strict=True):
            target[:given].copy_(value)
            if given < len(target):
                target[given:].copy_(value[-1:].expand_as(target[given:]))
        if given < len(self.inputs.weights):
            self.inputs.weights[given:].zero_()


class StepGraphs:
    """Micro-steps by the shapes of their inputs, and the update that they share.

    Args:
        losses_of: The forward pass.
        update: Goes backward, and steps.
        copies: Stand in the place of weights while a step computes.
        recorder: Records.
        network: Has all that learns, and what the forward pass reads beside it.
        note: Is told once that there are more shapes than graphs.

    Attributes:
        update: The update.
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
        self._share, self._loss = (torch.zeros((), device=device) for _ in range(2))

    def begin_step(self) -> None:
        """Wait until the GPU has few steps left to do."""
        self._queue.begin_step()

    def micro_step(self, inputs: StepInputs, share: float, size: int) -> tuple[StepOutput, Tensor]:
        """Add the gradient of a batch to those there are.

        Args:
            inputs: Of the batch.
            share: What the sum of its losses is multiplied by to be its part of the step's loss.
            size: How many samples a full batch of this kind has.

        Returns:
            The losses of its samples, and their part of the step's loss.

        Raises:
            ConfigError: A gradient would flow into the inputs, which are copied.
            NotRecordableError: The work cannot be recorded, or a parameter has its first gradient
                after the first step.
        """
        if any(x.requires_grad for x in inputs.tensors()):
            raise ConfigError(
                "training.cuda_graphs step does not go with a conditioner or noise that learns, "
                'which was given in code: its work is not in the graph. Set cuda_graphs to "off".'
            )
        key = (size, *((x.shape[1:], x.dtype) for x in inputs.tensors()), inputs.mask is None)
        if key not in self._shapes:
            self._shapes[key] = _Shape.like(inputs, size)
        shape = self._shapes[key]
        shape.fill(inputs)
        self._share.fill_(share)
        self._do(shape)
        given = len(inputs.t)
        losses = shape.losses[:given].clone()
        return StepOutput(losses, inputs.t, inputs.weights), self._loss.clone()

    def forget_if_moved(self) -> None:
        """Record anew if weights are elsewhere in memory than they were before."""
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
        """Make sure that the recorded update steps all that has a gradient."""
        stray = self.update.stray_parameter()
        if stray is not None:
            names = (name for name, p in self._network.named_parameters() if p is stray)
            raise NotRecordableError(
                f"{next(names, 'a parameter')} has a gradient now and had none in the first step, "
                f"whose parameters alone are stepped"
            )

    def _step(self, shape: _Shape) -> None:
        """Go forward and backward from what is at the places of a shape, and leave its losses."""
        with self._copies.swapped_in():  # in the backward pass too: blocks are computed again there
            losses = self._losses_of(shape.inputs)
            loss = torch.sum(losses) * self._share
            self.update.backward(loss)
        shape.losses.copy_(losses.detach())
        self._loss.copy_(loss.detach())

    def _is_full(self) -> bool:
        """Whether the limit of graphs is reached, of which a note tells the first time."""
        recorded = sum(shape.replay is not None for shape in self._shapes.values())
        if recorded < MOST_GRAPHS:
            return False
        if not self._has_noted:
            self._has_noted = True
            self._note(
                f"There are more than {MOST_GRAPHS} shapes of batches (sizes of images times "
                f"lengths of captions). The others are trained on without CUDA graphs, slower: "
                f"each graph takes memory. Fewer buckets (dataset.bucket_reso_steps) avoid it."
            )
        return True

    def _addresses(self) -> list[int]:
        """Of what learns and what is frozen: the forward pass reads both."""
        tensors = chain(self._network.parameters(), self._network.buffers())
        return [tensor.data_ptr() for tensor in tensors]


def build_step_graphs(
    session: Session, inputs: UpdateInputs, copies: WeightCopies, note: Callable[[str], None]
) -> StepGraphs:
    """The graphs of a session, whose settings ask for them.

    Args:
        session: The run.
        inputs: What its update works with.
        copies: Stand in the place of weights while a step computes.
        note: Is told what a person should know.

    Raises:
        ConfigError: What was given in code does not go with graphs.
    """
    save_no_random_states(session.trainable.network)
    recorder = build_recorder(session.accelerator.device)

    def losses(tensors: StepInputs) -> Tensor:
        with session.precision.autocast():
            return losses_of(session.unet, tensors, session.recipe)

    update = GraphedUpdate(inputs, recorder, copies)
    return StepGraphs(losses, update, copies, recorder, session.trainable.network, note)


def build_recorder(device: torch.device) -> GraphRecorder:
    """What records on the device of a run."""
    return CudaGraphRecorder(device)


def save_no_random_states(network: nn.Module) -> None:
    """Have blocks that are computed again not keep the generator's state, which a graph cannot.

    They need it for dropout alone, and a U-Net of Stable Diffusion has none.

    Raises:
        ConfigError: There is dropout in it.
    """
    blocks = [m for m in network.modules() if getattr(m, "gradient_checkpointing", False)]
    dropouts = [m for m in network.modules() if isinstance(m, _DropoutNd) and m.p > 0]
    if blocks and dropouts:
        raise ConfigError(
            "training.cuda_graphs step does not go with gradient_checkpointing and dropout, whose "
            "random numbers would have to be drawn again identically. Take one of the three out "
            "(a hypernetwork's dropout is method.dropout, or that of the file it starts from)."
        )
    for block in blocks:
        block._gradient_checkpointing_func = partial(  # type: ignore[assignment]
            checkpoint, use_reentrant=False, preserve_rng_state=False
        )
