"""Measures the loss of images at fixed noise and timesteps, so that models can be compared."""

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

VALIDATION_SEED = 20221011  # the same in every run, so that runs can be compared


@dataclass(frozen=True)
class FixedDraws:
    """Images with draws of noise and timesteps that are the same in every measurement.

    Attributes:
        plan: The images.
        cache: The cache of their latents' moments; the posterior's mean is used.
        scaling_factor: Scaled latents are the VAE's latents times this.
        draws: How many (noise, timestep) pairs each image is measured at, and how timesteps are
            chosen.
        batch_size: Returns how many images of a group are one batch of the U-Net.
        strata: Number of consecutive images that cover the schedule together, if draws are spread.
            Sets whose losses are compared have the same number, and so the same noise levels.
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
        """Return [images] unweighted squared errors, each the mean over the image's draws.

        They are float64 on the CPU.

        Args:
            unet: The network, in eval mode.
            conditioner: Encodes captions, without gradients.
            recipe: Gives the schedule and prediction type; its loss weights are not used.
            accelerator: Its processes measure a portion each, and all return the whole; None for a
                single process. All run the same number of forward passes, as a sharded model needs.
            advance: Called with the number of predictions made; one per image and draw.
        """
        device = recipe.schedule.alphas_cumprod.device
        sums = torch.zeros(len(self.plan.images), device=device)
        for group, counts in self._own_groups(accelerator):
            losses = self._losses(group, unet, conditioner, recipe, advance)
            if counts:
                sums[torch.tensor(group, device=device)] = losses
        if accelerator is not None and accelerator.num_processes > 1:
            sums = accelerator.reduce(sums, "sum")  # all processes but one have 0 for an image
        return sums.cpu().double() / self.draws.per_image

    def predictions(self, accelerator: Accelerator | None = None) -> int:
        """Return the number of predictions that this process makes in a measurement."""
        groups = self._own_groups(accelerator)
        return sum(len(group) for group, _ in groups) * self.draws.per_image

    def timesteps(self, draw: int, images: Sequence[int], total: int) -> Tensor:
        """Return [images] timesteps of images in one draw.

        Draws that are not spread use the same timesteps for all images. Spread draws are
        stratified: the schedule is divided into as many equal parts as an image has draws, with one
        draw in each part. The position within a part is shifted from image to image (as in Kingma
        et al. 2021, arXiv:2107.00630, appendix I.1): each `strata` consecutive images have evenly
        spaced shifts, and so have the images left over at the end.

        Args:
            draw: The number of the draw, from 0.
            images: Indices of the images.
            total: Timesteps of the schedule.
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
        """Return [images] losses summed over all draws, of images that are one batch."""
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

    def _own_groups(self, accelerator: Accelerator | None) -> Iterator[tuple[Sequence[int], bool]]:
        """Yield this process's groups of images, each with whether its result counts.

        A process that has one group fewer than others repeats the last group, which does not count.
        """
        groups = list(self._groups())
        rank, number = 0, 1
        if accelerator is not None:
            rank, number = accelerator.process_index, accelerator.num_processes
        for first in range(0, len(groups), number):
            index = first + rank
            yield groups[min(index, len(groups) - 1)], index < len(groups)

    def _groups(self) -> Iterator[Sequence[int]]:
        """Yield indices of images that can be one batch: of one bucket, and few enough."""

        def bucket_of(i: int) -> tuple[int, int]:
            return self.plan.images[i].bucket.hw

        order = sorted(range(len(self.plan.images)), key=bucket_of)
        groups = sampler_groups(self.plan.images)
        for _, same in groupby(order, key=bucket_of):
            members = list(same)
            size = min(self.batch_size(groups[i]) for i in members)
            yield from chunks(members, size)
