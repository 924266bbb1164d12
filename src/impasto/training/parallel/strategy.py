"""Parallel strategies: how several processes hold the model that they train.

Data parallel (each process has all of it), FSDP or DeepSpeed (each has a shard). The rest of the
program asks a `ParallelStrategy` for everything in which they differ: what an optimizer steps, how
a gradient becomes a change of weights, and how whole tensors come about that can be saved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from impasto.checkpoints.tensors import LazyTensor, Tensors
from impasto.models.trainable import TrainedModule
from impasto.training.optim.mixed_precision import MixedPrecision, Precision
from impasto.training.optim.state import (
    optimizer_scalars,
    optimizer_tensors,
    restore_optimizer,
)
from impasto.training.optim.updates import OptimizerUpdate, UpdateInputs, build_update

ParameterNames = Mapping[Tensor, str]
LocalTensors = Mapping[str, Tensor]
"""Tensors by name, as this process has them."""


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer remembers, of whole weights.

    Attributes:
        tensors: `<parameter>:<entry>` -> tensor.
        scalars: What is not a tensor; see `optimizer_scalars`.
    """

    tensors: Tensors
    scalars: Mapping[str, Any]


class ParallelStrategy(Protocol):
    """How the processes of a run share model, gradients and optimizer state.

    Where `is_sharded`, no process has all of it: all of them take part in whatever looks at the
    model or saves it, in the same order. Whole tensors are put together as they are read.

    Attributes:
        is_sharded: Whether each process holds a part only.
        description: How it is, in a sentence for people; empty where that is as usual.
    """

    is_sharded: bool
    description: str

    @property
    def participates(self) -> bool:
        """Whether this process does something where the model is evaluated or saved."""

    def agreed(self, answer: bool) -> bool:  # noqa: FBT001 - the question is the caller's
        """The first process's answer, on all that take part."""

    def wrap(self, module: nn.Module) -> Any:
        """Bring a module that learns to where it computes; what training calls in its place."""

    def prepare(self, modules: Sequence[TrainedModule]) -> tuple[TrainedModule, ...]:
        """The parts, once their modules are wrapped: their parameters are what is stepped here."""

    def start(self, modules: Sequence[TrainedModule], optimizer: torch.optim.Optimizer) -> None:
        """Take in the optimizer of those parameters."""

    def gradient_sync(self, *, now: bool) -> contextlib.AbstractContextManager[None]:
        """A forward and backward pass after which gradients are exchanged, or not yet."""

    def build_precision(
        self, kind: MixedPrecision, device: torch.device, *, caches_casts: bool = True
    ) -> Precision:
        """Build the number formats that the run computes in; see `Precision`."""

    def build_update(self, inputs: UpdateInputs) -> OptimizerUpdate:
        """Build what turns losses into changed weights."""

    def reshard(self) -> None:
        """Have the next forward pass use the weights as they are now."""

    def whole(self, tensors: LocalTensors) -> Tensors:
        """Whole tensors of those that are laid out as the parameters of these names."""

    def shard(self, tensors: Tensors) -> Tensors:
        """The other way: what of whole tensors is held here."""

    def gather_modules(self, tensors: Mapping[str, LocalTensors]) -> Mapping[str, LocalTensors]:
        """Whole tensors of modules' own; copies of them, on the first process, where shared."""

    def put(self, names: ParameterNames, weights: Tensors) -> None:
        """Give the parameters the values of whole tensors."""

    def optimizer_state(
        self, optimizer: torch.optim.Optimizer, names: ParameterNames
    ) -> OptimizerState:
        """What the optimizer remembers, as one process would have it."""

    def load_optimizer_state(
        self, optimizer: torch.optim.Optimizer, names: ParameterNames, state: OptimizerState
    ) -> None:
        """Give the optimizer what `optimizer_state` gave.

        Raises:
            RunError: The state names parameters that this run does not train.
        """


def broadcast_bool(answer: bool, device: torch.device) -> bool:  # noqa: FBT001 - not a switch
    """The answer of the first process, on all of them."""
    return bool(broadcast(torch.tensor([int(answer)], device=device)))


class DataParallelStrategy:
    """Each process has all of it; several exchange gradients (DistributedDataParallel).

    Args:
        accelerator: Wraps modules.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.is_sharded, self.description = False, ""
        self._accelerator = accelerator
        self._wrapped: list[Any] = []

    @property
    def participates(self) -> bool:
        """True on the first process alone, which holds all there is to evaluate and save."""
        return bool(self._accelerator.is_main_process)

    def agreed(self, answer: bool) -> bool:  # noqa: FBT001 - the question is the caller's
        """The answer of this process, as they all have the same."""
        return answer

    def wrap(self, module: nn.Module) -> Any:
        """Wrap a network as accelerate does for data parallel training."""
        wrapped = self._accelerator.prepare(module.to(self._accelerator.device))
        self._wrapped.append(wrapped)
        return wrapped

    def prepare(self, modules: Sequence[TrainedModule]) -> tuple[TrainedModule, ...]:
        """Leave the parts whole, on this process's device."""
        return tuple(modules)

    def start(self, modules: Sequence[TrainedModule], optimizer: torch.optim.Optimizer) -> None:
        """Do nothing: accelerate has wrapped the parts already."""

    @contextlib.contextmanager
    def gradient_sync(self, *, now: bool) -> Any:
        """Exchange gradients in the last backward pass of a step only."""
        with contextlib.ExitStack() as stack:
            if not now:
                for module in self._wrapped:
                    stack.enter_context(self._accelerator.no_sync(module))
            yield

    def build_precision(
        self, kind: MixedPrecision, device: torch.device, *, caches_casts: bool = True
    ) -> Precision:
        """Build the number formats that the run computes in."""
        return Precision(kind, device, caches_casts=caches_casts)

    def build_update(self, inputs: UpdateInputs) -> OptimizerUpdate:
        """The optimizer update that the settings ask for."""
        return build_update(inputs)

    def reshard(self) -> None:
        """Do nothing: every process holds whole weights."""

    def whole(self, tensors: LocalTensors) -> Tensors:
        """The tensors themselves, as every process holds whole ones."""
        return {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}

    def shard(self, tensors: Tensors) -> Tensors:
        """The tensors themselves, as every process holds whole ones."""
        return tensors

    def gather_modules(self, tensors: Mapping[str, LocalTensors]) -> Mapping[str, LocalTensors]:
        """Do nothing: every process holds whole modules."""
        return tensors

    @torch.no_grad()
    def put(self, names: ParameterNames, weights: Tensors) -> None:
        """Copy whole tensors into the parameters."""
        for parameter, name in names.items():
            parameter.copy_(weights[name].read())

    def optimizer_state(
        self, optimizer: torch.optim.Optimizer, names: ParameterNames
    ) -> OptimizerState:
        """The optimizer's state, which every process holds whole."""
        held = optimizer_tensors(optimizer, names)
        return OptimizerState(self.whole(held), optimizer_scalars(optimizer, names))

    def load_optimizer_state(
        self, optimizer: torch.optim.Optimizer, names: ParameterNames, state: OptimizerState
    ) -> None:
        """Copy a state into the optimizer's."""
        device: torch.device = self._accelerator.device
        restore_optimizer(optimizer, names, state.tensors, state.scalars, device)
