"""Turns planned images, cached or varying, into batches of latents, captions and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from impasto.data.caching.encoding import Encode, MomentsEncoder
from impasto.data.caching.latent_cache import CachedPlan, LatentCache
from impasto.data.captions import TrainingPosition
from impasto.data.engines.stages import Failure
from impasto.data.loading.augmentation import render_augmented
from impasto.data.loading.sampler import MicroBatch, OptimizerStep, Sample
from impasto.data.loading.templates import CaptionTemplates
from impasto.data.pixels.images import UnreadableImageError
from impasto.data.pixels.rendering import Rendered
from impasto.data.planning.groups import Groups
from impasto.data.planning.planned_table import PlannedTable
from impasto.data.records import CELL, CHANNELS, Batch, Geometry, PlannedImage, Size
from impasto.diffusion.assignment import assigned
from impasto.diffusion.noise import NOISE, PLAIN_NOISE, Noise
from impasto.diffusion.randomness import PerSampleRandomness
from impasto.randomness import derive_rng


@dataclass(frozen=True, slots=True)
class LoadedMoments:
    """What loading threads hand to the training thread, which does the arithmetic.

    Attributes:
        weights: [B] of the samples in the loss; 0 for padding and for images that could not be
            read.
        mean: [B, 4, h, w] as stored; zeros for samples in `pixels`.
        logvar: The same for the log variance.
        pixels: Index in the batch -> uint8 [H, W, 3], for images that are encoded now.
        mask: [B, 1, h, w] uint8, or None if all positions count the same.
        geometry: Sizes and crops of the samples.
    """

    optimizer_step: OptimizerStep
    micro_batch: MicroBatch
    randomness: PerSampleRandomness
    weights: Tensor
    mean: Tensor
    logvar: Tensor
    noise: Tensor
    pixels: dict[int, np.ndarray]
    mask: Tensor | None
    geometry: tuple[Geometry, ...]


@dataclass(frozen=True)
class TrainingData:
    """Everything that batches are made from.

    Attributes:
        plan: The images and the keys of their latents.
        cache: The cache with the moments of the latents.
        scaling_factor: Factor by which unscaled latents are multiplied.
        seed: The run's seed.
        total_steps: Optimizer steps of the whole run.
        encoder: For images that are not encoded ahead; None if there are none.
        noise: The noise that the training step adds, so that it can be drawn ahead.
        templates: Lines around captions; None leaves captions unchanged.
        assigns_noise: Whether the noises of a batch are assigned to the images they are closest to.
        lost: Images that could not be read or encoded during training, with reasons.
        remade: Images whose latents were NaN or infinite in half precision during training, and
            were encoded again in float32.
    """

    plan: CachedPlan
    cache: LatentCache
    scaling_factor: float
    seed: int
    total_steps: int
    encoder: MomentsEncoder | None = None
    noise: Noise = PLAIN_NOISE
    templates: CaptionTemplates | None = None
    assigns_noise: bool = False
    lost: dict[Path, str] = field(default_factory=dict)
    remade: set[Path] = field(default_factory=set)

    @property
    def varies_images(self) -> bool:
        """Whether some images are decoded and encoded each time they are shown."""
        return not self.plan.encoded_ahead

    def load(self, optimizer_step: OptimizerStep, micro_batch: MicroBatch) -> LoadedMoments:
        """Read a micro-batch's moments and draw its random numbers; runs in a loading thread."""
        randomness = PerSampleRandomness(
            self.seed, optimizer_step.step, micro_batch.positions, optimizer_step.size
        )
        samples = micro_batch.samples
        weights = torch.tensor(
            [0.0 if micro_batch.is_padding else self._loss_weight(sample) for sample in samples]
        )
        bucket = self.plan.images[samples[0].image].bucket
        shape = (CHANNELS, bucket.height // CELL, bucket.width // CELL)
        noise = randomness.normal(shape, "posterior")
        self.noise.generate_ahead(shape, randomness)
        rendered = self._rendered(samples, optimizer_step.epoch, weights)
        flips = [self._is_flipped(sample, optimizer_step.epoch) for sample in samples]
        mean, logvar = self._moments(samples, flips, (len(samples), *shape))
        return LoadedMoments(
            optimizer_step,
            micro_batch,
            randomness,
            weights,
            mean,
            logvar,
            noise,
            {i: _mirrored(image.pixels, flips[i]) for i, image in rendered.items()},
            self._mask(samples, flips, rendered, bucket),
            self._geometry(samples, flips, rendered),
        )

    def batch(self, loaded: LoadedMoments) -> Batch:
        """Sample latents from the moments, and add the captions, masks and geometry."""
        mean, logvar = loaded.mean, loaded.logvar
        if loaded.pixels:
            mean, logvar = self._encoded(loaded)
        mask = None if loaded.mask is None else loaded.mask.float() / 255
        latents = sample_posterior(mean, logvar, loaded.noise) * self.scaling_factor
        if self.assigns_noise:
            ahead = loaded.randomness.ahead
            ahead[NOISE] = assigned(latents, ahead[NOISE].to(latents.device)).cpu()
        return Batch(
            latents,
            tuple(
                self.caption(sample, loaded.optimizer_step) for sample in loaded.micro_batch.samples
            ),
            loaded.weights,
            loaded.randomness,
            loaded.geometry,
            mask,
            keeps=self._keeps(loaded.micro_batch.samples),
        )

    def caption(self, sample: Sample, optimizer_step: OptimizerStep) -> str:
        """Return the caption of a sample in this step, with its random changes."""
        record = self.plan.images[sample.image].record
        position = TrainingPosition(optimizer_step.epoch + 1, optimizer_step.step, self.total_steps)
        subset = record.subset
        caption = subset.captions.write(
            record.caption_text,
            position,
            self.seed,
            subset.dataset,
            subset.number,
            record.name,
            sample.repeat,
        )
        if self.templates is None:
            return caption
        keys = _keys(self.plan.images[sample.image], sample, optimizer_step.epoch)
        return self.templates.around(caption, self.seed, *keys)

    def _keeps(self, samples: tuple[Sample, ...]) -> Tensor | None:
        """Return [B]: which samples are regularisation images; None if none is."""
        found = [self.plan.images[sample.image].record.subset.is_reg for sample in samples]
        return torch.tensor(found) if any(found) else None

    def _loss_weight(self, sample: Sample) -> float:
        return self.plan.images[sample.image].record.subset.loss_weight

    def _geometry(
        self, samples: tuple[Sample, ...], flips: list[bool], rendered: dict[int, Rendered]
    ) -> tuple[Geometry, ...]:
        """Return the sizes and crops of the samples shown: as planned, or as cropped this time."""
        shown = [
            rendered[i].image if i in rendered else self.plan.images[sample.image]
            for i, sample in enumerate(samples)
        ]
        return tuple(
            image.geometry(mirrored=flip) for image, flip in zip(shown, flips, strict=True)
        )

    def _is_flipped(self, sample: Sample, epoch: int) -> bool:
        """Return whether an image is mirrored this time: half the time if its caption allows it."""
        record = self.plan.images[sample.image].record
        if not record.subset.may_flip(record.caption_text):
            return False
        keys = _keys(self.plan.images[sample.image], sample, epoch)
        return bool(derive_rng(self.seed, "flip", *keys).random() < 0.5)

    def _moments(
        self, samples: tuple[Sample, ...], flips: list[bool], shape: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Gather cached moments in the order of the samples; zeros for images that are not cached.

        Gathered with NumPy, which stays on one core: see `Shards.read`.
        """
        keys = [self.plan.keys[sample.image] for sample in samples]
        names = [k.flipped if flip else k.plain for k, flip in zip(keys, flips, strict=True)]
        if all(key.plain for key in keys):
            return self.cache.read(names)
        known = [i for i, key in enumerate(keys) if key.plain]
        mean, logvar = np.zeros(shape, dtype=np.float16), np.zeros(shape, dtype=np.float16)
        if known:
            means, logvars = self.cache.read([names[i] for i in known])
            mean[known], logvar[known] = means.numpy(), logvars.numpy()
        return torch.from_numpy(mean), torch.from_numpy(logvar)

    def _rendered(
        self, samples: tuple[Sample, ...], epoch: int, weights: Tensor
    ) -> dict[int, Rendered]:
        """Decode images that vary each time; one that can no longer be read gets the weight 0."""
        rendered = {}
        for i, sample in enumerate(samples):
            image = self.plan.images[sample.image]
            rules = image.record.subset.augmentation
            if rules is None:
                continue
            try:
                rendered[i] = render_augmented(
                    image, rules, self.seed, *_keys(image, sample, epoch)
                )
            except (UnreadableImageError, OSError) as error:
                self.lost[image.record.path] = str(error)
                weights[i] = 0.0
                rendered[i] = Rendered(image, np.zeros((*image.bucket.hw, 3), dtype=np.uint8), None)
        return rendered

    def _mask(
        self,
        samples: tuple[Sample, ...],
        flips: list[bool],
        rendered: dict[int, Rendered],
        bucket: Size,
    ) -> Tensor | None:
        """Return [B, 1, h, w] uint8 weights of the positions; None if the batch has no mask."""
        images = [self.plan.images[sample.image] for sample in samples]
        if not any(image.record.subset.masks for image in images):
            return None
        full = (len(samples), 1, bucket.height // CELL, bucket.width // CELL)
        mask = np.full(full, 255, dtype=np.uint8)
        for i, sample in enumerate(samples):
            name = self.plan.keys[sample.image].mask
            own = rendered[i].mask if i in rendered else None
            if name:
                own = self.cache.read_masks([name])[0, 0].numpy()
            if own is not None:
                mask[i, 0] = _mirrored(own, flips[i])
        return torch.from_numpy(mask)

    def _encoded(self, loaded: LoadedMoments) -> tuple[Tensor, Tensor]:
        """Encode the pixels of a batch, in pieces as large as the encoder takes.

        Images that are NaN or infinite even in float32 get the weight 0.
        """
        assert self.encoder is not None  # noqa: S101 - built where images change
        mean, logvar = loaded.mean.float(), loaded.logvar.float()
        indices, encode = list(loaded.pixels), Encode(self.encoder)
        for start in range(0, len(indices), self.encoder.batch_size):
            portion = indices[start : start + self.encoder.batch_size]
            begun = encode.begin([loaded.pixels[i] for i in portion])
            for at, (i, outcome) in enumerate(zip(portion, encode.finish(begun), strict=True)):
                sample = loaded.micro_batch.samples[i]
                path = self.plan.images[sample.image].record.path
                if at in begun.remade:
                    self.remade.add(path)
                if isinstance(outcome, Failure):
                    self.lost[path] = outcome.reason
                    loaded.weights[i] = 0.0
                else:
                    mean[i], logvar[i] = outcome
        return mean, logvar


def sample_posterior(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """Return mean + exp(logvar / 2) * noise in float32, unscaled.

    The bounds of `logvar` are those of diffusers' DiagonalGaussianDistribution.
    """
    return mean.float() + torch.exp(0.5 * logvar.float().clamp(-30, 20)) * noise


def sampler_groups(images: Sequence[PlannedImage]) -> Groups:
    """Return the group, dataset and bucket, of each image."""
    return PlannedTable.of(images).groups()


def _keys(image: PlannedImage, sample: Sample, epoch: int) -> tuple[int | str, ...]:
    """Return the keys from which the random numbers of a showing are derived."""
    subset = image.record.subset
    return epoch, subset.dataset, subset.number, image.record.name, sample.repeat


def _mirrored(values: np.ndarray, flip: bool) -> np.ndarray:  # noqa: FBT001
    return np.ascontiguousarray(values[:, ::-1]) if flip else values
