"""Predicts the memory of a run's work beside training: encoding, validation, previews, averages.

Each is run on tensors without values, as a training step is; the results are cached, since a fake
step of a full-size network takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from impasto import files
from impasto.config.run import RunConfig
from impasto.data.records import Size
from impasto.datasets.batching import validation_batch_size
from impasto.models.networks.casting import cast_network
from impasto.models.networks.loading import BaseModel
from impasto.models.networks.vae import tile
from impasto.models.text.conditioning import ConditioningShape
from impasto.models.text.text_memory import AHEAD_BATCH
from impasto.models.tokenization.tokens import LENGTH
from impasto.models.trainable import Trainable
from impasto.models.writing.saving import DTYPES
from impasto.parsing import parse_json
from impasto.sampling.prompts import Prompt
from impasto.training.builders.prompts import build_prompts
from impasto.training.compute.precision import caches_casts, computed_kind
from impasto.training.optim.ema import WIDENED_AT_ONCE
from impasto.training.optim.mixed_precision import autocast_dtype
from impasto.training.planning.fake_step import FakeStep, decoding_peak, encoding_peak
from impasto.training.planning.memory_facts import (
    bytes_of,
    numel_of,
    structure_of,
    text_encoder_bytes,
    unloads_text_encoder,
)
from impasto.training.planning.meta_models import MetaModels
from impasto.training.planning.transfers import has_second_backward
from impasto.training.planning.workload import Workload


@dataclass(frozen=True)
class Phase:
    """A kind of work that a run does, with its memory.

    Attributes:
        name: The work, such as `training on 512x512 images`.
        gradients: Bytes of complete gradients.
        others: Bytes of all other tensors, beside the weights, optimizer state and averages.
        weights: Bytes of all weights on the device; None means those of training, with the
            optimizer's state and the average.
    """

    name: str
    gradients: int
    others: int
    weights: int | None = None


_FOUND: dict[str, dict[str, int]] = {}
"""Costs found by this process, under the keys of `Costs`: a plan and its advice need the same."""


class Costs:
    """Cache of the costs of fake steps, keyed by everything that they depend on.

    Args:
        file: The JSON file that stores the costs for later runs; None stores them in this process
            only.
        code: A text that identifies user code which changes the costs; "" if there is none.
    """

    def __init__(self, file: Path | None, code: str = "") -> None:
        self._file, self._code = file, code
        self._known: dict[str, dict[str, int]] = _read(file)

    def remembered(
        self, key_values: tuple[object, ...], run_fake_step: Callable[[], dict[str, int]]
    ) -> dict[str, int]:
        """Return the costs cached for `key_values`, running the fake step if there are none."""
        own = (self._code,) if self._code else ()
        key = "|".join(map(str, (torch.__version__, *own, *key_values)))
        if key not in self._known:
            if key not in _FOUND:
                _FOUND[key] = run_fake_step()
            self._known[key] = _FOUND[key]
            if self._file is not None:
                files.write_cached_json(self._file, self._known)
        return self._known[key]


@dataclass(frozen=True)
class OtherWork:
    """Predicts the memory of a run's work beside training.

    Attributes:
        meta_models: Meta models of the base model.
        device_type: `cpu` or `cuda`.
        workload: The image sizes and captions of that work.
        costs: The cache of costs of fake steps.
    """

    meta_models: MetaModels
    device_type: str
    workload: Workload
    costs: Costs

    def phases(
        self, config: RunConfig, model: BaseModel, trainable: Trainable, batch: int
    ) -> list[Phase]:
        """Return the phases of a run beside its training steps, with their memory.

        Args:
            config: The settings of the run.
            model: The base model, without values.
            trainable: The trainable networks, without values.
            batch: Number of images in the largest batch.
        """
        return [
            self._averaging(config, trainable),
            *self._drawing(config, model, trainable),
            *self._validating(config, trainable),
            *self._encoding(config, model, batch),
            *self._encoding_captions(config, model, trainable),
        ]

    def _averaging(self, config: RunConfig, trainable: Trainable) -> Phase:
        """Return the phase of updating the average; 16-bit weights are widened a few at a time."""
        sizes = [p.numel() for trained in trainable.modules for p in trained.parameters().values()]
        is_widened = config.training.averages > 0 and config.training.weight_dtype != "fp32"
        widened = min(max(WIDENED_AT_ONCE, *sizes), sum(sizes)) if is_widened else 0
        return Phase("averaging the weights", 0, 4 * widened)

    def _drawing(self, config: RunConfig, model: BaseModel, trainable: Trainable) -> list[Phase]:
        prompts = build_prompts(config)
        if not prompts:
            return []
        largest: Prompt = max(prompts, key=lambda prompt: prompt.width * prompt.height)
        size = Size(largest.width, largest.height)
        forward = self._forward(config, trainable, size, 2)
        tiled = config.dataset.vae_tiling or config.previews.vae_tiling
        key = ("decoding", str(size), tiled, numel_of(model.vae))

        def run_fake_step() -> dict[str, int]:
            vae = self.meta_models.vae()
            tile(vae, tiled=tiled)
            return {"peak": decoding_peak(vae, size, 1)}

        vae = self.costs.remembered(key, run_fake_step)["peak"] + 4 * numel_of(model.vae)
        return [Phase(f"drawing previews of {size}", 0, max(forward, vae))]

    def _validating(self, config: RunConfig, trainable: Trainable) -> list[Phase]:
        group = self.workload.validation
        if group is None:
            return []
        batch = validation_batch_size(config, group)
        name = f"validating on {group.bucket} images, {batch} at a time"
        return [Phase(name, 0, self._forward(config, trainable, group.bucket, batch))]

    def _forward(self, config: RunConfig, trainable: Trainable, size: Size, batch: int) -> int:
        """Return the peak bytes of a forward pass with the evaluated weights or their average."""
        training = config.training
        is_average = training.ema_decay is not None and not training.ema_on_cpu
        kind = "fp32" if is_average else training.weight_dtype
        key = (
            "forward", self.device_type, str(size), batch, computed_kind(config), kind,
            training.weight_dtype, *text_key(config),
            *(["streamed"] if training.stream_weights else []), structure_of(trainable),
        )  # fmt: skip

        def run_fake_step() -> dict[str, int]:
            used = self.meta_models.trainable(config)
            for trained in used.modules:
                cast_network(trained.module, DTYPES[kind])
            caches = training.weight_dtype == "fp32" and not training.stream_weights
            fake_step = fake_step_of(config, used, self.device_type)
            return {"peak": fake_step.forward_peak(size, batch, caches_casts=caches)}

        return self.costs.remembered(key, run_fake_step)["peak"]

    def _encoding(self, config: RunConfig, model: BaseModel, batch: int) -> list[Phase]:
        """Return the phases in which the VAE encodes: before training, and during it.

        Before training the VAE is alone on a GPU.
        """
        work, asked, phases = self.workload, config.dataset.vae_batch_size, []
        if work.encoded is not None:
            width = DTYPES[config.dataset.vae_precision].itemsize
            weights = width * numel_of(model.vae)
            if self.device_type != "cuda":
                asleep = unloads_text_encoder(config) and self.meta_models.is_usual
                texts = [] if asleep else model.text_encoders.values()
                weights += _unet_bytes(config, model) + sum(map(bytes_of, texts))
                copied = width < 4 and not self.meta_models.is_usual
                weights += 4 * numel_of(model.vae) * copied
            name = f"encoding {work.encoded} images, {asked} at a time"
            phases.append(
                Phase(name, 0, self._vae_peak(config, model, work.encoded, asked), weights)
            )
        if work.varied is not None:
            at_once = min(asked, batch)
            name = f"encoding {work.varied} images as they are shown, {at_once} at a time"
            phases.append(Phase(name, 0, self._vae_peak(config, model, work.varied, at_once)))
        return phases

    def _encoding_captions(
        self, config: RunConfig, model: BaseModel, trainable: Trainable
    ) -> list[Phase]:
        """Return the phase in which captions are encoded before training; an empty list if none.

        Text encoders run one after the other, alone on a GPU. The hidden states of every layer are
        kept, and one layer computes with ten more numbers per hidden number (1 % above what a fake
        forward pass of SDXL's takes).
        """
        if not config.training.cache_text_to_disk:
            return []
        device_type = self.device_type if self.meta_models.is_usual else "cpu"
        weights = text_encoder_bytes(config, model, device_type)
        if self.device_type != "cuda":
            weights += _unet_bytes(config, model)
        texts: list[Any] = [encoder.text_encoder.config for encoder in trainable.states.each()]
        widths = [int(text.hidden_size) * (int(text.num_hidden_layers) + 11) for text in texts]
        others = 4 * AHEAD_BATCH * LENGTH * max(widths)
        return [Phase(f"encoding captions, {AHEAD_BATCH} chunks at a time", 0, others, weights)]

    def _vae_peak(self, config: RunConfig, model: BaseModel, size: Size, batch: int) -> int:
        dataset = config.dataset
        key = ("encoding", str(size), batch, dataset.vae_precision, dataset.vae_tiling,
                 numel_of(model.vae))  # fmt: skip

        def run_fake_step() -> dict[str, int]:
            vae = self.meta_models.vae()
            tile(vae, tiled=dataset.vae_tiling)
            return {
                "peak": encoding_peak(cast_network(vae, DTYPES[dataset.vae_precision]), size, batch)
            }

        return self.costs.remembered(key, run_fake_step)["peak"]


def _unet_bytes(config: RunConfig, model: BaseModel) -> int:
    """Return the bytes of the U-Net as loaded: in the weight dtype if trained, else in float32."""
    kind = config.training.weight_dtype if config.method.kind == "full" else "fp32"
    return DTYPES[kind].itemsize * numel_of(model.unet)


def text_key(config: RunConfig) -> tuple[object, ...]:
    """Return the settings that the length of text embeddings depends on, for a cache key."""
    return config.model.max_tokens, config.model.token_join


def fake_step_of(config: RunConfig, trainable: Trainable, device_type: str) -> FakeStep:
    """Build the fake step that computes a network as these settings do."""
    unet: Any = trainable.unet
    sizes = trainable.family.sizes
    chunks = config.model.max_tokens // 75
    joined = {"a1111": 77 * chunks, "kohya": 75 * chunks + 2}
    conditioning = ConditioningShape(
        joined[config.model.token_join],
        unet.config["cross_attention_dim"],
        trainable.states.shape.pooled,
        sizes.count if sizes is not None else 0,
    )
    return FakeStep(
        trainable.network,
        conditioning,
        autocast_dtype(computed_kind(config)),
        as_on_gpu=device_type == "cuda",
        frees_gradients=config.training.optimizer_in_backward != "off",
        has_second_backward=has_second_backward(config),
        caches_casts=caches_casts(config),
    )


def _read(file: Path | None) -> dict[str, dict[str, int]]:
    """Return the stored costs; an empty dict if the file is missing or cannot be read."""
    if file is None or not file.is_file():
        return {}
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(content) if isinstance(content, Mapping) else {}
