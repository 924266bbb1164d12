"""Predicts a run's peak memory on its device, by parts, before the run starts.

The memory of weights and optimizer state follows from their sizes; that of activations, and of the
gradients beside them, from fake steps of training, validation, previews and encoding on the largest
batch. The memory of PyTorch and its libraries is in `overhead.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from impasto.allocation import has_expandable_segments
from impasto.config.run import RunConfig
from impasto.data.records import Size
from impasto.models.networks.casting import cast_network
from impasto.models.networks.loading import BaseModel
from impasto.models.trainable import Trainable, blocks_of
from impasto.models.writing.saving import DTYPES
from impasto.training.compute.float8 import convert_layers
from impasto.training.compute.param_dtypes import copied_layers
from impasto.training.compute.precision import caches_casts, computed_kind
from impasto.training.optim.chunked import CHUNK
from impasto.training.optim.mixed_precision import COMPUTED
from impasto.training.optim.optimizers import find_row
from impasto.training.parallel.shards import WHOLE, Sharding
from impasto.training.planning.fake_float8 import fake_product
from impasto.training.planning.fake_step import StepCost
from impasto.training.planning.memory_facts import (
    numel_of,
    offloads_state,
    optimizer_bytes,
    shapes_of,
    steps_alone,
    structure_of,
)
from impasto.training.planning.meta_models import MetaModels
from impasto.training.planning.overhead import fragmentation_bytes, workspace_bytes
from impasto.training.planning.phases import Costs, OtherWork, Phase, fake_step_of, text_key
from impasto.training.planning.ram import ram_beside_gpu
from impasto.training.planning.standing import StandingMemory
from impasto.training.planning.transfers import has_second_backward
from impasto.training.planning.workload import Workload

BYTES_PER_ROUNDED_WEIGHT = 16
"""Bytes per 16-bit weight while it is stepped: itself and its gradient in 32 bits, and the
optimizer's intermediates, which are two 32-bit numbers for Adafactor."""

BYTES_PER_FACTORED_UPDATE = 8
"""Bytes per weight of a tensor while Adafactor steps it: its squared gradients or its update, and
one result computed from them, in float32 (transformers' `Adafactor.step`)."""

WIDENED_AT_ONCE = 20
"""Bytes per weight of a tensor while bitsandbytes steps it on a CPU: both moments in float32 and
the intermediates. Measured; its GPU kernels need none of them."""

NOT_MEASURED = StepCost(0, 0, 0, 0, 0)

_ITEMS = (
    "weights", "gradients", "optimizer", "average", "text_cache", "activations", "fragmentation",
    "workspace",
)  # fmt: skip


