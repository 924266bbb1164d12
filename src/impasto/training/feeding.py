"""Batches on their way to a GPU while the one before is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from impasto.data.dataset import UpdateBatches
from impasto.data.records import Batch
from impasto.diffusion.transfer import sent
from impasto.training.offload import new_stream

Feed = Callable[[Iterator[UpdateBatches]], Iterator[UpdateBatches]]


def feed_for(device: torch.device) -> Feed:
    """What takes batches to a device; a processor has them already."""
    return Feeder(device) if device.type == "cuda" else iter


class Feeder:
    """Copies batches to a GPU on a stream of its own, each while the one before is computed.

    Args:
        device: Where to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = new_stream(device)

    def __call__(self, batches: Iterator[UpdateBatches]) -> Iterator[UpdateBatches]:
        """The same batches, on the device when they come."""
        waiting: UpdateBatches | None = None
        for update, batch in batches:
            coming = update, self._begun(batch)
            if waiting is not None:
                yield waiting[0], self._arrived(waiting[1])
            waiting = coming
        if waiting is not None:
            yield waiting[0], self._arrived(waiting[1])

    def _begun(self, batch: Batch) -> Batch:
        with torch.cuda.stream(self._stream):
            return replace(
                batch,
                latents=sent(batch.latents, self._device),
                weights=sent(batch.weights, self._device),
                mask=None if batch.mask is None else sent(batch.mask, self._device),
            )

    def _arrived(self, batch: Batch) -> Batch:
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in (batch.latents, batch.weights, batch.mask):
            if tensor is not None:
                tensor.record_stream(current)
        return batch
