"""Memory that is on the device during all of training: weights, optimizer state, averages.

It follows from sizes and shapes alone; `memory.py` adds temporary memory to it.
"""

from __future__ import annotations

from impasto.config.run import RunConfig
from impasto.models.networks.loading import BaseModel
from impasto.models.trainable import Trainable, recomputed_blocks
from impasto.models.writing.saving import DTYPES
from impasto.training.builders.prompts import build_prompts
from impasto.training.compute.param_dtypes import copied_numel
from impasto.training.optim.streaming import BUFFERS
from impasto.training.parallel.shards import Sharding
from impasto.training.planning.memory_facts import (
    changes_captions,
    encodes_while_training,
    numel_of,
    offloads_state,
    optimizer_bytes,
    shapes_of,
    text_encoder_bytes,
    unloads_text_encoder,
)
from impasto.training.planning.workload import Workload


class StandingMemory:
    """Computes the memory that a run holds on the device from its first step to its last.

    Args:
        device_type: `cpu` or `cuda`.
        sharding: The fraction of the model that each process holds.
        workload: The work beside training, whose captions and prompts fill the text cache.
        is_usual: Whether no user code uses the networks; only then may frozen ones be unloaded or
            held in 16 bits.
    """

    def __init__(
        self, device_type: str, sharding: Sharding, workload: Workload, *, is_usual: bool
    ) -> None:
        self._device_type, self._on_gpu = device_type, device_type == "cuda"
        self._sharding, self._workload, self._is_usual = sharding, workload, is_usual

    def bytes_of(self, config: RunConfig, trainable: Trainable, model: BaseModel) -> dict[str, int]:
        """Return the standing parts of a `Footprint`, as field name -> bytes."""
        learning = sum(trained.count() for trained in trainable.modules)
        on_device = self._on_device(away=config.training.ema_on_cpu)
        averages = config.training.averages if on_device else 0
        return {
            "weights": self._weights(config, trainable, model)
            + (4 * learning if config.optimizer.start_decay else 0),
            "optimizer": optimizer_bytes(config, shapes_of(trainable)) // self._sharding.optimizer
            if self._on_device(away=offloads_state(config))
            else 0,
            "average": 4 * learning * averages // self._sharding.weights,
            "text_cache": self._text_cache(config, trainable),
        }

    def _on_device(self, *, away: bool) -> bool:
        """Return whether tensors are on the device; `away` offloads them from a GPU, not a CPU."""
        return not (away and self._on_gpu)

    def _weights(self, config: RunConfig, trainable: Trainable, model: BaseModel) -> int:
        wide = DTYPES[config.training.weight_dtype].itemsize
        total = 0
        for module in (trainable.network, model.vae, *model.text_encoders.values()):
            for parameter in module.parameters():
                if parameter.requires_grad:
                    total += parameter.numel() * wide // self._sharding.weights
                    if self._sharding.has_master_weights:
                        total += parameter.numel() * 4 // self._sharding.optimizer
                elif module is trainable.network and config.method.kind == "full":
                    total += parameter.numel() * wide  # a frozen block is loaded like the others
                else:
                    total += parameter.numel() * parameter.dtype.itemsize
        total += 2 * copied_numel(config, trainable)
        total -= self._streamed(config, trainable)
        total += self._vae_bytes(config, model) - 4 * numel_of(model.vae)
        if not config.trains_text_encoder:
            total -= 4 * sum(numel_of(network) for network in model.text_encoders.values())
            total += self._text_encoders(config, model)
        return total

    def _text_encoders(self, config: RunConfig, model: BaseModel) -> int:
        """Return the bytes of frozen text encoders during training; in float32 for user code."""
        if unloads_text_encoder(config):
            return 0
        return text_encoder_bytes(config, model, self._device_type if self._is_usual else "cpu")

    def _streamed(self, config: RunConfig, trainable: Trainable) -> int:
        """Return the bytes of weights that streaming keeps off the GPU, less its GPU buffers."""
        if not (config.training.stream_weights and self._on_gpu):
            return 0
        wide = DTYPES[config.training.weight_dtype].itemsize
        sizes = [wide * numel_of(block) for block in recomputed_blocks(trainable.unet)]
        return sum(sizes) - BUFFERS * max(sizes)

    def _vae_bytes(self, config: RunConfig, model: BaseModel) -> int:
        """Return the bytes of the VAE's weights during training.

        0 if all images are encoded before: then the VAE is unloaded.
        """
        if not encodes_while_training(config):
            return 0
        width = DTYPES[config.dataset.vae_precision].itemsize
        copied = 4 if not self._on_gpu and width < 4 else 0
        return (width + copied) * numel_of(model.vae)

    def _text_cache(self, config: RunConfig, trainable: Trainable) -> int:
        """Return the bytes of cached outputs of frozen text encoders.

        `training.text_cache_mib` limits each cache: on a GPU one of training captions and one of
        validation and previews, on a CPU one of all (`training/builders/text.py`).
        """
        if config.trains_text_encoder or unloads_text_encoder(config):
            return 0
        chunk = 4 * trainable.states.shape.numbers * (config.model.max_tokens // 75)
        limit, work = config.training.text_cache_mib << 20, self._workload
        captions = limit
        if work.captions is not None and not changes_captions(config):
            captions = chunk * (work.captions + 1)
        prompts = 2 * len(build_prompts(config))
        validation = chunk * (work.held_out_captions + prompts)
        if not self._on_gpu:
            return min(limit, captions + validation)
        return min(limit, captions) + min(limit, validation)
