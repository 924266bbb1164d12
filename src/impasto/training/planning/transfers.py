"""What streamed weights cost: how much goes over PCIe in a step, and how long that takes."""

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
        ram_bytes: Of weights that wait in pinned RAM.
        to_gpu_bytes: Copied to the GPU, in all passes of a step together.
        from_gpu_bytes: Copied back, stepped.
        seconds: About how long the longer of the two ways takes.
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
    """What a step copies, with the optimizer's state where that is in RAM too.

    None where weights are not streamed.

    A forward pass brings each block, the backward pass again, and once more where the norm of the
    gradient is measured by a separate backward pass.

    Args:
        config: The settings.
        trainable: What learns; its tensors may be without values.
        device: Where it computes.
        rate: Gives bytes per second from RAM to a device; None measures it.
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
    """Whether a step goes backward once for the gradient's norm and once more to change weights.

    Where weights are stepped within the backward pass and the norm is needed before it: to clip,
    or to see whether a gradient overflows fp16 (`OptimizerUpdate`).
    """
    training = config.training
    if training.optimizer_in_backward == "off":
        return False
    limits = training.max_grad_norm > 0 and training.optimizer_in_backward == "exact"
    return limits or computed_kind(config) == "fp16"


def copy_rate(device: torch.device) -> float:
    """Bytes per second from pinned RAM to a device, measured with copies of 64 MiB.

    Raises:
        OutOfMemoryError: The system pins no more RAM.
    """
    on_gpu, copies = device.type == "cuda", build_copies(device)
    source = pinned_bytes(_SAMPLE, "training.stream_weights", pinned=on_gpu)
    target = torch.empty(_SAMPLE, dtype=torch.uint8, device=device)

    def copy() -> None:
        copies.wait(copies.load(target, source, []))
        if on_gpu:
            torch.cuda.synchronize(device)

    return _SAMPLE / least_seconds(copy)
