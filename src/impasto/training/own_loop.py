"""Batches of images and encoded captions for a training loop that the user writes."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from impasto import locks
from impasto.argument_types import require_kind
from impasto.config.load import build_run_config
from impasto.config.run import RunConfig
from impasto.data.caching.encoding import MomentsEncoder
from impasto.data.loading.dataset import TrainingData
from impasto.data.loading.step_batches import iterate_steps
from impasto.data.records import Batch
from impasto.datasets.batching import build_epoch_sampler
from impasto.datasets.prepare import LATENTS, PreparedData, prepare_data
from impasto.datasets.sources import require_sources
from impasto.errors import ConfigError
from impasto.models.networks.loading import BaseModel
from impasto.models.networks.tokenizers import build_tokens
from impasto.models.networks.vae import moments_encoder
from impasto.models.reading.recorded import trained_clip_skip
from impasto.models.text.text_conditioner import ClipTextConditioner
from impasto.models.text.text_memory import TextCache
from impasto.models.text.text_states import TextStates
from impasto.progress import Progress, SilentProgress
from impasto.training.builders.model import build_encoding_vae
from impasto.training.builders.text import (
    ENCODED_AT_ONCE,
    build_layout,
    build_sizes,
    zeroes_empty_text,
)
from impasto.training.devices import PROCESS_TIMEOUT, release_cached_memory
from impasto.training.steps.prefetch import Prefetch, build_prefetcher

_GIVEN_OTHERWISE = (
    "image_dir", "batch_size", "config", "general", "datasets", "train_data_dir", "reg_data_dir",
)  # fmt: skip


class Batches:
    """Yields batches of one bucket each, in a random order that depends on the seed.

    Iterating yields the batches of one epoch, and iterating again those of the next epoch; `steps`
    continues across epochs. Each process that `accelerate launch` starts gets different batches.

    Args:
        config: The settings that batches are composed by.
        prepared: The images, and the cache of their latents.
        data: Loads the images of a batch.
        conditioner: Encodes captions on request.
        prefetch: Moves batches to the device of the U-Net.
        in_use: Holds the lock that keeps the latents from being pruned; closed when this object
            is garbage-collected.

    Attributes:
        prepared: The images, and the cache of their latents.
        conditioner: Encodes captions with the model's text encoders, which are frozen, and caches
            the results.
    """

    def __init__(
        self,
        config: RunConfig,
        prepared: PreparedData,
        data: TrainingData,
        conditioner: ClipTextConditioner,
        prefetch: Prefetch,
        in_use: contextlib.ExitStack,
    ) -> None:
        self.prepared, self.conditioner, self._step = prepared, conditioner, 0
        self._data, self._prefetch, self._rank = data, prefetch, PartialState().process_index
        processes = PartialState().num_processes
        self._sampler = build_epoch_sampler(config, prepared.training, processes)
        weakref.finalize(self, in_use.close)

    @property
    def step(self) -> int:
        """The number of the next batch, counted from 0 over all epochs; set it to continue there.

        Raises:
            ConfigError: It is set to a negative number, or to something other than an integer.
        """
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise ConfigError(
                f"Batches.step = {step!r}: expected the number of a batch, 0 or more."
            )
        self._step = step

    def __len__(self) -> int:
        """Return the number of batches in an epoch, per process."""
        return self._sampler.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        """Yield the remaining batches of the epoch."""
        return self.steps(len(self) - self.step % len(self))

    def steps(self, number: int) -> Iterator[Batch]:
        """Yield the next `number` batches; for a GPU, already moved there with captions encoded."""
        steps = iterate_steps(
            self._data, self._sampler, self.step, self.step + number, self._rank, self._prefetch
        )
        for optimizer_step, batches in steps:
            self.step = optimizer_step.step + 1
            yield from batches


def prepare(
    folder: str | Path,
    model: BaseModel,
    *,
    resolution: int | tuple[int, int] = 512,
    batch_size: int = 1,
    seed: int = 42,
    clip_skip: int | None = None,
    progress: Progress | None = None,
    **dataset: Any,
) -> Batches:
    """Scan the images of a folder, assign buckets and encode latents, for a loop that you write.

    Latents are cached in the folder, where runs of `impasto train` find them as well. The VAE and
    the text encoders compute on the device of the U-Net, so move the U-Net there first. The VAE
    then returns to its device, unless images are augmented in a new way each time they are used.
    SDXL's empty captions are encoded as the empty text unless `empty_text="zeros"` is given, as in
    `impasto train`.

    Args:
        folder: Images, each with a `.txt` or `.caption` file of the same name beside it.
        model: Its VAE and text encoders encode the images and captions.
        resolution: Pixels, `N` or `(width, height)`; with buckets only its area counts.
        batch_size: Images in a batch; the last one of a bucket may have fewer.
        seed: Seed of the order, and of the random numbers of each batch.
        clip_skip: CLIP's layer, counted from the end; None takes the layer that the model's file
            records, or else the default of its family.
        progress: Receives progress; None shows none.
        dataset: Further settings of the section `dataset`, such as `flip_aug=True`, and
            `max_tokens` and `empty_text` of the section `model`.

    Raises:
        ConfigError: A setting is unknown, or its value does not fit.
        DatasetError: The folder has no image that can be trained on.
        StorageError: Latents cannot be written.
        TypeError: `folder` is not a path, or `model` is not a loaded model.
    """
    require_kind("prepare(folder)", folder, (str, Path), "the path of a folder of images")
    loaded = 'a model, as impasto.load_base_model("base") loads it'
    require_kind("prepare(model)", model, BaseModel, loaded)
    config = _settings(folder, model, clip_skip, dataset, resolution, batch_size, seed)
    zeroes_empty_text(config, model)  # raises before images are encoded
    require_sources(config.dataset)  # a missing folder would be created by the lock below
    progress, device = progress or SilentProgress(), model.unet.device
    in_use = contextlib.ExitStack()
    latents = config.dataset.derived_dir / LATENTS
    waiter = locks.LockWaiter(progress.note, f"reading {latents}")
    in_use.enter_context(locks.SharedLock(latents, f"a loop over {folder}", waiter))
    try:
        prepared, encoder = _encoded(config, model, progress)
    except BaseException:
        in_use.close()
        raise
    data = TrainingData(prepared.training, prepared.cache, model.scaling_factor, seed, 1, encoder)
    prefetch = build_prefetcher(device, _build_conditioner(config, model, device))
    conditioner = _build_conditioner(config, model, device)
    return Batches(config, prepared, data, conditioner, prefetch, in_use)


def _encoded(
    config: RunConfig, model: BaseModel, progress: Progress
) -> tuple[PreparedData, MomentsEncoder]:
    """Encode the images ahead, and return the prepared data and the encoder.

    Images that are augmented in a new way at each use are left to the encoder, in batches.
    """
    vae, home = build_encoding_vae(config, model), model.vae.device
    encoder = moments_encoder(
        vae,
        batch_size=config.dataset.vae_batch_size,
        device=model.unet.device,
        npz_endings=model.family.npz_endings,
    )
    stays = False
    try:
        state = PartialState(timeout=PROCESS_TIMEOUT)
        prepared = prepare_data(config, encoder, state, progress)
        stays = not prepared.training.encoded_ahead
    finally:
        if not stays:
            vae.to(home)
            release_cached_memory(model.unet.device)
    return prepared, encoder


def _settings(
    folder: str | Path,
    model: BaseModel,
    clip_skip: int | None,
    dataset: dict[str, Any],
    resolution: int | tuple[int, int],
    batch_size: int,
    seed: int,
) -> RunConfig:
    """Return the settings of a run that batches depend on, validated as those of `train`.

    Raises:
        ConfigError: A setting is unknown, its value does not fit, or needs the length of a run.
    """
    _require_own(folder, batch_size, dataset)
    if clip_skip is not None and not model.family.takes_clip_skip:
        raise ConfigError(
            f"impasto.prepare(clip_skip={clip_skip}) does not apply to {model.family.name}, whose "
            f"text encoders are read at fixed layers. Remove clip_skip."
        )
    of_model = {name: dataset.pop(name) for name in ("max_tokens", "empty_text") if name in dataset}
    config = build_run_config(
        {
            "output_dir": "run",  # required, but never created
            "seed": seed,
            "model": {
                "path": model.contents.source,
                "clip_skip": (
                    trained_clip_skip(model.contents) if clip_skip is None else clip_skip
                ),
                **of_model,
            },
            "dataset": {"image_dir": str(folder), "resolution": resolution, **dataset},
            "training": {"batch_size": batch_size, "max_steps": 1},
        },
        source="impasto.prepare",
    )
    for entry in config.dataset.entries:
        for subset in entry.subsets:
            if 0 < subset.token_warmup_step < 1:
                raise ConfigError(
                    f"token_warmup_step is {subset.token_warmup_step}, a fraction of a run, and "
                    f"prepare does not know how long yours is. Give it as a number of steps."
                )
    return config


def _require_own(folder: str | Path, batch_size: object, dataset: Mapping[str, Any]) -> None:
    """Make sure that the folder and the batch size are valid and given only once each.

    Raises:
        ConfigError: One is missing or invalid, another setting repeats it, or Ray is requested.
    """
    for name in _GIVEN_OTHERWISE:
        if name in dataset:
            raise ConfigError(
                f"impasto.prepare takes one folder of images and one batch size as arguments, so "
                f"{name} cannot be given as well. Remove {name}."
            )
    if dataset.get("executor", "local") != "local" or dataset.get("ray_address") is not None:
        raise ConfigError(
            "impasto.prepare encodes with the given model in this process, and not with Ray. "
            "Remove executor and ray_address."
        )
    if not str(folder):
        raise ConfigError(
            'impasto.prepare(""): expected a folder of images, such as "images"; the current '
            'folder is ".".'
        )
    if not isinstance(batch_size, int) or isinstance(batch_size, bool):
        raise ConfigError(
            f"impasto.prepare(batch_size={batch_size!r}): expected a number of images. Only "
            f"impasto.train can find the batch size that fits into memory."
        )


def _build_conditioner(
    config: RunConfig, model: BaseModel, device: torch.device
) -> ClipTextConditioner:
    """Return a conditioner with a separate cache, since prefetching must not share one."""
    states = TextStates.of(model, config.model.clip_skip).to(device)
    at_once = min(ENCODED_AT_ONCE.get(device.type, 1), max(config.batch_sizes.values()))
    limit = config.training.text_cache_mib << 20
    return ClipTextConditioner(
        build_tokens(model, build_layout(config)),
        states,
        states.shape,
        sizes=build_sizes(config, model),
        device=device,
        memory=TextCache(limit, device, at_once=at_once),
        zeroes_empty_text=zeroes_empty_text(config, model),
    )
