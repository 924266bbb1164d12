"""Mixed precision: autocast to 16 bits, with loss scaling for float16.

Weights are in float32 or 16 bits. Micikevicius et al. 2018 (arXiv:1710.03740). The gradient scaler
is PyTorch's; its state is saved with a run's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from impasto.errors import NonFiniteLossError
from impasto.training.optim.chunked import ChunkedOptimizer

MixedPrecision = Literal["no", "fp16", "bf16"]
MIN_SCALE = 2.0**-8  # a lower scale means that every gradient overflows, at any scale

COMPUTED = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Value of `training.mixed_precision` -> the dtype that matrix products are computed in."""


def precision_text(kind: MixedPrecision) -> str:
    """Return the name of a precision for messages: "float32" for "no", otherwise the kind."""
    return "float32" if kind == "no" else kind


def autocast_dtype(kind: MixedPrecision) -> torch.dtype | None:
    """Return the 16-bit dtype of a precision; None for float32."""
    return None if kind == "no" else COMPUTED[kind]


class Precision:
    """Autocast, loss scaling and clipping of a run.

    Args:
        kind: `no`, `fp16` or `bf16`.
        device: The device that the run computes on.
        of_shards: Whether each process holds a shard of each gradient, so that norms and overflows
            are computed over all processes.
        caches_casts: Whether autocast caches the weights that it casts during a forward pass.
    """

    def __init__(
        self,
        kind: MixedPrecision,
        device: torch.device,
        *,
        of_shards: bool = False,
        caches_casts: bool = True,
    ) -> None:
        self._caches_casts = caches_casts
        self._dtype = autocast_dtype(kind)
        self._device, self._is_sharded = device, of_shards
        scaler = AllRanksGradScaler if of_shards else torch.amp.GradScaler
        self._scaler = scaler(device.type) if self._dtype is torch.float16 else None

    @property
    def device(self) -> torch.device:
        """The device that the run computes on."""
        return self._device

    @property
    def scales(self) -> bool:
        """Whether losses are scaled, and steps whose gradient overflows are skipped."""
        return self._scaler is not None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context that autocasts operations to 16 bits; it has no effect in float32."""
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(
            self._device.type, dtype=self._dtype, cache_enabled=self._caches_casts
        )

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the loss times the scale, to call `backward` on; the loss itself if unscaled."""
        return loss if self._scaler is None else self._scaler.scale(loss)

    def clip(
        self, optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], limit: float
    ) -> Tensor | None:
        """Unscale the gradients, clip them to `limit`, and return the norm before clipping.

        Return None if the norm is not measured: where `limit` is 0 and a scaler checks the
        gradients. Without a scaler it is always measured, since it shows whether the gradient is
        finite.
        """
        measures = limit > 0 or self._scaler is None
        if isinstance(optimizer, ChunkedOptimizer):
            return optimizer.clip(limit, self.scale()) if measures else None
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        if not measures:
            return None
        learning = [p for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in learning]).detach()  # type: ignore[misc]
        if self._is_sharded:
            squared = norm.square()
            torch.distributed.all_reduce(squared)
            norm = squared.sqrt()
        if limit > 0:
            torch.nn.utils.clip_grads_with_norm_(learning, limit, norm)
        return norm

    def scale(self) -> float:
        """Return the factor that losses are multiplied by; 1 without a scaler."""
        return 1.0 if self._scaler is None else self._scaler.get_scale()

    def step(self, optimizer: torch.optim.Optimizer, at_fault: Tensor | None = None) -> None:
        """Step the optimizer; if the gradient has overflowed, skip the step and lower the scale.

        Args:
            optimizer: The optimizer to step.
            at_fault: [] above 0 if the step is skipped for another reason than an overflow; the
                scale is then left unchanged. It is read on the device only.
        """
        if self._scaler is None:
            optimizer.step()
            return
        kept = self._scaler_tensors() if at_fault is not None else []
        before = [tensor.clone() for tensor in kept]
        self._scaler.step(optimizer)
        self._scaler.update()
        for tensor, value in zip(kept, before, strict=True):
            assert at_fault is not None  # noqa: S101 - nothing is kept otherwise
            tensor.copy_(torch.where(at_fault > 0, value, tensor))

    def _scaler_tensors(self) -> list[Tensor]:
        """Return the scaler's scale and count of steps since the last overflow, as device tensors.

        An empty list before the first scaled loss.
        """
        scaler = self._scaler
        found = (getattr(scaler, "_scale", None), getattr(scaler, "_growth_tracker", None))
        return [tensor for tensor in found if tensor is not None]

    def stepped(self, *, overflown: bool) -> None:
        """Adjust the scale after a step that the caller applied, or skipped if `overflown`."""
        scaler = self._scaler
        if scaler is None:
            return
        found = scaler.state_dict()
        kept = 0 if overflown else int(found["_growth_tracker"]) + 1
        factor = scaler.get_backoff_factor() if overflown else 1.0
        if kept == scaler.get_growth_interval():
            factor, kept = scaler.get_growth_factor(), 0
        found |= {"scale": found["scale"] * factor, "_growth_tracker": kept}
        scaler.load_state_dict(found)

    def require_living_scale(self) -> None:
        """Check that the scale has not fallen so low that no step is applied; waits for the device.

        Raises:
            NonFiniteLossError: The gradient overflows at any scale.
        """
        if self._scaler is not None and self._scaler.get_scale() < MIN_SCALE:
            raise NonFiniteLossError(
                "In float16 the gradient overflows in every step, at any loss scale. Set "
                "training.mixed_precision to bf16 or no, or lower optimizer.lr."
            )

    def state(self) -> dict[str, float]:
        """Return the scale and growth tracker of the gradient scaler; an empty dict without one."""
        if self._scaler is None:
            return {}
        found = self._scaler.state_dict()
        return {"scale": float(found["scale"]), "growth_tracker": float(found["_growth_tracker"])}

    def restore(self, state: Mapping[str, float]) -> None:
        """Restore a saved state of the scaler; do nothing without a scaler or without a state."""
        if self._scaler is not None and state:
            full = self._scaler.state_dict()
            full["scale"] = state["scale"]
            full["_growth_tracker"] = int(state["growth_tracker"])
            self._scaler.load_state_dict(full)


class AllRanksGradScaler(torch.amp.GradScaler):
    """Gradient scaler for a sharded model: an overflow in any shard is seen by all processes.

    PyTorch's own `ShardedGradScaler` (2.13) does not work with fused optimizers.
    """

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Unscale the gradients of this process's shards, and combine all processes' overflows."""
        super().unscale_(optimizer)
        for found in self._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values():
            # not a sum: a fused optimizer skips a step only if found_inf is exactly 1
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
