"""Parallel strategies: how several processes hold the model that they train.

With data parallel each process has the whole model, with FSDP or DeepSpeed a shard. A
`ParallelStrategy` covers all their differences: the tensors that the optimizer updates, how
gradients are applied, and how whole tensors are gathered for saving.
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
"""This process's tensors by name: whole ones, or shards."""


@dataclass(frozen=True)
class OptimizerState:
    """The state of an optimizer, for whole weights.

    Attributes:
        tensors: `<parameter>:<entry>` -> tensor.
        scalars: All values that are not tensors; see `optimizer_scalars`.
    """

    tensors: Tensors
    scalars: Mapping[str, Any]


class ParallelStrategy(Protocol):
    """Distributes the model, gradients and optimizer state over the processes of a run.

    If `is_sharded`, no process has the whole model: all of them must take part in evaluating and
    saving it, in the same order. Whole tensors are gathered when they are read.

    Attributes:
        is_sharded: Whether each process holds only a shard.
        description: A sentence for the user that describes the sharding; empty without any.
    """

    is_sharded: bool
    description: str

    @property
    def participates(self) -> bool:
        """Whether this process takes part when the model is evaluated or saved."""

    def agreed(self, answer: bool) -> bool:  # noqa: FBT001 - the question is the caller's
        """Return the main process's answer, on all processes that take part."""

    def wrap(self, module: nn.Module) -> Any:
        """Move a trained module to its device, or shard it; return the module to call."""

    def prepare(self, modules: Sequence[TrainedModule]) -> tuple[TrainedModule, ...]:
        """Return the parts with the parameters that the optimizer updates in this process.

        Call it after `wrap`.
        """

    def start(self, modules: Sequence[TrainedModule], optimizer: torch.optim.Optimizer) -> None:
        """Register the optimizer of the parameters that `prepare` returned."""

    def gradient_sync(self, *, now: bool) -> contextlib.AbstractContextManager[None]:
        """Return a context for a forward and backward pass.

        Args:
            now: Whether processes exchange gradients at its end; else they only accumulate.
        """

    def build_precision(
        self, kind: MixedPrecision, device: torch.device, *, caches_casts: bool = True
    ) -> Precision:
        """Build the mixed precision of the run; see `Precision`."""

    def build_update(self, inputs: UpdateInputs) -> OptimizerUpdate:
        """Build the update, which runs backward passes and steps the optimizer."""

    def reshard(self) -> None:
        """Discard gathered weights, so that the next forward pass uses the present shards."""

    def whole(self, tensors: LocalTensors) -> Tensors:
        """Return the whole tensors of local ones, which are laid out like the parameters named."""

    def shard(self, tensors: Tensors) -> Tensors:
        """Return this process's shards of whole tensors; the inverse of `whole`."""

    def gather_modules(self, tensors: Mapping[str, LocalTensors]) -> Mapping[str, LocalTensors]:
        """Return the whole tensors of modules.

        If sharded, they are copies on the main process's CPU, and empty on the others.
        """

    def put(self, names: ParameterNames, weights: Tensors) -> None:
        """Copy whole tensors, by name, into this process's parameters."""

    def optimizer_state(
        self, optimizer: torch.optim.Optimizer, names: ParameterNames
    ) -> OptimizerState:
        """Return the whole state of the optimizer, as a single process would have it."""

    def load_optimizer_state(
        self, optimizer: torch.optim.Optimizer, names: ParameterNames, state: OptimizerState
    ) -> None:
        """Load a state that `optimizer_state` returned into the optimizer.

        Raises:
            RunError: The state names parameters that this run does not train.
        """


def broadcast_bool(answer: bool, device: torch.device) -> bool:  # noqa: FBT001 - not a switch
    """Return the main process's answer, on all processes."""
    return bool(broadcast(torch.tensor([int(answer)], device=device)))


class DataParallelStrategy:
    """Holds the whole model in each process; several exchange gradients by DDP.

    Args:
        accelerator: Wraps modules.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.is_sharded, self.description = False, ""
        self._accelerator = accelerator
        self._wrapped: list[Any] = []

    @property
    def participates(self) -> bool:
        """True on the main process only, since it holds the whole model."""
        return bool(self._accelerator.is_main_process)

    def agreed(self, answer: bool) -> bool:  # noqa: FBT001 - the question is the caller's
        """Return this process's answer, since only the main process takes part."""
        return answer

    def wrap(self, module: nn.Module) -> Any:
        """Move a network to the device, and return it wrapped by accelerate for DDP."""
        wrapped = self._accelerator.prepare(module.to(self._accelerator.device))
        self._wrapped.append(wrapped)
        return wrapped

    def prepare(self, modules: Sequence[TrainedModule]) -> tuple[TrainedModule, ...]:
        """Return the parts unchanged, since every process trains whole ones."""
        return tuple(modules)

    def start(self, modules: Sequence[TrainedModule], optimizer: torch.optim.Optimizer) -> None:
        """Do nothing, since accelerate has wrapped the parts already."""

    @contextlib.contextmanager
    def gradient_sync(self, *, now: bool) -> Any:
        """Yield a context whose backward pass exchanges gradients only if `now` is set."""
        with contextlib.ExitStack() as stack:
            if not now:
                for module in self._wrapped:
                    stack.enter_context(self._accelerator.no_sync(module))
            yield

    def build_precision(
        self, kind: MixedPrecision, device: torch.device, *, caches_casts: bool = True
    ) -> Precision:
        """Build the mixed precision of the run."""
        return Precision(kind, device, caches_casts=caches_casts)

    def build_update(self, inputs: UpdateInputs) -> OptimizerUpdate:
        """Build the optimizer update of the settings."""
        return build_update(inputs)

    def reshard(self) -> None:
        """Do nothing, since every process holds whole weights."""

    def whole(self, tensors: LocalTensors) -> Tensors:
        """Return the tensors unchanged, since every process holds whole ones."""
        return {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}

    def shard(self, tensors: Tensors) -> Tensors:
        """Return the tensors unchanged, since every process holds whole ones."""
        return tensors

    def gather_modules(self, tensors: Mapping[str, LocalTensors]) -> Mapping[str, LocalTensors]:
        """Return the tensors unchanged, since every process holds whole modules."""
        return tensors

    @torch.no_grad()
    def put(self, names: ParameterNames, weights: Tensors) -> None:
        """Copy whole tensors, by name, into the parameters."""
        for parameter, name in names.items():
            parameter.copy_(weights[name].read())

    def optimizer_state(
        self, optimizer: torch.optim.Optimizer, names: ParameterNames
    ) -> OptimizerState:
        """Return the optimizer's state, which every process holds whole."""
        held = optimizer_tensors(optimizer, names)
        return OptimizerState(self.whole(held), optimizer_scalars(optimizer, names))

    def load_optimizer_state(
        self, optimizer: torch.optim.Optimizer, names: ParameterNames, state: OptimizerState
    ) -> None:
        """Copy a state into the optimizer."""
        device: torch.device = self._accelerator.device
        restore_optimizer(optimizer, names, state.tensors, state.scalars, device)
