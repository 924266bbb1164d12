"""The RAM of tensors that a run on a GPU offloads from VRAM."""

from __future__ import annotations

from collections.abc import Sequence

from impasto.config.run import RunConfig
from impasto.models.trainable import Trainable, recomputed_blocks
from impasto.models.writing.saving import DTYPES
from impasto.training.planning.memory_facts import numel_of, optimizer_bytes, shapes_of


def ram_beside_gpu(config: RunConfig, trainable: Trainable) -> dict[str, int]:
    """Return the name of each offloaded part -> its bytes in RAM; parts of 0 bytes are left out.

    PyTorch pins RAM in powers of two (ATen/core/CachingHostAllocator.h): optimizer states, which
    are pinned tensor by tensor, and copies of weights take more than their values. Streamed weights
    share large allocations. The state of a paged optimizer is moved by CUDA, and not counted.

    Args:
        config: The settings of a run on a GPU.
        trainable: The trainable networks; their tensors may be without values.
    """
    training, found = config.training, {}
    wide = DTYPES[training.weight_dtype].itemsize
    shapes = shapes_of(trainable)
    streamed = 0
    if training.stream_weights:
        streamed = wide * sum(map(numel_of, recomputed_blocks(trainable.unet)))
        found["streamed weights"] = streamed
    if training.offload_optimizer:
        found["optimizer state"] = sum(
            optimizer_bytes(config, [shape]) * _rounded([shape]) // shape.numel()
            for shape in shapes
        )
    if training.averages and training.ema_on_cpu:
        learning = sum(shape.numel() for shape in shapes)
        on_gpu = 0 if training.stream_weights else wide * _rounded(shapes)
        # the weights are saved in RAM while the average replaces them for validation and previews
        kept = wide * learning if training.ema_decay is not None else 0
        found["average"] = training.averages * (4 * learning + on_gpu) + kept
    return {name: size for name, size in found.items() if size}


def _rounded(shapes: Sequence[Sequence[int]]) -> int:
    """Return the total element count of tensors, each rounded up to a power of two."""
    total = 0
    for shape in shapes:
        numel = 1
        for side in shape:
            numel *= side
        total += 1 << max(0, numel - 1).bit_length()
    return total