@dataclass(frozen=True)
class Footprint:
    """Bytes on the device during one phase of a run, by parts.

    Attributes:
        weights: Weights of all networks on the device, trained or frozen.
        gradients: Gradients that exist in this phase.
        optimizer: The optimizer's state.
        average: The running average of the weights.
        text_cache: Cached outputs of a frozen text encoder.
        activations: Activations of forward and backward, and half-precision copies of weights.
        fragmentation: Memory that PyTorch's allocator holds in pieces too small to be used.
        workspace: Memory of PyTorch and its libraries themselves.
        phase: A text that names the phase, such as "stepping the weights".
        flops: Floating-point operations of a training step on the largest batch.
        operations: Number of PyTorch operations of that step, regardless of their size.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    text_cache: int
    activations: int
    fragmentation: int
    workspace: int
    phase: str
    flops: int
    operations: int

    @property
    def total(self) -> int:
        """Bytes of all parts together."""
        return sum(self.by_item().values())

    def by_item(self) -> dict[str, int]:
        """Return the name of each part -> its bytes."""
        return {name.replace("_", " "): getattr(self, name) for name in _ITEMS}


class FootprintPredictor:
    """Predicts footprints for settings that may still change.

    Args:
        models: The base model without values, or a function that creates it.
        device_type: `cpu` or `cuda`.
        record: The file that caches the results of fake steps; None caches them in this process
            only.
        sharding: The fraction of the model that each process holds.
        workload: The work beside training that takes memory; None counts none.
    """

    def __init__(
        self,
        models: MetaModels | Callable[[], BaseModel],
        device_type: str,
        record: Path | None = None,
        sharding: Sharding = WHOLE,
        workload: Workload | None = None,
    ) -> None:
        self._sharding, self._workload = sharding, workload or Workload()
        self._meta_models = models if isinstance(models, MetaModels) else MetaModels(models)
        self._on_gpu = device_type == "cuda"
        self._device_type = device_type
        self._costs = Costs(record, self._meta_models.code)
        self._other = OtherWork(self._meta_models, device_type, self._workload, self._costs)
        self._standing = StandingMemory(
            device_type, sharding, self._workload, is_usual=self._meta_models.is_usual
        )

    def footprint(self, config: RunConfig, bucket: Size, batch: int) -> Footprint:
        """Return the footprint of the phase that takes the most memory.

        Args:
            config: The settings of the run.
            bucket: The size of the images in the run's largest batch.
            batch: The number of images in that batch.

        Raises:
            ImpastoError: The model cannot be read, or the settings do not fit it.
        """
        return max(self.all_phases(config, bucket, batch), key=lambda found: found.total)

    def least_bytes(self, config: RunConfig) -> int:
        """Return the bytes that a run takes whatever its images are; fast, as no fake step is run.

        Raises:
            ImpastoError: The model cannot be read, or the settings do not fit it.
        """
        model, trainable = self._meta_models.shown(config)
        state = self._standing.bytes_of(config, trainable, model)
        return self._at(config, self._stepping(config, trainable), state, NOT_MEASURED).total

    def all_phases(self, config: RunConfig, bucket: Size, batch: int) -> list[Footprint]:
        """Return the footprint of each phase of a run, training first.

        Raises:
            ImpastoError: The model cannot be read, or the settings do not fit it.
        """
        model, trainable = self._meta_models.shown(config)
        cost = self._step(config, trainable, bucket, batch)
        phases = [
            self._training(config, trainable, bucket, batch, cost),
            self._stepping(config, trainable),
            *self._other.phases(config, model, trainable, batch),
        ]
        phases = self._beside_graphs(config, trainable, phases)
        state = self._standing.bytes_of(config, trainable, model)
        return [self._at(config, phase, state, cost) for phase in phases]

    def ram(self, config: RunConfig) -> dict[str, int]:
        """Return the bytes that a GPU run keeps in RAM, by part; an empty dict on a CPU.

        Raises:
            ImpastoError: The model cannot be read, or the settings do not fit it.
        """
        if not self._on_gpu:
            return {}
        _, trainable = self._meta_models.shown(config)
        return ram_beside_gpu(config, trainable)

    def _at(
        self, config: RunConfig, phase: Phase, state: Mapping[str, int], cost: StepCost
    ) -> Footprint:
        """Return the footprint of one phase, from its own memory and the standing memory."""
        if phase.weights is not None:
            state = {**dict.fromkeys(state, 0), "weights": phase.weights}
        return Footprint(
            **state,
            gradients=phase.gradients,
            activations=phase.others,
            fragmentation=fragmentation_bytes(
                config,
                self._device_type,
                phase.gradients + phase.others,
                expandable=has_expandable_segments(),
            ),
            workspace=workspace_bytes(config, self._device_type, self._workload.buckets),
            phase=phase.name,
            flops=cost.flops,
            operations=cost.operations,
        )

    def _training(
        self, config: RunConfig, trainable: Trainable, bucket: Size, batch: int, cost: StepCost
    ) -> Phase:
        gradients, others = cost.gradient_bytes, cost.peak_bytes - cost.gradient_bytes
        if config.training.gradient_accumulation_steps > 1 or self._keeps_graphs(config):
            # gradients of earlier micro-steps already exist, or their buffers do
            gradients = self._all_gradients(config, trainable)
            others = cost.peak_bytes if config.training.weight_copies else cost.most_beside
        return Phase(
            f"training on {bucket} images, {batch} at a time",
            gradients // self._sharding.gradients,
            others
            + self._text_bytes(config, trainable, batch)
            + (self._transient(config, trainable) if steps_alone(config) else 0)
            + self._gathered_bytes(trainable),
        )

    def _keeps_graphs(self, config: RunConfig) -> bool:
        return config.training.cuda_graphs == "step" and self._on_gpu

    def _beside_graphs(
        self, config: RunConfig, trainable: Trainable, phases: list[Phase]
    ) -> list[Phase]:
        """Return the phases with the memory added that CUDA graphs of whole steps retain.

        That is all gradients, and a pool with the activations of the largest recorded batch. The
        first batch of another size is not recorded yet, and needs its own activations beside it.
        Phases before training are returned unchanged, and so are all phases without such graphs.
        """
        if not self._keeps_graphs(config):
            return phases
        pool, gradients = phases[0].others, self._all_gradients(config, trainable)
        return [
            replace(phase, gradients=gradients, others=phase.others + pool)
            if phase.weights is None
            else phase
            for phase in phases
        ]

    def _step(self, config: RunConfig, trainable: Trainable, bucket: Size, batch: int) -> StepCost:
        training = config.training
        key = (
            "step with its operations", self._device_type, str(bucket), batch,
            *text_key(config), config.method.kind,
            config.method.model_dump_json() if config.method.kind != "full" else "",
            computed_kind(config), training.weight_dtype, training.gradient_checkpointing,
            training.checkpointed_levels, training.optimizer_in_backward != "off",
            *(["second backward"] if has_second_backward(config) else []),
            *(["copies"] if training.weight_copies else []),
            *(["streamed"] if training.stream_weights else []),
            *([] if caches_casts(config) else ["casts go"]),
            *(["float8"] if training.float8 else []), structure_of(trainable),
        )  # fmt: skip

        def run_fake_step() -> StepCost:
            used = self._meta_models.trainable(config)
            for trained in used.modules:
                cast_network(trained.module, DTYPES[training.weight_dtype])
            if training.weight_copies:
                dtype = COMPUTED[computed_kind(config)]
                for module, name, weight in list(copied_layers(config, used.unet)):
                    setattr(module, name, nn.Parameter(weight.to(dtype)))
            if training.float8:
                convert_layers(used.unet, fake_product)
            return fake_step_of(config, used, self._device_type).step(bucket, batch)

        found = self._costs.remembered(key, lambda: asdict(run_fake_step()))
        return StepCost(**found)

    def _text_bytes(self, config: RunConfig, trainable: Trainable, batch: int) -> int:
        """Return the bytes of activations of trained text encoders; 0 if they are frozen.

        34 bytes per token, channel and layer in 16 bits, twice that in 32 bits: Korthikanti et
        al. 2022 (arXiv:2205.05198), eq. 1, without its attention matrices.
        """
        if not config.trains_text_encoder:
            return 0
        tokens = batch * 77 * (config.model.max_tokens // 75)
        size = COMPUTED[computed_kind(config)].itemsize
        learning = {trained.name for trained in trainable.modules}
        configs: list[Any] = [
            encoder.text_encoder.config
            for name, encoder in trainable.states.by_name().items()
            if name in learning
        ]
        widths = sum(
            int(text.hidden_size)
            * (2 if config.training.gradient_checkpointing else int(text.num_hidden_layers))
            for text in configs
        )
        return widths * 34 * tokens * size // 2

    def _stepping(self, config: RunConfig, trainable: Trainable) -> Phase:
        """Return the phase of the optimizer step: all gradients, and intermediates of one chunk."""
        gradients = 0 if steps_alone(config) else self._all_gradients(config, trainable)
        gradients //= self._sharding.gradients
        others = self._transient(config, trainable)
        return Phase("stepping the weights", gradients, others)

    def _all_gradients(self, config: RunConfig, trainable: Trainable) -> int:
        wide = DTYPES[config.training.weight_dtype].itemsize
        return wide * sum(trained.count() for trained in trainable.modules)

    def _transient(self, config: RunConfig, trainable: Trainable) -> int:
        """Return the bytes that an optimizer step allocates temporarily."""
        row, shapes = find_row(config.optimizer.kind), shapes_of(trainable)
        sizes = [shape.numel() for shape in shapes]
        at_once = max(sizes) if steps_alone(config) else max(CHUNK, *sizes)
        others = 0
        if config.training.weight_dtype != "fp32":
            others += BYTES_PER_ROUNDED_WEIGHT * min(at_once, sum(sizes))
        elif row.is_factored:
            others += BYTES_PER_FACTORED_UPDATE * max(sizes)
        if not self._on_gpu and row.has_8bit_states:
            others += WIDENED_AT_ONCE * max(sizes)
        if self._on_gpu and offloads_state(config):
            coming = min(2 * at_once, sum(sizes))  # the state of one chunk and of the next
            others += coming * optimizer_bytes(config, shapes) // sum(sizes)
        return others

    def _gathered_bytes(self, trainable: Trainable) -> int:
        """Return the bytes of gathered FSDP blocks: the current one, the next, and a gradient."""
        if self._sharding.weights == 1:
            return 0
        return 3 * 4 * max(numel_of(block) for block in blocks_of(trainable.network))
