"""What a run on a GPU keeps in RAM, so that it takes no VRAM."""

from __future__ import annotations

from impasto.config.run import RunConfig
from impasto.models.saving import DTYPES
from impasto.models.trainable import Trainable, recomputed_blocks
from impasto.training.planning.memory_facts import (
    numel_of,
    offloads_state,
    optimizer_bytes,
    shapes_of,
)


def ram_beside_gpu(config: RunConfig, trainable: Trainable) -> dict[str, int]:
    """Bytes in RAM by what takes them; what takes none is left out.

    Args:
        config: The settings of a run on a GPU.
        trainable: What learns; its tensors may be without values.
    """
    training, found = config.training, {}
    if training.stream_weights:
        blocks = recomputed_blocks(trainable.unet)
        wide = DTYPES[training.weight_dtype].itemsize
        found["streamed weights"] = wide * sum(map(numel_of, blocks))
    if offloads_state(config):
        found["optimizer state"] = optimizer_bytes(config, shapes_of(trainable))
    if training.ema_decay is not None and training.ema_on_cpu:
        found["average"] = 4 * sum(part.count() for part in trainable.parts)
    return {name: size for name, size in found.items() if size}
