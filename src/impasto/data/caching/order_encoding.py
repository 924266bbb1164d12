"""Encoding images in processes that make the VAE themselves; what is made of them comes back."""

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
    """What was made of an order.

    Attributes:
        moments: Key -> mean and logvar, [4, H/8, W/8] each, as they are stored.
        faults: What could not be encoded.
        mask: Weights, uint8 [H/8, W/8], or None.
        remade: Whether float32 had to be taken.
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
        source: What latents are named by: an encoder that makes others is refused.
        uses_gpu: Whether it computes on a GPU.
        threads: Threads that the CPU computes with.
        prepare: Renders them.
    """

    recipe: Callable[[], MomentsEncoder]
    source: str
    uses_gpu: bool
    threads: int
    prepare: RenderOrders = field(default_factory=RenderOrders)

    def open(
        self,
    ) -> Callable[[Sequence[Order], Sequence[Rendered | Failure]], list[Encoded | Failure]]:
        """Make the encoder of orders in this process.

        Raises:
            ConfigError: It is not the one that latents are named by.
            ModelError: Its files are not there.
        """
        torch.set_num_threads(self.threads)
        encoder = self.recipe()
        if encoder.source != self.source:
            raise ConfigError(
                "The VAE that a machine of the Ray cluster has read makes other latents than that "
                "of the machine that asks: the model's files differ, or its GPU computes float32 "
                "otherwise. Give all machines the same files; set training.tf32 to false, or take "
                "one generation of GPUs."
            )
        return _OrderEncoder(encoder)


class _OrderEncoder:
    """Encodes what was rendered, in the batches that `DeviceEncoder` makes."""

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
    """Have orders encoded by other processes, and hand on what comes back, in their order.

    This process alone writes: each latent is in one shard, whatever was encoded twice because a
    worker ended, and shards are as they would be without other machines.

    Args:
        actors: Those processes.
        stage: What they do.
        batches: The orders, of one bucket each.
        writer: Is given moments and masks.
        failures: Are given what cannot be encoded.
        workers: Batches that are rendered at once.
        advance: Is told how many orders are done.

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
    """The stage that encodes as an encoder does.

    Raises:
        ConfigError: Nothing says how another process makes it.
    """
    if encoder.recipe is None:
        raise ConfigError(
            "dataset.executor is ray, but this VAE exists in memory only, so that no other process "
            "can make it. Set dataset.executor to local."
        )
    return EncodeOrders(
        encoder.recipe, encoder.source, encoder.device_type == "cuda", torch.get_num_threads()
    )
