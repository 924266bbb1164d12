"""Prefetches batches to a GPU while the previous batch is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from impasto.data.loading.sampler import OptimizerStep
from impasto.data.loading.step_batches import StepBatch
from impasto.data.records import Batch
from impasto.diffusion.transfer import to_device
from impasto.models.text.text_conditioner import TextConditioner
from impasto.training.optim.offload import new_stream

Prefetch = Callable[[Iterator[StepBatch]], Iterator[StepBatch]]


@dataclass(frozen=True)
class _PendingBatch:
    """A batch that is being copied to the device.

    Attributes:
        batch: The batch, with its tensors on the device.
        ready: The event after the last copy; None if there is no need to wait.
    """

    batch: Batch
    ready: torch.cuda.Event | None


def build_prefetcher(device: torch.device, conditioner: TextConditioner | None = None) -> Prefetch:
    """Return a function that prefetches batches to a device; on a CPU it passes them on unchanged.

    Args:
        device: The device that trains.
        conditioner: Encodes captions ahead; None leaves that to the training step, which it must
            be left to if gradients flow into the conditioner.
    """
    return Prefetcher(device, conditioner) if device.type == "cuda" else iter


class Prefetcher:
    """Copies each batch to a GPU on a separate stream, while the previous batch is trained on.

    Captions are encoded on that stream too, so that a frozen text encoder runs in parallel to the
    U-Net. The conditioner's cache belongs to that stream and must not be used from another one.

    Args:
        device: The device to copy to.
        conditioner: Encodes captions; None leaves that to the training step.
    """

    def __init__(self, device: torch.device, conditioner: TextConditioner | None = None) -> None:
        self._device, self._conditioner = device, conditioner
        self._stream = new_stream(device) if device.type == "cuda" else None

    def __call__(self, batches: Iterator[StepBatch]) -> Iterator[StepBatch]:
        """Yield the batches, each with its copy to the device complete for the current stream."""
        waiting: tuple[OptimizerStep, _PendingBatch] | None = None
        if self._stream is not None:  # the encoder's weights may still be being copied
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        for optimizer_step, batch in batches:
            coming = optimizer_step, self._begin(batch)
            if waiting is not None:
                yield waiting[0], self._arrived(waiting[1])
            waiting = coming
        if waiting is not None:
            yield waiting[0], self._arrived(waiting[1])

    def _begin(self, batch: Batch) -> _PendingBatch:
        with torch.cuda.stream(self._stream):
            begun = replace(
                batch,
                latents=to_device(batch.latents, self._device),
                weights=to_device(batch.weights, self._device),
                randomness=batch.randomness.to_device(
                    lambda numbers: to_device(numbers, self._device)
                ),
                mask=None if batch.mask is None else to_device(batch.mask, self._device),
                conditioning=None
                if self._conditioner is None
                else self._conditioner(batch.captions, batch.geometry),
            )
        return _PendingBatch(begun, None if self._stream is None else self._stream.record_event())

    def _arrived(self, coming: _PendingBatch) -> Batch:
        """Make the current stream wait for this batch, but not for the copy of the next one."""
        batch = coming.batch
        if coming.ready is None:
            return batch
        current = torch.cuda.current_stream(self._device)
        current.wait_event(coming.ready)
        drawn = batch.randomness.ahead.values()
        for tensor in (batch.latents, batch.weights, batch.mask, *drawn):
            if tensor is not None:
                tensor.record_stream(current)
        if batch.conditioning is not None:
            batch.conditioning.record_stream(current)
        return batch
