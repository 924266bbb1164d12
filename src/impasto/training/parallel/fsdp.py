"""A model whose weights, gradients and optimizer state are sharded over processes, by PyTorch.

Zhao et al. 2023, PyTorch FSDP (arXiv:2304.11277), by `torch.distributed.fsdp.fully_shard`: blocks
of the networks are gathered just before they compute. The optimizer and the averages work on the
plain local tensors behind the shards, so that any elementwise optimizer can be used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from impasto.checkpoints.tensors import LazyTensor, Tensors
from impasto.models.trainable import TrainedModule, blocks_of
from impasto.training.optim.mixed_precision import MixedPrecision, Precision
from impasto.training.optim.state import (
    optimizer_scalars,
    optimizer_tensors,
    restore_optimizer,
    split_key,
)
from impasto.training.optim.updates import OptimizerUpdate, UpdateAfterBackward, UpdateInputs
from impasto.training.parallel.strategy import (
    LocalTensors,
    OptimizerState,
    ParameterNames,
    broadcast_bool,
)


class FsdpStrategy:
    """Holds a shard of each tensor in each process, split along its first dimension.

    Args:
        accelerator: The processes.
        reshard_after_forward: Whether blocks are sharded again right after their forward pass; else
            they stay whole until their backward pass, which is faster and takes more memory.
    """

    def __init__(self, accelerator: Accelerator, *, reshard_after_forward: bool) -> None:
        self.is_sharded = True
        self.description = (
            f"FSDP: each of {accelerator.num_processes} processes holds a shard of the weights, "
            f"gradients and optimizer state; blocks of the networks are gathered while they "
            f"compute."
        )
        self._is_main, self._device = accelerator.is_main_process, accelerator.device
        self._mesh = init_device_mesh(self._device.type, (accelerator.num_processes,))
        self._reshard_after_forward = reshard_after_forward
        self._roots: list[FSDPModule] = []
        self._dtensors: dict[str, DTensor] = {}
        self._shards: dict[str, nn.Parameter] = {}

    @property
    def participates(self) -> bool:
        """True, since each process holds a shard of the weights."""
        return True

    def agreed(self, answer: bool) -> bool:  # noqa: FBT001 - the question is the caller's
        """Return the main process's answer, on all processes."""
        return broadcast_bool(answer, self._device)

    def wrap(self, module: nn.Module) -> Any:
        """Shard a module in place, block by block, and return it."""
        for block in blocks_of(module):
            fully_shard(block, mesh=self._mesh, reshard_after_forward=self._reshard_after_forward)
        root: Any = fully_shard(
            module, mesh=self._mesh, reshard_after_forward=self._reshard_after_forward
        )
        self._roots.append(root)
        return root

    def prepare(self, modules: Sequence[TrainedModule]) -> tuple[TrainedModule, ...]:
        """Return the parts with the local tensors behind this process's shards as parameters."""
        return tuple(replace(trained, shards=self._local_shards_of(trained)) for trained in modules)

    def _local_shards_of(self, trained: TrainedModule) -> Mapping[str, nn.Parameter]:
        shards = {}
        for name, parameter in trained.parameters().items():
            assert isinstance(parameter, DTensor)  # noqa: S101 - made so by wrap
            full = f"{trained.name}.{name}"
            self._dtensors[full] = parameter
            self._shards[full] = shards[name] = nn.Parameter(parameter.to_local().detach())
        return shards

    def start(self, modules: Sequence[TrainedModule], optimizer: torch.optim.Optimizer) -> None:
        """Do nothing, since the optimizer updates local shards like whole weights."""

    def gradient_sync(self, *, now: bool) -> contextlib.AbstractContextManager[None]:
        """Return a context without effect: each backward pass reduces and shards gradients."""
        del now
        return contextlib.nullcontext()

    def build_precision(
        self, kind: MixedPrecision, device: torch.device, *, caches_casts: bool = True
    ) -> Precision:
        """Build the precision; norms and overflow checks cover the shards of all processes."""
        return Precision(kind, device, of_shards=True, caches_casts=caches_casts)

    def build_update(self, inputs: UpdateInputs) -> OptimizerUpdate:
        """Build the update, which applies gradients to this process's shards."""
        pairs = [(self._dtensors[name], self._shards[name]) for name in self._dtensors]
        return FsdpUpdate(inputs, pairs)

    def reshard(self) -> None:
        """Reshard blocks that are still gathered after a forward pass without gradients."""
        for root in self._roots:
            for module in root.modules():  # type: ignore[attr-defined]
                if isinstance(module, FSDPModule):
                    module.reshard()

    def whole(self, tensors: LocalTensors) -> Tensors:
        """Return the whole tensors; each is gathered to RAM, by all processes, when it is read."""
        return {name: self._gathered(name, tensor) for name, tensor in tensors.items()}

    def shard(self, tensors: Tensors) -> Tensors:
        """Return this process's shards of whole tensors."""
        return {name: self._shard_of(name, tensor) for name, tensor in tensors.items()}

    def gather_modules(self, tensors: Mapping[str, LocalTensors]) -> Mapping[str, LocalTensors]:
        """Gather whole tensors; return them on the main process's CPU, and none elsewhere."""
        return {component: dict(self._kept(held)) for component, held in tensors.items()}

    def _kept(self, held: LocalTensors) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in held.items():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self._is_main:
                yield name, whole.detach().to("cpu", copy=True)

    @torch.no_grad()
    def put(self, names: ParameterNames, weights: Tensors) -> None:
        """Copy this process's shards of whole tensors into its parameters."""
        for parameter, name in names.items():
            parameter.copy_(self._shard_of(name, weights[name]).read())

    def optimizer_state(
        self, optimizer: torch.optim.Optimizer, names: ParameterNames
    ) -> OptimizerState:
        """Return the optimizer's whole state.

        Tensors shaped like a parameter's shard are gathered; others, and numbers, are the same in
        all processes.
        """
        held = optimizer_tensors(optimizer, names)
        whole = {}
        for key, tensor in held.items():
            name, _ = split_key(key)
            cut = name in self._shards and tensor.shape == self._shards[name].shape
            whole[key] = self._gathered(name, tensor) if cut else LazyTensor.of(tensor)
        return OptimizerState(whole, optimizer_scalars(optimizer, names))

    def load_optimizer_state(
        self, optimizer: torch.optim.Optimizer, names: ParameterNames, state: OptimizerState
    ) -> None:
        """Load this process's shards of a whole state into the optimizer."""
        mine = {}
        for key, tensor in state.tensors.items():
            name, _ = split_key(key)
            cut = name in self._dtensors and tensor.shape == self._dtensors[name].shape
            mine[key] = self._shard_of(name, tensor) if cut else tensor
        restore_optimizer(optimizer, names, mine, state.scalars)

    def _gathered(self, name: str, tensor: Tensor) -> LazyTensor:
        """Return the whole of a tensor laid out like a shard; all processes gather it when read."""
        piece = self._dtensors[name]

        def read() -> Tensor:
            whole = DTensor.from_local(
                tensor.detach().to(self._device),
                piece.device_mesh,
                piece.placements,
                run_check=False,
                shape=piece.shape,
                stride=piece.stride(),
            ).full_tensor()
            return whole.detach().cpu()

        return LazyTensor(tuple(piece.shape), tensor.dtype, read, owns_memory=True)

    def _shard_of(self, name: str, whole: LazyTensor) -> LazyTensor:
        like = self._dtensors[name]

        def read() -> Tensor:
            values = whole.read().to(self._device)
            cut = distribute_tensor(values, like.device_mesh, like.placements, src_data_rank=None)
            return cut.to_local()

        return LazyTensor(tuple(self._shards[name].shape), whole.dtype, read)


class FsdpUpdate(UpdateAfterBackward):
    """Moves gradients from shards to the local tensors behind them, and applies them there.

    Args:
        inputs: The objects that an update works with; its parameters are the local tensors.
        pairs: Each shard with the local tensor behind it.
    """

    def __init__(self, inputs: UpdateInputs, pairs: Sequence[tuple[DTensor, Tensor]]) -> None:
        super().__init__(inputs)
        self._pairs = pairs

    def apply(self, loss: Tensor) -> Tensor | None:
        """Clip the gradients and step the optimizer; see `UpdateAfterBackward.apply`."""
        for shard, local in self._pairs:
            gradient: Any = shard.grad
            local.grad = None if gradient is None else gradient.to_local()
            shard.grad = None
        return super().apply(loss)
