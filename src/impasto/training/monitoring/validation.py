"""Loss on held-out images at fixed noise and timesteps: comparable over steps and runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from impasto.data.dataset import sampler_groups
from impasto.data.latent_cache import CachedPlan, LatentCache
from impasto.data.sampler import Group
from impasto.data.stages import chunks
from impasto.diffusion.loss import per_sample, squared
from impasto.diffusion.randomness import PerSampleRandomness
from impasto.diffusion.timesteps import fixed_timesteps
from impasto.diffusion.transfer import to_device
from impasto.models.text import TextConditioner
from impasto.training.step import StepRecipe

VALIDATION_SEED = 20221011  # the same for every run, so that runs can be compared


@dataclass(frozen=True)
class ValidationLoss:
    """The mean over all held-out images, and over those of each dataset by its number."""

    mean: float
    by_dataset: Mapping[int, float]

    def as_record(self) -> dict[str, float]:
        """As a line of metrics has it; datasets, counted from 1, where there are several."""
        several = self.by_dataset if len(self.by_dataset) > 1 else {}
        parts = {f"validation_loss_{n + 1}": loss for n, loss in several.items()}
        return {"validation_loss": self.mean, **parts}


@dataclass(frozen=True)
class Validator:
    """Measures the plain squared error, without loss weights or dropout.

    Attributes:
        plan: The held-out images.
        cache: Where their moments are; the posterior's mean is used.
        scaling_factor: Scaled latents = this times the VAE's.
        timesteps: Noise levels per image, evenly spread over the schedule.
        batch_size: How many images of a group go through the U-Net together.
    """

    plan: CachedPlan
    cache: LatentCache
    scaling_factor: float
    timesteps: int
    batch_size: Callable[[Group], int]

    @torch.no_grad()
    def measure(
        self, unet: torch.nn.Module, conditioner: TextConditioner, recipe: StepRecipe
    ) -> ValidationLoss:
        """The mean over all held-out images and noise levels, and over those of each dataset."""
        was_training = unet.training
        unet.eval()
        schedule = recipe.schedule
        device = schedule.alphas_cumprod.device
        levels = fixed_timesteps(self.timesteps, schedule.num_timesteps).to(device)
        datasets = torch.tensor([i.record.subset.dataset for i in self.plan.images])
        sums = torch.zeros(int(datasets.max()) + 1, device=device)
        for group in self._groups():
            mean, _ = self.cache.read([self.plan.keys[i].plain for i in group])
            x_0 = mean.to(device).float() * self.scaling_factor
            images = [self.plan.images[i] for i in group]
            captions = [image.record.fixed_caption for image in images]
            conditioning = conditioner(captions, [image.geometry() for image in images])
            for level in levels:
                t = level.expand(len(x_0))
                randomness = PerSampleRandomness(
                    VALIDATION_SEED, int(level), tuple(group), len(self.plan.images)
                )
                noise = randomness.normal(tuple(x_0.shape[1:]), "validation").to(device)
                output = unet(schedule.add_noise(x_0, noise, t), t, **conditioning.arguments).sample
                target = recipe.prediction.target(x_0, noise, t, schedule)
                losses = per_sample(squared(output, target, t, schedule))
                sums.index_add_(0, to_device(datasets[group], device), losses)
        unet.train(was_training)
        counts = torch.bincount(datasets) * len(levels)
        sums = sums.cpu()
        means = (sums / counts).tolist()
        by_dataset = {n: mean for n, mean in enumerate(means) if counts[n] > 0}
        return ValidationLoss(float(sums.sum() / counts.sum()), by_dataset)

    def _groups(self) -> Iterator[Sequence[int]]:
        """Indices of images that can go through the U-Net together."""

        def bucket_of(i: int) -> tuple[int, int]:
            return self.plan.images[i].bucket.hw

        order = sorted(range(len(self.plan.images)), key=bucket_of)
        groups = sampler_groups(self.plan.images)
        for _, same in groupby(order, key=bucket_of):
            members = list(same)
            size = min(self.batch_size(groups[i]) for i in members)
            yield from chunks(members, size)
