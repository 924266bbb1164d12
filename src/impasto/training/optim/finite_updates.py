"""Whether every step so far was finite: kept on the GPU, so that no step waits for it.

From the first step on whose loss or gradient is NaN or infinite, all are skipped, so that the
weights stay as they were before it until somebody looks.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class NonFiniteError(Exception):
    """The loss or the gradient of a step is NaN or infinite.

    Attributes:
        weights_intact: Whether the step was not applied, to no weight at all.
        passed_over: Steps that were not applied, this one included.
    """

    def __init__(self, *, weights_intact: bool, passed_over: int = 1) -> None:
        super().__init__()
        self.weights_intact, self.passed_over = weights_intact, passed_over


class FiniteUpdates:
    """Counts steps on a device until the first that is not finite.

    Its tensors keep their places in memory, so that what a CUDA graph does to them counts.

    Args:
        device: Where losses and gradients are.

    Attributes:
        found_inf: [] float32; 0, and 1 from the first fault on. PyTorch's fused optimizers take it
            and then change nothing (`torch.optim.Optimizer.found_inf`).
    """

    def __init__(self, device: torch.device) -> None:
        self.found_inf = torch.zeros((), device=device)
        self._one = torch.ones((), device=device)
        self._partial = torch.zeros((), device=device)
        self._applied = torch.zeros((), device=device)
        self._begun = 0

    def require(self, value: Tensor) -> None:
        """Take a loss or a norm into account."""
        torch.maximum(self.found_inf, (~torch.isfinite(value)).float(), out=self.found_inf)

    def require_all(self, gradient: Tensor) -> None:
        """Take every number of a gradient into account, in one kernel; `found_inf` is changed."""
        torch._amp_foreach_non_finite_check_and_unscale_([gradient], self.found_inf, self._one)

    def begin_to_step(self) -> Tensor:
        """What `stepped` has to be given, of a step that is found out while it is applied."""
        return self.found_inf.clone()

    def stepped(self, found_before: Tensor | None = None) -> None:
        """Note that an optimizer step was done.

        Args:
            found_before: From `begin_to_step`; None where all was known before any weight changed.
        """
        if found_before is not None:
            torch.maximum(self._partial, self.found_inf - found_before, out=self._partial)
        self.note_applied()
        self.count_begun()

    def note_applied(self) -> None:
        """Note on the device whether a step is applied: the part of `stepped` to be recorded."""
        self._applied.add_(1 - self.found_inf)

    def count_begun(self) -> None:
        """Count a step: the part of `stepped` that is the host's."""
        self._begun += 1

    def require_applied(self) -> None:
        """Wait for the device, and make sure that all steps since the last look were applied.

        Raises:
            NonFiniteError: One was not, nor were those after it.
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
    """Whether tensors hold no NaN and nothing infinite; waits for the device once."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel() and tensor.is_floating_point():
            by_device.setdefault(tensor.device, []).append(tensor.detach())
    largest = [
        torch.stack([norm.float() for norm in torch._foreach_norm(members, float("inf"))])
        for members in by_device.values()
    ]
    return all(bool(torch.isfinite(found).all()) for found in largest)
