"""What a run trains: the modules that learn, the ones that only compute, and what is saved."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from impasto.models.family import Family
from impasto.models.networks.casting import cast_network
from impasto.models.networks.hypernetwork import Hypernetwork, HypernetworkStack
from impasto.models.networks.loading import BaseModel
from impasto.models.text.text_states import ClipHiddenStates, TextStates


@dataclass(frozen=True)
class TrainedModule:
    """A module that learns, with its learning rate.

    Attributes:
        name: Of the component, or what it is: its name in states, exports and logs.
        module: The module whose tensors are saved.
        lr: Its learning rate at the top of the schedule.
        block_lrs: Other rates for parameters whose names begin so; of several, the longest
            beginning counts. What has rate 0 does not learn: see `freeze_blocks`.
        from_step: The optimizer step from which it learns.
        until_step: The one from which it learns no more; None means to the end.
        shards: What of its parameters this process holds, where they are sharded.
        reads_text: Whether it is a text encoder: captions are encoded with gradients if it learns.
    """

    name: str
    module: nn.Module
    lr: float
    block_lrs: Mapping[str, float] = field(default_factory=dict)
    from_step: int = 0
    until_step: int | None = None
    shards: Mapping[str, nn.Parameter] | None = None
    reads_text: bool = False

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name; what this process holds of them."""
        return dict(self._whole() if self.shards is None else self.shards)

    def count(self) -> int:
        """How many numbers learn, in all."""
        return sum(parameter.numel() for parameter in self._whole().values())

    def _whole(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.module.named_parameters() if p.requires_grad}

    def by_rate(self) -> list[tuple[float, dict[str, nn.Parameter]]]:
        """The parameters that learn in groups of one rate, the part's own first."""
        groups: dict[str, dict[str, nn.Parameter]] = {"": {}}
        for name, parameter in self.parameters().items():
            groups.setdefault(block_of(name, self.block_lrs), {})[name] = parameter
        return [
            (self.block_lrs.get(block, self.lr), parameters)
            for block, parameters in groups.items()
            if parameters
        ]

    def is_trained_at(self, step: int) -> bool:
        """Whether the part learns in a step, counted from 0."""
        return step >= self.from_step and (self.until_step is None or step < self.until_step)


