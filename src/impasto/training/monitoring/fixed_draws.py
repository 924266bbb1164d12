"""Images measured at the same noise and timesteps each time, so that models can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from impasto.data.caching.latent_cache import CachedPlan, LatentCache
from impasto.data.engines.stages import chunks
from impasto.data.loading.dataset import sampler_groups
from impasto.data.loading.sampler import Group
from impasto.datasets.fixed_draws import NoiseDraws
from impasto.diffusion.loss import per_sample, squared
from impasto.diffusion.randomness import PerSampleRandomness
from impasto.diffusion.timesteps import fixed_timesteps
from impasto.models.text.text_conditioner import TextConditioner
from impasto.progress import Advance
from impasto.training.step import StepRecipe

VALIDATION_SEED = 20221011  # the same for every run, so that runs can be compared


@dataclass(frozen=True)
class FixedDraws:
    """Images with their draws of noise and timesteps, the same whenever they are measured.

    Attributes:
        plan: The images.
        cache: Where their moments are; the posterior's mean is used.
        scaling_factor: Scaled latents = this times the VAE's.
        draws: How many (noise, timestep) pairs each image is measured at, and how they lie.
        batch_size: How many images of a group go through the U-Net together.
        strata: Where draws are spread: so many images in a row cover the schedule together. Sets
            whose losses are compared have the same, and so the same noise levels.
    """

    plan: CachedPlan
    cache: LatentCache
    scaling_factor: float
    draws: NoiseDraws
    batch_size: Callable[[Group], int]
    strata: int = 1

    @torch.no_grad()
    def measure(
        self,
        unet: Any,
        conditioner: TextConditioner,
        recipe: StepRecipe,
        accelerator: Accelerator | None = None,
        advance: Advance = lambda _: None,
    ) -> Tensor:
        """[images]: the plain squared error of each, the mean over its draws; float64 on the CPU.

        Args:
            unet: In eval mode.
            conditioner: Without gradients.
            recipe: Its schedule and prediction are used; no loss weights or dropout.
            accelerator: Whose processes take a share each and get the whole; None is one process.
                All of them make as many forward passes, as a model that is sharded needs.
            advance: Is told of predictions: those of an image in one of its draws are one.
        """
        device = recipe.schedule.alphas_cumprod.device
        sums = torch.zeros(len(self.plan.images), device=device)
        for group, counts in self._shares(accelerator):
            losses = self._losses(group, unet, conditioner, recipe, advance)
            if counts:
                sums[torch.tensor(group, device=device)] = losses
        if accelerator is not None and accelerator.num_processes > 1:
            sums = accelerator.reduce(sums, "sum")  # of an image all but one of them have 0
        return sums.cpu().double() / self.draws.per_image

    def predictions(self, accelerator: Accelerator | None = None) -> int:
        """How many predictions this process makes when it measures."""
        shares = self._shares(accelerator)
        return sum(len(group) for group, _ in shares) * self.draws.per_image

    def timesteps(self, draw: int, images: Sequence[int], total: int) -> Tensor:
        """[images]: their timesteps in the draw of this number, of a schedule with `total`.

        Spread draws are stratified: one in each of as many equal parts of the schedule as an image
        has draws, and where in it differs from image to image, so that they cover the schedule
        evenly (a shift for each sample, as in Kingma et al. 2021, arXiv:2107.00630, appendix I.1).
        Each `strata` images in a row lie evenly between one another, and so do those left over.
        """
        if not self.draws.are_spread:
            return fixed_timesteps(self.draws.per_image, total)[draw].expand(len(images))
        number = len(self.plan.images)
        whole = number - number % self.strata
        shifts = [
            (i % self.strata + 0.5) / self.strata
            if i < whole
            else (i - whole + 0.5) / (number - whole)
            for i in images
        ]
        positions = draw + torch.tensor(shifts, dtype=torch.float64)
        return (positions / self.draws.per_image * total).long()

    def _losses(
        self,
        group: Sequence[int],
        unet: Any,
        conditioner: TextConditioner,
        recipe: StepRecipe,
        advance: Advance,
    ) -> Tensor:
        """[images]: sums over all draws of their losses, of images that go through together."""
        schedule = recipe.schedule
        device = schedule.alphas_cumprod.device
        mean, _ = self.cache.read([self.plan.keys[i].plain for i in group])
        x_0 = mean.to(device).float() * self.scaling_factor
        images = [self.plan.images[i] for i in group]
        captions = [image.record.fixed_caption for image in images]
        conditioning = conditioner(captions, [image.geometry() for image in images])
        sums = torch.zeros(len(x_0), device=device)
        for draw in range(self.draws.per_image):
            t = self.timesteps(draw, group, schedule.num_timesteps)
            number = draw if self.draws.are_spread else int(t[0])
            randomness = PerSampleRandomness(
                VALIDATION_SEED, number, tuple(group), len(self.plan.images)
            )
            noise = randomness.normal(tuple(x_0.shape[1:]), self.draws.purpose).to(device)
            t = t.to(device)
            output = unet(schedule.add_noise(x_0, noise, t), t, **conditioning.arguments).sample
            target = recipe.prediction.target(x_0, noise, t, schedule)
            sums += per_sample(squared(output, target, t, schedule))
            advance(len(group))
        return sums

    def _shares(self, accelerator: Accelerator | None) -> Iterator[tuple[Sequence[int], bool]]:
        """The groups of this process, each with whether it counts; the last may fill up only."""
        groups = list(self._groups())
        rank, number = 0, 1
        if accelerator is not None:
            rank, number = accelerator.process_index, accelerator.num_processes
        for first in range(0, len(groups), number):
            index = first + rank
            yield groups[min(index, len(groups) - 1)], index < len(groups)

    def _groups(self) -> Iterator[Sequence[int]]:
        """Places of images that can go through the U-Net together."""

        def bucket_of(i: int) -> tuple[int, int]:
            return self.plan.images[i].bucket.hw

        order = sorted(range(len(self.plan.images)), key=bucket_of)
        groups = sampler_groups(self.plan.images)
        for _, same in groupby(order, key=bucket_of):
            members = list(same)
            size = min(self.batch_size(groups[i]) for i in members)
            yield from chunks(members, size)
