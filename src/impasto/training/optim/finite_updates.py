"""Tracks on the GPU whether every step so far was finite, so that no step waits for the answer.

From the first step on whose loss or gradient is NaN or infinite, all steps are skipped, so that the
weights stay as they were before it until the tracker is queried.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class NonFiniteError(Exception):
    """The loss or the gradient of a step is NaN or infinite.

    Attributes:
        weights_intact: Whether the step changed no weight at all.
        passed_over: Number of steps that were skipped, including this one.
    """

    def __init__(self, *, weights_intact: bool, passed_over: int = 1) -> None:
        super().__init__()
        self.weights_intact, self.passed_over = weights_intact, passed_over


class FiniteUpdates:
    """Counts applied steps on a device until the first one that is not finite.

    Its tensors stay at the same memory address, so that a CUDA graph can update them.

    Args:
        device: The device of losses and gradients.

    Attributes:
        found_inf: [] float32; 0, and 1 from the first non-finite value on. PyTorch's fused
            optimizers read it and skip the step if it is 1 (`torch.optim.Optimizer.found_inf`).
    """

    def __init__(self, device: torch.device) -> None:
        self.found_inf = torch.zeros((), device=device)
        self._one = torch.ones((), device=device)
        self._partial = torch.zeros((), device=device)
        self._applied = torch.zeros((), device=device)
        self._begun = 0

    def require(self, value: Tensor) -> None:
        """Set `found_inf` if a loss or norm is not finite."""
        torch.maximum(self.found_inf, (~torch.isfinite(value)).float(), out=self.found_inf)

    def require_all(self, gradient: Tensor) -> None:
        """Set `found_inf` if any number of a gradient is not finite, in one kernel."""
        torch._amp_foreach_non_finite_check_and_unscale_([gradient], self.found_inf, self._one)

    def begin_to_step(self) -> Tensor:
        """Return a snapshot of `found_inf`, for `stepped`, before weights change one by one."""
        return self.found_inf.clone()

    def stepped(self, found_before: Tensor | None = None) -> None:
        """Record that an optimizer step was launched.

        Args:
            found_before: The result of `begin_to_step`; None if all gradients were checked before
                any weight changed.
        """
        if found_before is not None:
            torch.maximum(self._partial, self.found_inf - found_before, out=self._partial)
        self.note_applied()
        self.count_begun()

    def note_applied(self) -> None:
        """Count a step on the device if it is applied: the part of `stepped` for CUDA graphs."""
        self._applied.add_(1 - self.found_inf)

    def count_begun(self) -> None:
        """Count a launched step on the CPU: the part of `stepped` outside CUDA graphs."""
        self._begun += 1

    def require_applied(self) -> None:
        """Wait for the device, and check that all steps since the last call were applied.

        Raises:
            NonFiniteError: A step was not finite, and so it and all later ones were skipped.
        """
        if not self._begun:
            return
        applied, torn = torch.stack([self._applied, self._partial]).tolist()
        if applied < self._begun:
            raise NonFiniteError(weights_intact=not torn, passed_over=self._begun - int(applied))
        self._applied.zero_()
        self._begun = 0


@torch.no_grad()
def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether tensors are free of NaN and infinity; waits once per device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel() and tensor.is_floating_point():
            by_device.setdefault(tensor.device, []).append(tensor.detach())
    largest = [
        torch.stack([norm.float() for norm in torch._foreach_norm(members, float("inf"))])
        for members in by_device.values()
    ]
    return all(bool(torch.isfinite(found).all()) for found in largest)
