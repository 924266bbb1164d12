"""The cost of streamed weights: how many bytes a step copies over PCIe, and how long that takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from impasto.config.run import RunConfig
from impasto.models.trainable import Trainable, recomputed_blocks
from impasto.models.writing.saving import DTYPES
from impasto.training.compute.precision import computed_kind, least_seconds
from impasto.training.optim.copies import build_copies
from impasto.training.optim.pinned_memory import pinned_bytes
from impasto.training.planning.memory_facts import optimizer_bytes, shapes_of

_SAMPLE = 64 << 20  # bytes that a copy is timed with


@dataclass(frozen=True)
class Transfers:
    """Copies of weights between RAM and the GPU, in one step.

    Attributes:
        ram_bytes: Bytes of weights that are kept in pinned RAM.
        to_gpu_bytes: Bytes copied to the GPU, in all passes of a step together.
        from_gpu_bytes: Bytes copied back after the optimizer step.
        seconds: Estimated seconds of the direction that takes longer; the two overlap.
    """

    ram_bytes: int
    to_gpu_bytes: int
    from_gpu_bytes: int
    seconds: float


def transfers_of(
    config: RunConfig,
    trainable: Trainable,
    device: torch.device,
    rate: Callable[[torch.device], float] | None = None,
) -> Transfers | None:
    """Return the copies of a step with streamed weights; None if weights are not streamed.

    The optimizer's state is included where it is offloaded too. The forward pass copies each block
    to the GPU, the backward pass copies it again, and a separate backward pass that measures the
    norm of the gradient once more.

    Args:
        config: The settings of the run.
        trainable: The trainable networks; their tensors may be without values.
        device: The device that the run computes on.
        rate: Returns the bytes per second from RAM to a device; None measures it.
    """
    training = config.training
    if not training.stream_weights:
        return None
    wide = DTYPES[training.weight_dtype].itemsize
    blocks = [list(block.parameters()) for block in recomputed_blocks(trainable.unet)]
    size = wide * sum(p.numel() for block in blocks for p in block)
    learning = wide * sum(
        p.numel() for block in blocks if any(q.requires_grad for q in block) for p in block
    )
    passes = 3 if has_second_backward(config) else 2
    state = optimizer_bytes(config, shapes_of(trainable)) if training.offload_optimizer else 0
    coming, going = passes * size + state, learning + state
    return Transfers(size, coming, going, max(coming, going) / (rate or copy_rate)(device))


def has_second_backward(config: RunConfig) -> bool:
    """Return whether a step runs one backward pass for the gradient norm and another to update.

    That is so where weights are stepped within the backward pass and the norm is needed before: to
    clip, or to detect a gradient that overflows fp16 (`OptimizerUpdate`).
    """
    training = config.training
    if training.optimizer_in_backward == "off":
        return False
    limits = training.max_grad_norm > 0 and training.optimizer_in_backward == "exact"
    return limits or computed_kind(config) == "fp16"


def copy_rate(device: torch.device) -> float:
    """Return the bytes per second from pinned RAM to a device, measured with copies of 64 MiB.

    Raises:
        OutOfMemoryError: The system cannot pin more RAM.
    """
    on_gpu, copies = device.type == "cuda", build_copies(device)
    source = pinned_bytes(_SAMPLE, "training.stream_weights", pinned=on_gpu)
    target = torch.empty(_SAMPLE, dtype=torch.uint8, device=device)

    def copy() -> None:
        copies.wait(copies.load(target, source, []))
        if on_gpu:
            torch.cuda.synchronize(device)

    return _SAMPLE / least_seconds(copy)
