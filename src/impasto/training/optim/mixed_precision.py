"""Computing in half precision, with weights in float32 or 16 bits, and a scaled loss for float16.

Micikevicius et al. 2018 (arXiv:1710.03740). The scaler is PyTorch's; its state is part of a run's.
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
MIN_SCALE = 2.0**-8  # below, every gradient overflows, whatever the scale

COMPUTED = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What products are computed in, by `training.mixed_precision`."""


def precision_text(kind: MixedPrecision) -> str:
    """The name of a precision in sentences."""
    return "float32" if kind == "no" else kind


def autocast_dtype(kind: MixedPrecision) -> torch.dtype | None:
    """The 16-bit type of a precision; None for float32."""
    return None if kind == "no" else COMPUTED[kind]


class Precision:
    """The number formats that a run computes in.

    Args:
        kind: `no`, `fp16` or `bf16`.
        device: Where.
        of_shards: Whether each process holds a share of each gradient, so that norms and overflows
            have to be found together.
        caches_casts: Whether a forward pass keeps the copies of weights that autocast makes.
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
        """Compute in half precision where that is safe."""
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(
            self._device.type, dtype=self._dtype, cache_enabled=self._caches_casts
        )

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss times the scale, to call `backward` on."""
        return loss if self._scaler is None else self._scaler.scale(loss)

    def clip(
        self, optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], limit: float
    ) -> Tensor | None:
        """Bring gradients to their true size, and down to `limit`; the norm before, if measured.

        Without a limit it is measured too, since it tells whether the gradient is finite, unless a
        scaler looks at the gradients.
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
        """The factor that losses are multiplied by."""
        return 1.0 if self._scaler is None else self._scaler.get_scale()

    def step(self, optimizer: torch.optim.Optimizer, at_fault: Tensor | None = None) -> None:
        """Apply the gradient, unless it has overflown; then lower the scale.

        Args:
            optimizer: Has the gradients.
            at_fault: [] above 0 where the step is skipped for another reason than the scale,
                which stays as it is then; looked at on the device.
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
        """The scaler's scale and its count of steps since the last overflow, on the device."""
        scaler = self._scaler
        found = (getattr(scaler, "_scale", None), getattr(scaler, "_growth_tracker", None))
        return [tensor for tensor in found if tensor is not None]

    def stepped(self, *, overflown: bool) -> None:
        """Adjust the scale after a step that was applied, or skipped, elsewhere."""
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
        """Make sure that steps are still applied; waits for the device.

        Raises:
            NonFiniteLossError: The gradient overflows at any scale.
        """
        if self._scaler is not None and self._scaler.get_scale() < MIN_SCALE:
            raise NonFiniteLossError(
                "In float16 the gradient overflows in every step, whatever the loss is scaled "
                "by. Set training.mixed_precision to bf16 or no, or lower optimizer.lr."
            )

    def state(self) -> dict[str, float]:
        """The state of the gradient scaler; empty if there is none."""
        if self._scaler is None:
            return {}
        found = self._scaler.state_dict()
        return {"scale": float(found["scale"]), "growth_tracker": float(found["_growth_tracker"])}

    def restore(self, state: Mapping[str, float]) -> None:
        """Put a saved scaler's state back."""
        if self._scaler is not None and state:
            full = self._scaler.state_dict()
            full["scale"] = state["scale"]
            full["_growth_tracker"] = int(state["growth_tracker"])
            self._scaler.load_state_dict(full)


class AllRanksGradScaler(torch.amp.GradScaler):
    """Scales losses of a model that is shared out: all processes find an overflow in any share.

    PyTorch's own `ShardedGradScaler` (2.13) does not go with fused optimizers.
    """

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring the gradients of the shares to their true size, and agree on overflows."""
        super().unscale_(optimizer)
        for found in self._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values():
            # no sum: a fused optimizer passes over a step at 1 alone
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