@runtime_checkable
class Trainable(Protocol):
    """A method of training: which modules learn and what is saved of them.

    Attributes:
        unet: diffusers' U-Net, with whatever is attached to it: validation and previews call it.
        network: What training calls in its place, as accelerate wraps it: has all that learns
            there among its parameters.
        states: The text encoders.
        modules: What learns.
        hypernetworks: Those that are attached.
        family: Of the base model.
    """

    unet: nn.Module
    network: nn.Module
    states: TextStates
    modules: tuple[TrainedModule, ...]
    hypernetworks: HypernetworkStack
    family: Family

    def export(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Part -> tensors by name, for the exported model."""


@dataclass(frozen=True)
class TextEncoderTraining:
    """How text encoders learn beside the U-Net.

    Attributes:
        lr: Its learning rate, by the encoder's name; one with rate 0 does not learn.
        last_layers: Only so many of the layers that are used learn, the last ones; None is all.
        from_step: The step from which it learns.
        until_step: The step from which it does not any more; None is never.
    """

    lr: Mapping[str, float]
    last_layers: int | None = None
    from_step: int = 0
    until_step: int | None = None


class FullFineTune:
    """The whole U-Net learns, and the text encoder if asked.

    Args:
        model: The base model; its modules are changed in place.
        lr: Learning rate of the U-Net.
        text_encoder: How the text encoder learns; None leaves it as it is.
        block_lrs: Other learning rates for blocks of the U-Net; 0 leaves one as it is.
        clip_skip: Which layer of the text encoder is used; later ones never learn.
        gradient_checkpointing: Recompute activations in the backward pass.
        checkpointed_levels: Of so many of the U-Net's resolutions, the highest first; None is all.
        only: Patterns of names of the U-Net's parameters, of which alone learn; empty is all.
    """

    def __init__(
        self,
        model: BaseModel,
        *,
        lr: float,
        text_encoder: TextEncoderTraining | None = None,
        block_lrs: Mapping[str, float] | None = None,
        clip_skip: int | None = None,
        gradient_checkpointing: bool = False,
        checkpointed_levels: int | None = None,
        only: Sequence[str] = (),
    ) -> None:
        self.unet = model.unet.requires_grad_(requires_grad=True).train()
        self.network: nn.Module = self.unet
        self.hypernetworks = HypernetworkStack()
        self.family, self.states = model.family, TextStates.of(model, clip_skip)
        freeze_blocks(self.unet, block_lrs or {})
        if only:
            freeze_others(self.unet, only)
        modules = [TrainedModule(model.family.unet.name, self.unet, lr, block_lrs or {})]
        if text_encoder is not None:
            first, until = text_encoder.from_step, text_encoder.until_step
            for name, encoder in self.states.by_name().items():
                rate, network = text_encoder.lr[name], encoder.text_encoder
                if rate > 0:
                    _let_learn(encoder, text_encoder.last_layers)
                    modules.append(
                        TrainedModule(name, network, rate, {}, first, until, reads_text=True)
                    )
        if gradient_checkpointing:
            checkpoint_levels(self.unet, checkpointed_levels)
            for trained in modules[1:]:
                text: Any = trained.module  # its method was renamed in transformers 5
                enable = getattr(text, "activation_checkpointing_enable", None)
                (enable or text.gradient_checkpointing_enable)()
        self.modules = tuple(modules)

    def export(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The tensors of the parts that learn."""
        return {trained.name: trained.module.state_dict() for trained in self.modules}


def _let_learn(encoder: ClipHiddenStates, layers: int | None) -> None:
    """Let learn what a text encoder's answers depend on, or only so many last layers of it."""
    encoder.requires_grad_(requires_grad=True).train()
    for module in encoder.unused_modules():
        module.requires_grad_(requires_grad=False)
    if layers is not None:
        encoder.train_last_layers_only(layers)


def block_of(name: str, blocks: Collection[str]) -> str:
    """The block that a parameter of this name is in: the longest that its name begins with.

    Empty where there is none.
    """
    return max((block for block in blocks if name.startswith(f"{block}.")), key=len, default="")


def freeze_blocks(unet: nn.Module, rates: Mapping[str, float]) -> None:
    """Have the parameters of blocks whose rate is 0 not learn."""
    for name, parameter in unet.named_parameters():
        if rates.get(block_of(name, rates)) == 0:
            parameter.requires_grad = False


def freeze_others(unet: nn.Module, patterns: Sequence[str]) -> None:
    """Have the parameters whose names fit no pattern not learn."""
    for name, parameter in unet.named_parameters():
        if not any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad = False


def found_by(unet: nn.Module, pattern: str) -> dict[str, nn.Parameter]:
    """The parameters whose names fit a pattern, whether they learn or not."""
    return {n: p for n, p in unet.named_parameters() if fnmatchcase(n, pattern)}


class UNetWithHypernetwork(nn.Module):
    """A U-Net and what is attached to it, as one module: what several processes exchange."""

    def __init__(self, unet: nn.Module, hypernetwork: Hypernetwork) -> None:
        super().__init__()
        self.unet, self.hypernetwork = unet, hypernetwork

    def forward(self, *args: Any, **options: Any) -> Any:
        """The U-Net's output; its attention asks the hypernetwork."""
        return self.unet(*args, **options)


class HypernetworkTraining:
    """A hypernetwork learns; the model stays as it is.

    Args:
        model: The base model; the hypernetwork is attached to its U-Net.
        hypernetwork: What learns.
        name: What it is called.
        lr: Its learning rate.
        clip_skip: Which layer of the text encoder is used.
        gradient_checkpointing: Recompute activations in the backward pass.
        checkpointed_levels: Of so many of the U-Net's resolutions, the highest first; None is all.
        frozen_dtype: What the U-Net's weights are kept in; None leaves them.

    Raises:
        ModelError: The hypernetwork is for a U-Net of other widths.
    """

    def __init__(
        self,
        model: BaseModel,
        hypernetwork: Hypernetwork,
        name: str,
        *,
        lr: float,
        clip_skip: int | None = None,
        gradient_checkpointing: bool = False,
        checkpointed_levels: int | None = None,
        frozen_dtype: torch.dtype | None = None,
    ) -> None:
        self.unet = model.unet.requires_grad_(requires_grad=False).train()
        if frozen_dtype is not None:
            cast_network(self.unet, frozen_dtype)
        hypernetwork.requires_grad_(requires_grad=True).train()
        self.hypernetworks = HypernetworkStack()
        self.hypernetworks.add(name, hypernetwork)
        self.hypernetworks.attach(self.unet)
        self.network: nn.Module = UNetWithHypernetwork(self.unet, hypernetwork)
        self.family, self.states = model.family, TextStates.of(model, clip_skip)
        self.modules: tuple[TrainedModule, ...] = (TrainedModule("hypernetwork", hypernetwork, lr),)
        if gradient_checkpointing:
            checkpoint_levels(self.unet, checkpointed_levels)

    def export(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The tensors of the hypernetwork, for its file."""
        return {trained.name: trained.module.state_dict() for trained in self.modules}


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The blocks of a U-Net or a text encoder, of some millions of numbers each.

    Residual and attention blocks, and transformer layers: the modules in the lists of these names.
    """
    return [
        module
        for name, module in network.named_modules()
        if name.rpartition(".")[0].rpartition(".")[2] in _BLOCK_LISTS
    ]


def recomputed_blocks(unet: Any) -> list[nn.Module]:
    """The blocks of a U-Net that compute their activations again where all levels do.

    Residual blocks and transformer blocks (diffusers 0.42). The first residual block of the middle
    keeps its activations even then.
    """
    found: list[nn.Module] = []
    for module in unet.modules():
        if hasattr(module, "gradient_checkpointing"):
            residual = list(getattr(module, "resnets", []))
            found += residual[1:] if module is unet.mid_block else residual
            found += list(getattr(module, "transformer_blocks", []))
    return found


_BLOCK_LISTS = {"resnets", "attentions", "layers"}


def checkpoint_levels(unet: Any, levels: int | None) -> None:
    """Have the blocks of a U-Net's highest resolutions compute their activations again.

    Activations are largest there: of those of SD 1 at 512 pixels, two thirds are in the blocks of
    64x64 latents. The middle block counts to the lowest resolution.

    Args:
        unet: diffusers' UNet2DConditionModel.
        levels: How many resolutions; None is all.
    """
    unet.enable_gradient_checkpointing()
    down, up = list(unet.down_blocks), list(unet.up_blocks)
    kept = len(down) if levels is None else min(levels, len(down))
    others = [*down[kept:], *up[: len(up) - kept], *([unet.mid_block] if kept < len(down) else [])]
    for block in others:
        for module in block.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False
