"""Encodes images in other processes, which make the VAE themselves, and collects the results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from impasto.data.caching.device_encoding import Failures, Order, tasks_of
from impasto.data.caching.encoding import Encode, MomentsEncoder
from impasto.data.caching.latent_cache import STORED_DTYPE
from impasto.data.caching.latent_writing import ShardWriter
from impasto.data.engines.engine import Actors
from impasto.data.engines.stages import Failure, chunks
from impasto.data.pixels.rendering import Render, Rendered
from impasto.errors import ConfigError

Moments = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Encoded:
    """The result of an order.

    Attributes:
        moments: Key -> mean and logvar, [4, H/8, W/8] each, in the stored dtype.
        faults: Failures of the image or its mirror image.
        mask: Loss weights, uint8 [H/8, W/8]; None if not ordered.
        remade: Whether the image was encoded again in float32.
    """

    moments: dict[str, Moments]
    faults: tuple[Failure, ...]
    mask: np.ndarray | None
    remade: bool


class RenderOrders:
    """Stage: orders -> `Rendered`."""

    def __call__(self, batch: Sequence[Order]) -> list[Rendered | Failure]:
        """Render the images of a batch of orders."""
        return Render()([order.image for order in batch])


@dataclass(frozen=True)
class EncodeOrders:
    """A stage with a model: orders -> `Encoded`.

    Attributes:
        recipe: Makes the VAE's encoder.
        source: The `MomentsEncoder.source` that the encoder must have; any other is refused.
        uses_gpu: Whether it computes on a GPU.
        threads: Number of threads for computing on the CPU.
        prepare: The stage before it, which renders the images.
    """

    recipe: Callable[[], MomentsEncoder]
    source: str
    uses_gpu: bool
    threads: int
    prepare: RenderOrders = field(default_factory=RenderOrders)

    def open(
        self,
    ) -> Callable[[Sequence[Order], Sequence[Rendered | Failure]], list[Encoded | Failure]]:
        """Make the encoder in this process, and return the function that encodes orders with it.

        Raises:
            ConfigError: The encoder's `source` is not the expected one.
            ModelError: The model's files are missing.
        """
        torch.set_num_threads(self.threads)
        encoder = self.recipe()
        if encoder.source != self.source:
            raise ConfigError(
                "A machine of the Ray cluster makes other latents than the machine that asks, with "
                "the same VAE settings: the model's files differ, or its GPU computes float32 "
                "differently. Give all machines the same files; set training.tf32 to false, or use "
                "GPUs of one generation."
            )
        return _OrderEncoder(encoder)


class _OrderEncoder:
    """Encodes rendered images in the same batches as `DeviceEncoder`."""

    def __init__(self, encoder: MomentsEncoder) -> None:
        self._encode, self._batch_size = Encode(encoder), encoder.batch_size

    def __call__(
        self, orders: Sequence[Order], rendered: Sequence[Rendered | Failure]
    ) -> list[Encoded | Failure]:
        pairs = list(zip(orders, rendered, strict=True))
        good = [(order, made) for order, made in pairs if not isinstance(made, Failure)]
        tasks = list(tasks_of(good, lambda _: False))
        moments: dict[str, Moments] = {}
        faults: dict[str, Failure] = {}
        remade: set[str] = set()
        for part in chunks(tasks, self._batch_size):
            begun = self._encode.begin([task.pixels for task in part])
            for task, outcome in zip(part, self._encode.finish(begun), strict=True):
                if isinstance(outcome, Failure):
                    faults[task.key] = outcome
                else:
                    mean, logvar = (tensor.to(STORED_DTYPE).numpy() for tensor in outcome)
                    moments[task.key] = mean, logvar
            remade |= {part[index].key for index in begun.remade}

        def of(order: Order, made: Rendered) -> Encoded:
            keys = [key for key in (order.missing.plain, order.missing.flipped) if key]
            return Encoded(
                {key: moments[key] for key in keys if key in moments},
                tuple(faults[key] for key in keys if key in faults),
                made.mask if order.missing.mask else None,
                bool(remade & set(keys)),
            )

        return [made if isinstance(made, Failure) else of(order, made) for order, made in pairs]


def encode_by_actors(
    actors: Actors,
    stage: EncodeOrders,
    batches: Iterable[Sequence[Order]],
    writer: ShardWriter,
    failures: Failures,
    *,
    workers: int | None,
    advance: Callable[[int], None],
) -> set[Path]:
    """Encode orders in other processes, and write the results in their order.

    Only this process writes: each latent is in one shard even if a worker ended and it was encoded
    twice, and the shards are the same as without other machines.

    Args:
        actors: The other processes.
        stage: The stage they run.
        batches: The orders, of one bucket each.
        writer: Receives moments and masks.
        failures: Receives the images that cannot be encoded.
        workers: Number of batches rendered concurrently; None leaves it to the actors.
        advance: Called with the number of orders completed.

    Returns:
        The images that were encoded again in float32.
    """
    remade: set[Path] = set()
    for outcomes in actors.run(stage, batches, workers=workers):
        for order, outcome in outcomes:
            if isinstance(outcome, Failure):
                failures.add(order.image, outcome)
                continue
            bucket = order.image.bucket
            if outcome.mask is not None:
                mask = torch.from_numpy(np.array(outcome.mask))
                writer.add_mask(bucket, order.missing.mask, mask)
            for key, moments in outcome.moments.items():
                mean, logvar = (torch.from_numpy(np.array(array)) for array in moments)
                writer.add(bucket, key, mean, logvar)
            for fault in outcome.faults:
                failures.add(order.image, fault)
            if outcome.remade:
                remade.add(order.image.record.path)
        advance(len(outcomes))
    return remade


def stage_of(encoder: MomentsEncoder) -> EncodeOrders:
    """Return the stage that rebuilds an encoder in other processes and encodes with it.

    Raises:
        ConfigError: The encoder has no recipe, so another process cannot make it.
    """
    if encoder.recipe is None:
        raise ConfigError(
            "dataset.executor is ray, but this VAE exists in memory only, so no other process can "
            "load it. Set dataset.executor to local."
        )
    return EncodeOrders(
        encoder.recipe, encoder.source, encoder.device_type == "cuda", torch.get_num_threads()
    )
