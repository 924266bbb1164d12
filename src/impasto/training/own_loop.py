"""What a training loop of one's own needs: images as batches, and captions encoded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from impasto.config.load import build_run_config
from impasto.config.run import RunConfig
from impasto.data.dataset import TrainingData, iterate_steps
from impasto.data.records import Batch
from impasto.datasets.batching import build_epoch_sampler
from impasto.datasets.prepare import PreparedData, prepare_data
from impasto.errors import ConfigError
from impasto.models.loading import BaseModel, build_tokens
from impasto.models.text import ClipTextConditioner, TextStates
from impasto.models.text_memory import TextCache
from impasto.models.vae import moments_encoder
from impasto.progress import Progress, SilentProgress
from impasto.training.devices import build_accelerator, release_cached_memory
from impasto.training.prefetch import build_prefetcher
from impasto.training.text import build_layout


class Batches:
    """Images as batches of one bucket each, in a random order that the seed decides.

    Going through it gives the batches of an epoch, the next time those of the next; `steps` goes on
    over epochs. Each process that `accelerate launch` starts gets batches of its own.

    Args:
        config: The settings that images are dealt by.
        prepared: The images, and where their latents are.
        data: Makes batches of them.
        conditioner: Encodes captions.
        accelerator: Which process of how many this is.
        device: Where batches go.

    Attributes:
        prepared: The images, and where their latents are.
        conditioner: Encodes captions with the model's text encoders, which do not learn, and
            remembers what they made.
        step: The number of the next batch, counted from 0 over all epochs; set it to go on from
            there.
    """

    def __init__(
        self,
        config: RunConfig,
        prepared: PreparedData,
        data: TrainingData,
        conditioner: ClipTextConditioner,
        accelerator: Accelerator,
        device: torch.device,
    ) -> None:
        self.prepared, self.conditioner, self.step = prepared, conditioner, 0
        self._data = data
        self._sampler = build_epoch_sampler(config, prepared.training, accelerator.num_processes)
        self._rank, self._device = accelerator.process_index, device

    def __len__(self) -> int:
        """Batches of an epoch, for each process."""
        return self._sampler.updates_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        """The batches that are left of the epoch."""
        return self.steps(len(self) - self.step % len(self))

    def steps(self, number: int) -> Iterator[Batch]:
        """The next `number` batches, on the device of the U-Net, with what it is told of them."""
        updates = iterate_steps(
            self._data,
            self._sampler,
            self.step,
            self.step + number,
            self._rank,
            build_prefetcher(self._device, self.conditioner),
        )
        for update, batches in updates:
            self.step = update.step + 1
            yield from batches


def prepare(
    folder: str | Path,
    model: BaseModel,
    *,
    resolution: int | tuple[int, int] = 512,
    batch_size: int = 1,
    seed: int = 0,
    clip_skip: int | None = None,
    max_tokens: int = 75,
    progress: Progress | None = None,
    **dataset: Any,
) -> Batches:
    """Scan, plan and encode the images of a folder, for a training loop of one's own.

    Latents are kept in the folder, where runs of `impasto train` find them as well. The VAE and the
    text encoders compute where the U-Net is; the VAE then returns to where it was, unless images
    change each time they are shown.

    Args:
        folder: Images, each with a `.txt` or `.caption` of the same name beside it.
        model: What encodes them.
        resolution: Pixels, `N` or `(width, height)`; with buckets only its area counts.
        batch_size: Images of a batch; the last one of a bucket may have fewer.
        seed: Of the order, and of the random numbers of each batch.
        clip_skip: CLIP's layer from the end; None is the family's own.
        max_tokens: Tokens of a caption that are seen: 75, 150 or 225.
        progress: Who is told how far it is.
        dataset: Further settings of the section `dataset`, such as `flip_aug=True`.

    Raises:
        ConfigError: A setting is unknown, or its value does not fit.
        DatasetError: There is nothing to train on.
        StorageError: Latents cannot be written.
    """
    config = build_run_config(
        {
            "output_dir": ".",
            "seed": seed,
            "model": {
                "path": model.contents.source,
                "clip_skip": clip_skip,
                "max_tokens": max_tokens,
            },
            "dataset": {"image_dir": str(folder), "resolution": resolution, **dataset},
            "training": {"batch_size": batch_size, "max_steps": 1},
        },
        source="impasto.prepare",
    )
    _require_no_share_of_a_run(config)
    progress = progress or SilentProgress()
    accelerator, device, home = build_accelerator(), model.unet.device, model.vae.device
    encoder = moments_encoder(model.vae, batch_size=config.dataset.vae_batch_size, device=device)
    prepared = prepare_data(config, encoder, accelerator, progress)
    if all(key.plain for key in prepared.training.keys):
        model.vae.to(home)
        release_cached_memory(device)
    data = TrainingData(prepared.training, prepared.cache, model.scaling_factor, seed, 1, encoder)
    conditioner = _build_conditioner(config, model, device)
    return Batches(config, prepared, data, conditioner, accelerator, device)


def _build_conditioner(
    config: RunConfig, model: BaseModel, device: torch.device
) -> ClipTextConditioner:
    states = TextStates.of(model, config.model.clip_skip).to(device)
    return ClipTextConditioner(
        build_tokens(model, build_layout(config)),
        states,
        states.shape,
        sizes=model.family.sizes,
        device=device,
        memory=TextCache(config.training.text_cache_mib << 20, device),
    )


def _require_no_share_of_a_run(config: RunConfig) -> None:
    """A loop of one's own has no length that a share could be taken of."""
    for part in config.dataset.parts:
        for subset in part.subsets:
            if 0 < subset.token_warmup_step < 1:
                raise ConfigError(
                    f"token_warmup_step is {subset.token_warmup_step}, a share of a run, and "
                    f"prepare does not know how long yours is. Give it as a number of steps."
                )
