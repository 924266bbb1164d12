"""Clipping and the optimizer's step as one CUDA graph, for fused AdamW.

All tensors that the graph reads stay at the same memory address: gradients, which are zeroed and
not freed, the learning rates, the loss, and the flag for non-finite steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from impasto.errors import ConfigError
from impasto.training.optim.finite_updates import FiniteUpdates
from impasto.training.optim.graph_recorder import GraphRecorder, Work
from impasto.training.optim.updates import UpdateInputs
from impasto.training.optim.weight_copies import WeightCopies


class GraphedUpdate:
    """Clips gradients, steps the optimizer and zeroes gradients; recorded from the second step on.

    The first step shows which parameters have gradients: those get permanent gradient tensors, and
    the others stay without, so that the optimizer skips them. The recorded step covers only the
    former, so a parameter that gets its first gradient later must be detected
    (`stray_parameter`).

    Args:
        inputs: The optimizer, parameters and clipping; without a gradient scaler, and with no steps
            in the backward pass.
        recorder: Records the CUDA graph.
        copies: The 16-bit weight copies, which are refreshed after each step.

    Raises:
        ConfigError: The optimizer is not a fused one of PyTorch.
    """

    def __init__(self, inputs: UpdateInputs, recorder: GraphRecorder, copies: WeightCopies) -> None:
        require_capturable(inputs.optimizer)
        self._optimizer, self._parameters = inputs.optimizer, list(inputs.parameters)
        self._precision, self._limit = inputs.precision, inputs.max_norm
        self._recorder, self._copies = recorder, copies
        device = inputs.precision.device
        self._finite = FiniteUpdates(device)
        self._optimizer.found_inf = self._finite.found_inf  # type: ignore[attr-defined]
        self._loss, self._norm = torch.zeros((), device=device), torch.zeros((), device=device)
        self._rates = [torch.zeros((), device=device) for _ in self._optimizer.param_groups]
        self._replay: Work | None = None
        self._without_gradients: list[Tensor] = []
        self.has_gradients = False
        self.is_stepping = False

    def backward(self, loss: Tensor, *, is_last: bool = True) -> None:
        """Compute the gradients of a loss and add them to the existing ones."""
        del is_last
        torch.autograd.backward(loss)

    def apply(self, loss: Tensor) -> Tensor:
        """Clip the gradients and step the optimizer; return the gradient's norm before clipping."""
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self._loss.copy_(loss)
        if self.has_gradients:
            if self._replay is None:
                self._replay = self._recorder.record(self._all)
            self._finite.count_begun()
            self.is_stepping = True
            self._replay()
        else:
            self._check()
            self._finite.count_begun()
            self.is_stepping = True
            self._step(is_recorded=False)
            self._allocate_gradients()
        return self._norm.clone()

    def require_applied(self) -> None:
        """Wait for the device, and check that all steps since the last call were applied.

        Raises:
            NonFiniteError: A step was not finite, and so it and all later ones were skipped.
        """
        self._finite.require_applied()

    def stray_parameter(self) -> Tensor | None:
        """Return a parameter that has a gradient now but had none in the first step, or None.

        The recorded step does not update such a parameter.
        """
        return next((p for p in self._without_gradients if p.grad is not None), None)

    def forget(self) -> None:
        """Discard the graph, so that the next step records a new one."""
        self._replay = None

    def _all(self) -> None:
        self._check()
        self._step(is_recorded=True)

    def _check(self) -> None:
        """Clip the gradients, and check that loss and norm are finite before any weight changes."""
        self._finite.require(self._loss)
        norm = self._precision.clip(self._optimizer, self._parameters, self._limit)
        assert norm is not None  # noqa: S101 - without a scaler it is always measured
        self._finite.require(norm)
        self._norm.copy_(norm)
        self._finite.note_applied()

    def _step(self, *, is_recorded: bool) -> None:
        with self._rates_on_device(is_recorded=is_recorded):
            self._optimizer.step()
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        torch._foreach_zero_(gradients)
        self._copies.refresh()

    @contextlib.contextmanager
    def _rates_on_device(self, *, is_recorded: bool) -> Iterator[None]:
        """Within the context, make the optimizer read its rates from tensors on the device.

        Afterwards they are plain numbers again. `capturable` is set only while recording: PyTorch
        warns about capturable groups that are stepped outside a recording.
        """
        groups = self._optimizer.param_groups
        kept = [(group["lr"], group["capturable"]) for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group.update(lr=rate, capturable=is_recorded)
        try:
            yield
        finally:
            for group, (rate, capturable) in zip(groups, kept, strict=True):
                group.update(lr=rate, capturable=capturable)

    def _allocate_gradients(self) -> None:
        """Replace the gradients of the first step by permanent zero tensors.

        The first step allocated its gradients between its activations.
        """
        learning = [p for p in self._parameters if p.grad is not None]
        self._without_gradients = [p for p in self._parameters if p.grad is None]
        self._recorder.run(self._optimizer.zero_grad)  # freed on the stream that allocated them
        for parameter in learning:
            parameter.grad = torch.zeros_like(parameter)
        self.has_gradients = True


def require_capturable(optimizer: torch.optim.Optimizer) -> None:
    """Check that an optimizer is PyTorch's fused Adam or AdamW, whose step runs on the device only.

    Raises:
        ConfigError: It is another optimizer, given in code.
    """
    known = isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW))
    if not known or not all(group.get("fused") for group in optimizer.param_groups):
        raise ConfigError(
            f"training.cuda_graphs step needs torch.optim.AdamW or Adam with fused=True, and "
            f"{type(optimizer).__name__}, which was given in code, is neither. Give one of these, "
            f'or set cuda_graphs to "off".'
        )
