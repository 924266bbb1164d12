"""How much memory a run will hold at most on the device it computes on, by parts, before it begins.

What the weights and the optimizer take follows from their numbers; activations, and gradients
beside them, from a rehearsal of the step on the largest batch. What PyTorch and its libraries take
themselves is a measured constant.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from impasto import files, presence
from impasto.config.run import RunConfig
from impasto.data.records import Size
from impasto.models.loading import BaseModel
from impasto.models.saving import DTYPES
from impasto.models.trainable import Trainable, blocks_of
from impasto.parsing import parse_json
from impasto.sampling.prompts import Prompt
from impasto.training.chunked import CHUNK
from impasto.training.methods import build_templates, build_trainable
from impasto.training.native_precision import computed_kind
from impasto.training.optimizers import find_row
from impasto.training.pictures import build_caption_rules
from impasto.training.precision import COMPUTED, autocast_dtype
from impasto.training.previews import build_prompts
from impasto.training.rehearsal import Rehearsal, StepCost, decoding_peak

RUNTIME = {"cpu": 570 << 20, "cuda": 850 << 20}
"""Bytes of Python, PyTorch and its libraries; on a GPU of CUDA's context and cuDNN's workspaces
(that number is an estimate). Measured on a processor with torch 2.13, diffusers, bitsandbytes."""
ROUNDED_AT_ONCE = 16
"""Bytes for each weight that is rounded to 16 bits just now: itself, its gradient and random bits,
each of 32 bits, and a copy."""

WIDENED_AT_ONCE = 20
"""Bytes for each weight of a tensor that bitsandbytes steps on a processor: both means in float32,
and what is computed on the way. Measured; on a GPU it has kernels that need none of it."""


@dataclass(frozen=True)
class Footprint:
    """Bytes on the device at the fullest moment.

    Attributes:
        weights: Of all parts that are there, trained or not.
        gradients: Those that are there in that moment.
        optimizer: The optimizer's state.
        average: The running average of the weights.
        activations: What forward and backward hold, with copies of weights in half precision.
        workspace: What the libraries take themselves.
        moment: What is being done then.
        flops: Floating-point operations of a step on the largest batch.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    workspace: int
    moment: str
    flops: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.by_part().values())

    def by_part(self) -> dict[str, int]:
        """Name -> bytes."""
        names = ("weights", "gradients", "optimizer", "average", "activations", "workspace")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Shares:
    """By how many processes each part of a footprint is divided.

    Attributes:
        weights: Those that learn, and their average.
        gradients: Once they are complete.
        optimizer: Its state.
        steps_copies: Whether what is stepped is a copy of the weights.
    """

    weights: int = 1
    gradients: int = 1
    optimizer: int = 1
    steps_copies: bool = False


@dataclass(frozen=True)
class _Moment:
    """Something that is done: bytes beside what is always there."""

    name: str
    gradients: int
    others: int


