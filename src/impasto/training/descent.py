"""From a loss to changed weights: by gradients that are kept, or step by step in the backward pass.

Kept gradients take as much memory as the weights. Stepped in the backward pass, each is gone
before the next is computed (Lv et al. 2023, LOMO, arXiv:2306.09782, for optimizers with a state);
the norm of all of them, which clipping needs, is then known only afterwards. So there are two ways
to clip: a backward pass of its own for the norm, or the norm of the update before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol

import torch
from torch import Tensor

from impasto.training.chunked import ChunkedOptimizer, norm_of
from impasto.training.precision import Precision

InBackward = Literal["off", "exact", "last_norm"]
LAST_NORM = "last_norm"


class NotFiniteError(Exception):
    """The loss or the gradient of an update is NaN or infinite.

    Attributes:
        weights_are_whole: Whether the update was not applied, to no weight at all.
    """

    def __init__(self, *, weights_are_whole: bool) -> None:
        super().__init__()
        self.weights_are_whole = weights_are_whole


class Descent(Protocol):
    """Takes an update from its losses to the weights.

    Attributes:
        is_stepping: Whether weights are being changed just now.
    """

    is_stepping: bool

    def backward(self, share: Tensor, *, is_last: bool = True) -> None:
        """Go backward from a micro-batch's share of the update's loss."""

    def apply(self, loss: Tensor) -> Tensor | None:
        """Complete an update of this loss; the gradient's norm before clipping, if measured.

        Raises:
            NotFiniteError: It was not applied.
        """


class KeptGradients:
    """Gradients of a whole update are added up, clipped together, and applied.

    A fused optimizer on a GPU passes over what is not finite on the device, so that nothing waits;
    the fault is noticed when the losses are read. A scaler passes over it too, and only a loss that
    is not finite is a fault then. Elsewhere it is noticed at once.

    Args:
        optimizer: Steps the weights.
        parameters: What learns.
        precision: How the run computes.
        limit: The largest norm of the gradient; 0 means none.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[Tensor],
        precision: Precision,
        limit: float,
    ) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        self._precision, self._limit = precision, limit
        self._skips_on_device = skips_on_device(optimizer)
        self.is_stepping = False

    def backward(self, share: Tensor, *, is_last: bool = True) -> None:
        """Add to the gradients."""
        del is_last
        torch.autograd.backward(self._precision.scaled(share))

    def apply(self, loss: Tensor) -> Tensor | None:
        """Clip and step."""
        precision, optimizer = self._precision, self._optimizer
        norm = precision.clip(optimizer, self._parameters, self._limit)
        finite = torch.isfinite(loss)
        if norm is not None and not precision.scales:
            finite = finite & torch.isfinite(norm)
        if self._skips_on_device and not precision.scales:
            optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        elif not self._skips_on_device and not bool(finite):
            optimizer.zero_grad()
            raise NotFiniteError(weights_are_whole=True)
        self.is_stepping = True
        precision.step(optimizer)
        self.is_stepping = False
        optimizer.zero_grad()
        return norm


class SteppedInBackward:
    """Each weight is stepped as soon as its gradient is there, which is then freed.

    Args:
        optimizer: With a chunk for each tensor.
        parameters: What learns.
        precision: How the run computes; with a scaler, the norm has to be measured first.
        limit: The largest norm of the gradient; 0 means none.
        by_last_norm: Clip by the norm of the update before; the first one measures its own.
    """

    def __init__(
        self,
        optimizer: ChunkedOptimizer,
        parameters: Sequence[Tensor],
        precision: Precision,
        limit: float,
        *,
        by_last_norm: bool = False,
    ) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        self._precision, self._limit, self._by_last_norm = precision, limit, by_last_norm
        self._skips_on_device = skips_on_device(optimizer)
        self._norms: dict[Tensor, Tensor] = {}
        self._norm_before: Tensor | None = None
        self.is_stepping = False

    def backward(self, share: Tensor, *, is_last: bool = True) -> None:
        """All of an update: its norm where it is needed, and the steps.

        Raises:
            NotFiniteError: It was not applied.
        """
        del is_last  # there is one
        last = self._optimizer.param_groups[0].get(LAST_NORM) if self._by_last_norm else None
        scaled = self._precision.scaled(share)
        self._norms = {}
        if self._skips_on_device:
            self._optimizer.found_inf = (~torch.isfinite(share)).float()
        elif not bool(torch.isfinite(share)):
            raise NotFiniteError(weights_are_whole=True)
        if (self._limit > 0 and last is None) or self._precision.scales:
            self._walk(scaled, self._measure, keep_graph=True)
            norm = self._norm()
            if not bool(torch.isfinite(norm)):
                if not self._precision.scales:
                    raise NotFiniteError(weights_are_whole=True)
                self._precision.stepped(overflown=True)
                return
            last = norm
        if self._limit > 0 and last is not None:
            self._optimizer.shorten(self._limit, last)
        if self._precision.scales:
            self._optimizer.grad_scale = torch.tensor(self._precision.scale(), device=share.device)
        self.is_stepping = True
        self._walk(scaled, self._step)
        self._optimizer.finish()
        self.is_stepping = False
        if self._norms:
            self._norm_before = self._norm()
        self._precision.stepped(overflown=False)

    def apply(self, loss: Tensor) -> Tensor | None:
        """Only say what the norm was: all else is done."""
        del loss
        norm, self._norm_before = self._norm_before, None
        if self._limit <= 0 or norm is None:
            return None
        if self._by_last_norm:
            if not self._skips_on_device and not bool(torch.isfinite(norm)):
                raise NotFiniteError(weights_are_whole=False)
            self._optimizer.param_groups[0][LAST_NORM] = norm
        return norm

    def _walk(
        self, scaled: Tensor, visit: Callable[[Tensor], None], *, keep_graph: bool = False
    ) -> None:
        with at_each_gradient(self._parameters, visit):
            torch.autograd.backward(scaled, retain_graph=keep_graph)

    def _measure(self, parameter: Tensor) -> None:
        assert parameter.grad is not None  # noqa: S101 - called when it is there
        self._norms[parameter] = norm_of(parameter.grad)
        parameter.grad = None

    def _step(self, parameter: Tensor) -> None:
        assert parameter.grad is not None  # noqa: S101 - called when it is there
        if self._by_last_norm:
            self._norms[parameter] = norm_of(parameter.grad)
        self._optimizer.step_one(parameter)
        parameter.grad = None

    def _norm(self) -> Tensor:
        """Of all gradients of the update, in their true size."""
        norms = [self._norms[p] for p in self._parameters if p in self._norms]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms)) / self._precision.scale()
        return norm


def build_descent(
    in_backward: InBackward,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    precision: Precision,
    limit: float,
) -> Descent:
    """The way of the settings; stepping in the backward pass needs a `ChunkedOptimizer`."""
    if in_backward == "off":
        return KeptGradients(optimizer, parameters, precision, limit)
    assert isinstance(optimizer, ChunkedOptimizer)  # noqa: S101 - made so by build_optimizer
    return SteppedInBackward(
        optimizer, parameters, precision, limit, by_last_norm=in_backward == LAST_NORM
    )


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer can be told on the GPU to pass over an update."""
    group = optimizer.param_groups[0]
    return bool(group.get("fused")) and group["params"][0].device.type == "cuda"


@contextmanager
def at_each_gradient(
    parameters: Sequence[Tensor], visit: Callable[[Tensor], None]
) -> Iterator[None]:
    """Call `visit` with each weight when its gradient is complete."""
    handles = [p.register_post_accumulate_grad_hook(visit) for p in parameters]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
