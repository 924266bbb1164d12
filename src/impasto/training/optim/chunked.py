"""An optimizer that steps the weights chunk by chunk, with any library's optimizer per chunk.

Three features need it: 16-bit weights, which are widened to float32, stepped and rounded back one
chunk at a time; optimizer states that are kept in RAM and copied to the device for their step; and
steps within the backward pass, where each weight is a separate chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from impasto.training.optim.offload import OffloadedStates
from impasto.training.optim.rounding import Rounding

CHUNK = 16 << 20  # weights in float32 at a time, unless a single tensor has more


@dataclass(frozen=True)
class ChunkRules:
    """The features for which an optimizer steps chunk by chunk; the default needs no chunks.

    Attributes:
        rounding: Rounds weights back to 16 bits; None for 32-bit weights.
        each_alone: Whether each weight is stepped by itself, as within the backward pass.
        away: Keeps the optimizer's state in RAM; None leaves it on the device.
    """

    rounding: Rounding | None = None
    each_alone: bool = False
    away: OffloadedStates | None = None

    @property
    def need(self) -> str | None:
        """The setting that needs chunks, for messages; None if none does."""
        if self.rounding is not None:
            return "training.weight_dtype in 16 bits"
        if self.each_alone:
            return "training.optimizer_in_backward"
        return None if self.away is None else "training.offload_optimizer"


AT_ONCE = ChunkRules()
BuildInner = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


class ChunkedOptimizer(torch.optim.Optimizer):
    """Steps weights with one inner optimizer per chunk.

    Its groups and its state are those of the inner optimizers, so that both can be saved and
    restored as with any optimizer. Gradients may be scaled (`torch.amp.GradScaler`); they are
    unscaled and clipped (`clip`) in float32, since in 16 bits either would round them.

    Args:
        groups: Parameter groups with `params` and `lr`, as for any optimizer.
        build: Builds the optimizer of a chunk from such groups; it must step each weight
            independently of the others.
        rules: The features that need chunks.
        chunk: Weights per chunk, unless each is stepped alone.
    """

    _step_supports_amp_scaling = True
    grad_scale: Tensor | None
    found_inf: Tensor | None

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        build: BuildInner,
        rules: ChunkRules,
        chunk: int = CHUNK,
    ) -> None:
        super().__init__([{**group, "params": list(group["params"])} for group in groups], {})
        self._rounding, self._offload = rules.rounding, rules.away
        self._factor: Tensor | None = None
        self._inner = [
            build([{**group, "params": members}])
            for group in self.param_groups
            for members in chunks_of(group["params"], 1 if rules.each_alone else chunk)
        ]
        for optimizer in self._inner:
            optimizer.state = self.state
        self.param_groups = [g for optimizer in self._inner for g in optimizer.param_groups]
        self._chunk_of = {p: inner for inner in self._inner for p in _members(inner)}

    def clip(self, limit: float, scale: float = 1.0) -> Tensor:
        """Return the norm of all gradients, and make the next step clip them to `limit`.

        Args:
            limit: The largest norm; 0 measures without clipping.
            scale: The factor by which the gradients are scaled; the norm is of unscaled gradients.
        """
        norms = [norm_of(p.grad) for p in self._chunk_of if p.grad is not None]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms)) / scale
        if limit > 0:
            self.clip_to(limit, norm)
        return norm

    def clip_to(self, limit: float, norm: Tensor) -> None:
        """Make the next step, or steps of single weights, scale gradients of `norm` to `limit`.

        Gradients are never scaled up; the factor is kept until `finish`.
        """
        self._factor = (limit / (norm + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_

    def begin(self, seed: int) -> None:
        """Seed the rounding of a step; nothing to do without rounding. See `Rounding.begin`."""
        if self._rounding is not None:
            self._rounding.begin(seed)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Step all chunks; do nothing if the gradient has overflowed."""
        if self._is_overflown():
            return
        for number, optimizer in enumerate(self._inner):
            if self._offload is not None:  # the next chunk's states are copied during this step
                for near in self._inner[number : number + 2]:
                    self._offload.fetch(_members(near), self.state)
            self._step_chunk(optimizer)
        self.finish()

    @torch.no_grad()
    def step_parameter(self, parameter: Tensor) -> None:
        """Step one weight, which is a chunk of its own; call `finish` after the last."""
        optimizer = self._chunk_of[parameter]
        if self._offload is not None:
            self._offload.fetch([parameter], self.state)
        self._step_chunk(optimizer)

    def inner_optimizer(self, parameter: Tensor) -> torch.optim.Optimizer:
        """Return the inner optimizer that steps a parameter."""
        return self._chunk_of[parameter]

    @property
    def offloads_states(self) -> bool:
        """Whether the optimizer's state is kept in RAM between steps."""
        return self._offload is not None

    def finish(self) -> None:
        """End a step: reset the clipping factor, and wait until states are stored in RAM."""
        self._factor = None
        if self._offload is not None:
            self._offload.wait()

    def _is_overflown(self) -> bool:
        found_inf = getattr(self, "found_inf", None)
        return found_inf is not None and not self._is_fused and bool(found_inf)

    @property
    def _is_fused(self) -> bool:
        """Whether the inner optimizers are fused, so that they skip overflows on the device."""
        return bool(self.param_groups[0].get("fused"))

    def _step_chunk(self, optimizer: torch.optim.Optimizer) -> None:
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and self._is_fused:
            optimizer.found_inf, optimizer.grad_scale = found_inf, None  # type: ignore[attr-defined]
        learning = [p for p in _members(optimizer) if p.grad is not None]
        if self._offload is not None:
            self._offload.arrive(_members(optimizer))
        if self._rounding is None:
            self._step_wide(optimizer, learning)
        else:
            self._step_narrow(optimizer, learning, self._rounding)
        if self._offload is not None:
            self._offload.store(_members(optimizer), self.state)

    def _step_wide(self, optimizer: torch.optim.Optimizer, learning: list[Tensor]) -> None:
        scale = getattr(self, "grad_scale", None)
        for p in learning:
            assert p.grad is not None  # noqa: S101 - chosen by it
            if scale is not None:
                p.grad.div_(scale)
            if self._factor is not None:
                p.grad.mul_(self._factor)
        storages = [p.data for p in learning]
        optimizer.step()
        for p, storage in zip(learning, storages, strict=True):
            put_back(p, storage)

    def _step_narrow(
        self, optimizer: torch.optim.Optimizer, learning: list[Tensor], rounding: Rounding
    ) -> None:
        narrow = [(p.data, p.grad) for p in learning]
        for p, (weight, grad) in zip(learning, narrow, strict=True):
            assert grad is not None  # noqa: S101 - chosen by it
            p.grad = None
            p.data = rounding.widened(weight, self.state.get(p, {}))
            p.grad = self._true_size(grad.float())
        optimizer.step()
        for p, (weight, _) in zip(learning, narrow, strict=True):
            p.grad = None
            weight.copy_(rounding.narrowed(p.data, weight.dtype, self.state[p]))
            p.data = weight

    def _true_size(self, grad: Tensor) -> Tensor:
        scale = getattr(self, "grad_scale", None)
        if scale is not None:
            grad = grad / scale
        return grad if self._factor is None else grad * self._factor


def put_back(parameter: Tensor, storage: Tensor) -> None:
    """Move a stepped weight back to its original storage and memory layout, if it was replaced.

    bitsandbytes replaces non-contiguous weights by contiguous ones.
    """
    if parameter.data_ptr() != storage.data_ptr():
        parameter.data = storage.copy_(parameter.data)


def norm_of(grad: Tensor) -> Tensor:
    """Return the L2 norm of one gradient, computed in float32."""
    norm: Tensor = torch.linalg.vector_norm(grad, dtype=torch.float32)
    return norm


def _members(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def chunks_of(parameters: Sequence[Tensor], limit: int = CHUNK) -> Iterator[list[Tensor]]:
    """Yield the parameters in order, in lists of at most `limit` elements.

    A parameter with more elements is in a list by itself.
    """
    members: list[Tensor] = []
    held = 0
    for parameter in parameters:
        if members and held + parameter.numel() > limit:
            yield members
            members, held = [], 0
        members.append(parameter)
        held += parameter.numel()
    if members:
        yield members