class FootprintMeter:
    """Measures footprints of settings that may still change.

    Args:
        outline: Makes the base model without values; each rehearsal uses one up.
        device_type: `cpu` or `cuda`.
        record: A file that rehearsals are remembered in; None remembers them here only.
        shares: How much of the model a process has.
    """

    def __init__(
        self,
        outline: Callable[[], BaseModel],
        device_type: str,
        record: Path | None = None,
        shares: Shares = Shares(),
    ) -> None:
        self._shares = shares
        self._outline, self._on_gpu, self._file = outline, device_type == "cuda", record
        self._device_type = device_type
        self._known: dict[str, dict[str, int]] = _read(record)

    def footprint(self, config: RunConfig, bucket: Size, batch: int) -> Footprint:
        """What a run of these settings takes whose largest batch is that.

        Raises:
            ImpastoError: The model cannot be read, or the settings do not fit it.
        """
        model = self._outline()
        trainable = build_trainable(config, model)
        cost = self._step(config, trainable, bucket, batch)
        moments = [
            _Moment(
                f"training on {bucket} pictures, {batch} at a time",
                cost.gradient_bytes // self._shares.gradients,
                cost.peak_bytes
                - cost.gradient_bytes
                + self._text_bytes(config, trainable, batch)
                + (self._transient(config, trainable) if _steps_alone(config) else 0)
                + self._together(trainable),
            ),
            self._stepping(config, trainable),
            *self._drawing(config),
        ]
        fullest = max(moments, key=lambda moment: moment.gradients + moment.others)
        learning = sum(part.count() for part in trainable.parts)
        averaged = config.training.ema_decay is not None and self._is_here(
            away=config.training.ema_on_cpu
        )
        state = find_row(config.optimizer.kind).state_bytes + 2 * (
            config.training.rounding == "kahan"
        )
        return Footprint(
            weights=self._weights(config, trainable, model),
            gradients=fullest.gradients,
            optimizer=int(state * learning) // self._shares.optimizer
            if self._is_here(away=_offloads(config))
            else 0,
            average=4 * learning * averaged // self._shares.weights,
            activations=fullest.others,
            workspace=RUNTIME[self._device_type],
            moment=fullest.name,
            flops=cost.flops,
        )

    def _is_here(self, *, away: bool) -> bool:
        """On a processor, what is kept away from a GPU is in the same memory."""
        return not (away and self._on_gpu)

    def _weights(self, config: RunConfig, trainable: Trainable, model: BaseModel) -> int:
        wide = DTYPES[config.training.weights].itemsize
        total = 0
        for module in (trainable.network, model.vae, model.text_encoder):
            for parameter in module.parameters():
                if parameter.requires_grad:
                    total += parameter.numel() * wide // self._shares.weights
                    if self._shares.steps_copies:
                        total += parameter.numel() * 4 // self._shares.optimizer
                else:
                    total += parameter.numel() * parameter.dtype.itemsize
        if not encodes_later(config):
            total -= 4 * _numbers(model.vae)  # it leaves when all is encoded
        if config.training.cache_text_to_disk and (self._on_gpu or not changes_words(config)):
            total -= 4 * _numbers(model.text_encoder)
        return total

    def _step(self, config: RunConfig, trainable: Trainable, bucket: Size, batch: int) -> StepCost:
        training = config.training
        words = (
            "step", torch.__version__, self._device_type, str(bucket), batch,
            config.model.max_tokens, config.model.token_join, config.method.kind,
            config.hypernetwork.model_dump_json() if config.method.kind != "full" else "",
            computed_kind(config), training.weights, training.gradient_checkpointing,
            training.checkpointed_levels, training.optimizer_in_backward != "off",
            _fingerprint(trainable),
        )  # fmt: skip

        def rehearse() -> StepCost:
            for part in trainable.parts:
                part.module.to(DTYPES[training.weights])
            return self._rehearsal(config, trainable).step(bucket, batch)

        found = self._remembered(words, lambda: asdict(rehearse()))
        return StepCost(**found)

    def _rehearsal(self, config: RunConfig, trainable: Trainable) -> Rehearsal:
        unet: Any = trainable.unet
        chunks = config.model.max_tokens // 75
        joined = {"a1111": 77 * chunks, "kohya": 75 * chunks + 2}
        return Rehearsal(
            trainable.network,
            joined[config.model.token_join],
            unet.config["cross_attention_dim"],
            autocast_dtype(computed_kind(config)),
            as_on_gpu=self._on_gpu,
            frees_gradients=config.training.optimizer_in_backward != "off",
        )

    def _text_bytes(self, config: RunConfig, trainable: Trainable, batch: int) -> int:
        """Activations of a text encoder that learns: 34 numbers per place, width and layer.

        Korthikanti et al. 2022 (arXiv:2205.05198), eq. 1, without its attention matrices.
        """
        if not config.method.train_text_encoder:
            return 0
        text: Any = trainable.states.text_encoder.config
        places = batch * 77 * (config.model.max_tokens // 75)
        layers = 2 if config.training.gradient_checkpointing else int(text.num_hidden_layers)
        size = COMPUTED[computed_kind(config)].itemsize
        return int(text.hidden_size) * 34 * places * layers * size // 2

    def _stepping(self, config: RunConfig, trainable: Trainable) -> _Moment:
        """The optimizer at work: all gradients, and what it makes for a chunk of weights."""
        wide = DTYPES[config.training.weights].itemsize
        gradients = 0 if _steps_alone(config) else wide * sum(p.count() for p in trainable.parts)
        gradients //= self._shares.gradients
        others = self._transient(config, trainable)
        return _Moment("stepping the weights", gradients, others)

    def _transient(self, config: RunConfig, trainable: Trainable) -> int:
        """What an optimizer step makes and frees again."""
        sizes = [p.numel() for part in trainable.parts for p in part.parameters().values()]
        at_once = max(sizes) if _steps_alone(config) else max(CHUNK, *sizes)
        others = 0
        if config.training.weights != "fp32":
            others += ROUNDED_AT_ONCE * min(at_once, sum(sizes))
        if not self._on_gpu and "8bit" in config.optimizer.kind:
            others += WIDENED_AT_ONCE * max(sizes)
        if self._on_gpu and _offloads(config):
            coming = min(2 * at_once, sum(sizes))  # one chunk's states, and the next one's
            others += int(coming * find_row(config.optimizer.kind).state_bytes)
        return others

    def _together(self, trainable: Trainable) -> int:
        """Blocks that are put together just now: one, the next one, and a gradient."""
        if self._shares.weights == 1:
            return 0
        return 3 * 4 * max(_numbers(block) for block in blocks_of(trainable.network))

    def _drawing(self, config: RunConfig) -> list[_Moment]:
        prompts = build_prompts(config)
        if not prompts:
            return []
        largest: Prompt = max(prompts, key=lambda prompt: prompt.width * prompt.height)
        size = Size(largest.width, largest.height)
        model = self._outline()
        words = ("drawing", torch.__version__, self._device_type, str(size),
                 computed_kind(config), _numbers(model.unet))  # fmt: skip

        def rehearse() -> dict[str, int]:
            trainable = build_trainable(config, self._outline())
            return {
                "unet": self._rehearsal(config, trainable).drawing_peak(size, 2),
                "vae": decoding_peak(model.vae, size, 1),
            }

        found = self._remembered(words, rehearse)
        vae = found["vae"] + (0 if encodes_later(config) else 4 * _numbers(model.vae))
        return [_Moment(f"drawing previews of {size}", 0, max(found["unet"], vae))]

    def _remembered(
        self, words: tuple[object, ...], rehearse: Callable[[], dict[str, int]]
    ) -> dict[str, int]:
        key = "|".join(map(str, words))
        if key not in self._known:
            self._known[key] = rehearse()
            if self._file is not None:
                files.remember_json(self._file, self._known)
        return self._known[key]


def encodes_later(config: RunConfig) -> bool:
    """Whether some pictures are encoded each time they are shown."""
    subsets = [subset for part in config.dataset.parts for subset in part.subsets]
    return any(s.random_crop or s.color_aug or s.face_crop_aug_range for s in subsets)


def changes_words(config: RunConfig) -> bool:
    """Whether some captions are not always the same."""
    subsets = [subset for part in config.dataset.parts for subset in part.subsets]
    varied = any(build_caption_rules(subset).changes_words for subset in subsets)
    return varied or build_templates(config) is not None


def _offloads(config: RunConfig) -> bool:
    return config.training.offload_optimizer or config.optimizer.kind.startswith("paged_")


def _steps_alone(config: RunConfig) -> bool:
    return config.training.optimizer_in_backward != "off"


def _numbers(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _fingerprint(trainable: Trainable) -> str:
    """What tells networks of other sizes apart."""
    unet: Any = trainable.unet
    named = {k: v for k, v in sorted(dict(unet.config).items()) if not k.startswith("_")}
    return f"{json.dumps(named, default=str)}|{sum(part.count() for part in trainable.parts)}"


def _read(file: Path | None) -> dict[str, dict[str, int]]:
    """What was remembered; a file that cannot be read is as good as none."""
    if file is None or not presence.is_file(file):
        return {}
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(content) if isinstance(content, Mapping) else {}
