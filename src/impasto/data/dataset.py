"""From cached latents to batches, read one micro-batch ahead of the training step."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from impasto.data.latent_cache import CachedPlan, LatentCache
from impasto.data.records import Batch
from impasto.data.sampler import EpochSampler, MicroBatch, Update
from impasto.diffusion.draws import Draws


@dataclass(frozen=True, slots=True)
class LoadedMoments:
    """What the loading thread hands over; arithmetic on it is left to the training thread."""

    micro_batch: MicroBatch
    draws: Draws
    mean: Tensor
    logvar: Tensor
    noise: Tensor


@dataclass(frozen=True)
class TrainingData:
    """Everything that a batch is made from.

    Attributes:
        plan: The pictures and the keys of their latents.
        cache: Where the moments are.
        scaling_factor: What unscaled latents are multiplied by; 0.18215 for SD 1 and 2.
        caption_dropout_rate: Chance in [0, 1] that a sample's caption becomes empty.
        seed: The run's seed.
    """

    plan: CachedPlan
    cache: LatentCache
    scaling_factor: float
    caption_dropout_rate: float
    seed: int

    def load(self, micro_batch: MicroBatch, step: int, update_size: int) -> LoadedMoments:
        """Read the moments and draw the numbers; runs in the loading thread."""
        draws = Draws(self.seed, step, micro_batch.positions, update_size)
        mean, logvar = self.cache.read([self.plan.keys[i] for i in micro_batch.indices])
        noise = draws.normal(tuple(mean.shape[1:]), "posterior")
        return LoadedMoments(micro_batch, draws, mean, logvar, noise)

    def batch(self, loaded: LoadedMoments) -> Batch:
        """Draw latents from the moments, and put the captions beside."""
        weight = 0.0 if loaded.micro_batch.is_padding else 1.0
        return Batch(
            sample_posterior(loaded.mean, loaded.logvar, loaded.noise) * self.scaling_factor,
            self._captions(loaded.micro_batch, loaded.draws),
            torch.full((len(loaded.mean),), weight),
            loaded.draws,
        )

    def _captions(self, micro_batch: MicroBatch, draws: Draws) -> tuple[str, ...]:
        texts = [self.plan.images[i].record.text for i in micro_batch.indices]
        if self.caption_dropout_rate == 0:
            return tuple(texts)
        kept = (draws.uniform("caption_dropout") >= self.caption_dropout_rate).tolist()
        return tuple(text if keep else "" for text, keep in zip(texts, kept, strict=True))


def sample_posterior(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """Mean + exp(logvar / 2) * noise in float32, unscaled.

    The bounds of `logvar` are those of diffusers' DiagonalGaussianDistribution.
    """
    return mean.float() + torch.exp(0.5 * logvar.float().clamp(-30, 20)) * noise


def iterate_updates(
    data: TrainingData, sampler: EpochSampler, first_step: int, last_step: int, rank: int
) -> Iterator[tuple[Update, Iterator[Batch]]]:
    """Yield the updates in [first_step, last_step), each with its batches for this process.

    A thread prepares the next batch while the current one trains.
    """
    with ThreadPoolExecutor(1) as pool:
        updates = (sampler.update(step, rank) for step in range(first_step, last_step))
        queue = (
            (update, micro_batch) for update in updates for micro_batch in update.micro_batches
        )
        prepared = _one_ahead(data, queue, pool)
        for update, batch in prepared:
            rest = len(update.micro_batches) - 1
            yield update, _with_rest(batch, prepared, rest)


def _with_rest(
    first: Batch, prepared: Iterator[tuple[Update, Batch]], rest: int
) -> Iterator[Batch]:
    yield first
    for _ in range(rest):
        yield next(prepared)[1]


def _one_ahead(
    data: TrainingData, queue: Iterator[tuple[Update, MicroBatch]], pool: ThreadPoolExecutor
) -> Iterator[tuple[Update, Batch]]:
    waiting = None
    for update, micro_batch in queue:
        future = pool.submit(data.load, micro_batch, update.step, update.size)
        if waiting is not None:
            yield waiting[0], data.batch(waiting[1].result())
        waiting = (update, future)
    if waiting is not None:
        yield waiting[0], data.batch(waiting[1].result())
