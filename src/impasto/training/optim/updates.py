"""Updates of weights from a loss: after the backward pass, or weight by weight within it.

All gradients together take as much memory as the weights. If weights are stepped within the
backward pass, each gradient is freed before the next is computed (Lv et al. 2023, LOMO,
arXiv:2306.09782, here for optimizers with a state); but the norm of all gradients, which clipping
needs, is then known only afterwards. So there are two ways to clip: by a separate backward pass
that measures the norm, or by the norm of the previous step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from impasto.training.optim.chunked import ChunkedOptimizer, norm_of
from impasto.training.optim.finite_updates import FiniteUpdates, NonFiniteError
from impasto.training.optim.mixed_precision import Precision
from impasto.training.optim.streaming import WeightStream, streamed_backward

InBackward = Literal["off", "exact", "last_norm"]
LAST_NORM = "last_norm"


@dataclass(frozen=True)
class UpdateInputs:
    """The inputs of an optimizer step: parameters, optimizer, precision, clipping.

    Attributes:
        optimizer: Steps the weights.
        parameters: The trained parameters.
        precision: The precision that the run computes in.
        max_norm: The norm that the gradient is clipped to; 0 disables clipping.
        in_backward: Whether weights are stepped within the backward pass, and which norm they are
            clipped by there.
        stream: Streams weights between RAM and the device within the backward pass; None if they
            stay on the device.
    """

    optimizer: torch.optim.Optimizer
    parameters: Sequence[Tensor]
    precision: Precision
    max_norm: float = 0.0
    in_backward: InBackward = "off"
    stream: WeightStream | None = None


class OptimizerUpdate(Protocol):
    """Updates the weights from the losses of a step.

    Attributes:
        is_stepping: Whether weights may have changed in a step that is not counted yet. It is set
            here before the first change, and reset by the training loop, which counts steps.
    """

    is_stepping: bool

    def backward(self, loss: Tensor, *, is_last: bool = True) -> None:
        """Run the backward pass of a micro-batch's part of the step's loss."""

    def apply(self, loss: Tensor) -> Tensor | None:
        """Complete a step; return the gradient's norm before clipping, None if not measured.

        Raises:
            NonFiniteError: The step was not applied, since its loss or gradient is not finite.
        """

    def require_applied(self) -> None:
        """Check that all steps since the last call were applied; may wait for the device.

        Raises:
            NonFiniteError: A step was skipped, since its loss or gradient is not finite.
        """


class UpdateAfterBackward:
    """Accumulates the gradients of a step, clips them together, and applies them if finite.

    A fused optimizer on a GPU skips a non-finite step on the device, so that nothing waits; it then
    skips all later steps too, until `require_applied` reports the error. Elsewhere a non-finite
    step is reported at once. A gradient that overflows because the loss is scaled is not an error:
    the scaler skips the step and lowers the scale. A non-finite loss is an error even then.

    Args:
        inputs: The optimizer, parameters, precision and clipping.
    """

    def __init__(self, inputs: UpdateInputs) -> None:
        self._optimizer, self._parameters = inputs.optimizer, inputs.parameters
        self._precision, self._limit = inputs.precision, inputs.max_norm
        self._finite_tracker = finite_tracker(inputs.optimizer, inputs.precision.device)
        self.is_stepping = False

    def backward(self, loss: Tensor, *, is_last: bool = True) -> None:
        """Compute the gradients of a loss and add them to the existing ones."""
        del is_last
        torch.autograd.backward(self._precision.scaled(loss))

    def apply(self, loss: Tensor) -> Tensor | None:
        """Clip the gradients, step the optimizer and reset the gradients; return the norm before.

        None if the norm was not measured.

        Raises:
            NonFiniteError: The loss or the gradient is not finite, as found without a fused
                optimizer on a GPU.
        """
        tracker, scales = self._finite_tracker, self._precision.scales
        if tracker is not None:
            tracker.require(loss)
            if scales:
                self._poison_gradients(tracker.found_inf)
        norm = self._precision.clip(self._optimizer, self._parameters, self._limit)
        if tracker is None:
            self._require_finite([loss] if norm is None or scales else [loss, norm])
        elif not scales and norm is not None:
            tracker.require(norm)
            self._optimizer.found_inf = tracker.found_inf  # type: ignore[attr-defined]
        if tracker is not None:
            tracker.stepped()  # before the step, after which nothing may fail
        self.is_stepping = True
        self._precision.step(self._optimizer, None if tracker is None else tracker.found_inf)
        self._optimizer.zero_grad()
        return norm

    def require_applied(self) -> None:
        """Check that no step was skipped; only a fused optimizer on a GPU passes over any."""
        if self._finite_tracker is not None:
            self._finite_tracker.require_applied()

    def _require_finite(self, values: Sequence[Tensor]) -> None:
        if not all(bool(torch.isfinite(value)) for value in values):
            self._optimizer.zero_grad()
            raise NonFiniteError(weights_intact=True)

    def _poison_gradients(self, found_inf: Tensor) -> None:
        """Add NaN to a gradient if `found_inf` is set, so that the scaler skips the step.

        The loss may be non-finite although the gradients are finite.
        """
        spoilt = torch.where(found_inf > 0, float("nan"), 0.0)
        for parameter in self._parameters:
            if parameter.grad is not None and parameter.grad.numel():
                parameter.grad.add_(spoilt)
                return


class UpdateInBackward:
    """Steps each weight as soon as its gradient is complete, and frees the gradient.

    With a gradient scaler, the norm is measured first by a separate backward pass. Where clipping
    uses the norm of the previous step (`last_norm`), the first step measures its own.

    Args:
        inputs: The optimizer, parameters, precision and clipping; the optimizer must be a
            `ChunkedOptimizer` of single tensors.
    """

    def __init__(self, inputs: UpdateInputs) -> None:
        assert isinstance(inputs.optimizer, ChunkedOptimizer)  # noqa: S101 - see build_optimizer
        self._optimizer, self._parameters = inputs.optimizer, inputs.parameters
        self._precision, self._limit = inputs.precision, inputs.max_norm
        self._by_last_norm, self._stream = inputs.in_backward == LAST_NORM, inputs.stream
        self._finite_tracker = finite_tracker(inputs.optimizer, inputs.precision.device)
        self._norms: dict[Tensor, Tensor] = {}
        self._norm_before: Tensor | None = None
        self._is_partial = False
        self.is_stepping = False

    def backward(self, loss: Tensor, *, is_last: bool = True) -> None:
        """Run the backward pass that steps the weights; first one for the norm, if needed.

        Raises:
            NonFiniteError: The loss or the measured norm is not finite; no weight was changed.
        """
        del is_last  # always true: nothing is accumulated here
        last = self._optimizer.param_groups[0].get(LAST_NORM) if self._by_last_norm else None
        scaled = self._precision.scaled(loss)
        self._norms = {}
        if self._finite_tracker is not None:
            self._finite_tracker.require(loss)
        elif not bool(torch.isfinite(loss)):
            raise NonFiniteError(weights_intact=True)
        if (self._limit > 0 and last is None) or self._precision.scales:
            last = self._measured(loss, scaled)
            if last is None:
                self._precision.stepped(overflown=True)
                return
        if self._limit > 0 and last is not None:
            self._optimizer.clip_to(self._limit, last)
        if self._precision.scales:
            self._optimizer.grad_scale = torch.tensor(self._precision.scale(), device=loss.device)
        self._step_all(scaled)
        if self._norms:
            self._norm_before = self._norm()
        self._precision.stepped(overflown=False)

    def apply(self, loss: Tensor) -> Tensor | None:
        """Return the gradient norm of the step, None if not measured.

        The weights were already stepped in the backward pass.

        Raises:
            NonFiniteError: A gradient was not finite, and some weights were stepped before it.
        """
        del loss
        norm, self._norm_before = self._norm_before, None
        if self._is_partial:
            raise NonFiniteError(weights_intact=False)
        if norm is not None and self._by_last_norm:
            group = self._optimizer.param_groups[0]
            kept = norm
            if (
                self._finite_tracker is not None and LAST_NORM in group
            ):  # a skipped step does not replace the last norm
                kept = torch.where(self._finite_tracker.found_inf > 0, group[LAST_NORM], norm)
            group[LAST_NORM] = kept
        return norm

    def require_applied(self) -> None:
        """Check that no step was skipped; only a fused optimizer on a GPU passes over any."""
        if self._finite_tracker is not None:
            self._finite_tracker.require_applied()

    def _measured(self, loss: Tensor, scaled: Tensor) -> Tensor | None:
        """Return the gradient norm from a separate backward pass; None if the scaled one overflows.

        Raises:
            NonFiniteError: The loss, or the norm of an unscaled gradient, is not finite.
        """
        self._walk(scaled, self._measure, keep_graph=True)
        norm = self._norm()
        is_loss_finite, is_norm_finite = torch.isfinite(torch.stack([loss.detach(), norm])).tolist()
        if is_loss_finite and is_norm_finite:
            return norm
        if is_loss_finite and self._precision.scales:
            return None
        raise NonFiniteError(weights_intact=True)

    def _step_all(self, scaled: Tensor) -> None:
        before = None if self._finite_tracker is None else self._finite_tracker.begin_to_step()
        self.is_stepping = True
        self._walk(scaled, self._step)
        self._optimizer.finish()
        if self._finite_tracker is not None:
            self._finite_tracker.stepped(before)

    def _walk(
        self, scaled: Tensor, hook: Callable[[Tensor], None], *, keep_graph: bool = False
    ) -> None:
        changes = not keep_graph
        with (
            gradient_hooks(self._parameters, hook),
            streamed_backward(self._stream, changes=changes),
        ):
            torch.autograd.backward(scaled, retain_graph=keep_graph)

    def _measure(self, parameter: Tensor) -> None:
        assert parameter.grad is not None  # noqa: S101 - called when it is complete
        self._norms[parameter] = norm_of(parameter.grad)
        parameter.grad = None

    def _step(self, parameter: Tensor) -> None:
        """Step a weight and free its gradient; skip it after a non-finite gradient."""
        gradient = parameter.grad
        assert gradient is not None  # noqa: S101 - called when it is complete
        if self._by_last_norm or self._finite_tracker is None:
            self._norms[parameter] = norm_of(gradient)
        if self._finite_tracker is not None:
            self._finite_tracker.require_all(gradient)
            self._optimizer.found_inf = self._finite_tracker.found_inf
        elif not self._is_partial:
            self._is_partial = not bool(torch.isfinite(self._norms[parameter]))
        if not self._is_partial:
            self._optimizer.step_parameter(parameter)
        parameter.grad = None

    def _norm(self) -> Tensor:
        """Return the norm of all unscaled gradients of the step."""
        norms = [self._norms[p] for p in self._parameters if p in self._norms]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms)) / self._precision.scale()
        return norm


def build_update(inputs: UpdateInputs) -> OptimizerUpdate:
    """Build the update that the inputs select: within the backward pass, or after it."""
    return UpdateAfterBackward(inputs) if inputs.in_backward == "off" else UpdateInBackward(inputs)


def finite_tracker(optimizer: torch.optim.Optimizer, device: torch.device) -> FiniteUpdates | None:
    """Return a tracker of non-finite steps for a fused optimizer on a GPU, otherwise None.

    Only fused optimizers can be told on the device to skip a step.
    """
    is_fused = optimizer.param_groups[0].get("fused")
    return FiniteUpdates(device) if is_fused and device.type == "cuda" else None


@contextmanager
def gradient_hooks(parameters: Sequence[Tensor], hook: Callable[[Tensor], None]) -> Iterator[None]:
    """Within the context, call `hook` with each weight when its gradient is complete."""
    handles = [p.register_post_accumulate_grad_hook(hook) for p in parameters]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
