"""The modules that a run trains, the frozen ones beside them, and the tensors that it saves."""

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
    """A trained module, with its learning rate.

    Attributes:
        name: Name of the component, or of the method, in states, exports and logs.
        module: Module whose tensors are saved.
        lr: Learning rate at the peak of the schedule.
        block_lrs: Other learning rates, by prefix of the parameter names; of several matching
            prefixes, the longest counts. Parameters with rate 0 are not trained: see
            `freeze_blocks`.
        from_step: First optimizer step in which it is trained.
        until_step: First optimizer step in which it is no longer trained; None means that it is
            trained to the end.
        shards: This process's shards of the parameters, if they are sharded.
        reads_text: Whether it is a text encoder: captions are encoded with gradients while it is
            trained.
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
        """Return the trained parameters by name; of sharded ones, the shards of this process."""
        return dict(self._whole() if self.shards is None else self.shards)

    def count(self) -> int:
        """Return the total number of trained values."""
        return sum(parameter.numel() for parameter in self._whole().values())

    def _whole(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.module.named_parameters() if p.requires_grad}

    def by_rate(self) -> list[tuple[float, dict[str, nn.Parameter]]]:
        """Return the trained parameters in groups of equal rate, the module's own rate first."""
        groups: dict[str, dict[str, nn.Parameter]] = {"": {}}
        for name, parameter in self.parameters().items():
            groups.setdefault(block_of(name, self.block_lrs), {})[name] = parameter
        return [
            (self.block_lrs.get(block, self.lr), parameters)
            for block, parameters in groups.items()
            if parameters
        ]

    def is_trained_at(self, step: int) -> bool:
        """Return whether the module is trained in a step, counted from 0."""
        return step >= self.from_step and (self.until_step is None or step < self.until_step)


@runtime_checkable
class Trainable(Protocol):
    """A method of training: which modules are trained and which of their tensors are saved.

    Attributes:
        unet: diffusers' U-Net with everything attached to it; validation and previews call it.
        network: Module that training calls instead, and that accelerate wraps; all trained
            parameters except those of text encoders are among its own.
        states: The text encoders.
        modules: Trained modules.
        hypernetworks: Hypernetworks attached to the U-Net.
        family: Family of the base model.
    """

    unet: nn.Module
    network: nn.Module
    states: TextStates
    modules: tuple[TrainedModule, ...]
    hypernetworks: HypernetworkStack
    family: Family

    def export(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return component -> tensors by name, for the exported model."""


@dataclass(frozen=True)
class TextEncoderTraining:
    """Settings for training the text encoders beside the U-Net.

    Attributes:
        lr: Learning rate by the encoder's name; an encoder with rate 0 is not trained.
        last_layers: Number of trained layers, counted from the last layer used; None for all.
        from_step: First optimizer step in which they are trained.
        until_step: First optimizer step in which they are no longer trained; None if they are
            trained to the end.
    """

    lr: Mapping[str, float]
    last_layers: int | None = None
    from_step: int = 0
    until_step: int | None = None


class FullFineTune:
    """Trains the whole U-Net, and the text encoders if selected.

    Args:
        model: Base model; its modules are changed in place.
        lr: Learning rate of the U-Net.
        text_encoder: How the text encoders are trained; None leaves them frozen.
        block_lrs: Other learning rates for blocks of the U-Net; 0 freezes a block.
        clip_skip: Layer of the text encoder that is used; later layers are never trained.
        gradient_checkpointing: Whether activations are recomputed in the backward pass.
        checkpointed_levels: Number of the U-Net's resolutions, from the highest, whose activations
            are recomputed; None for all.
        only: Patterns of parameter names of the U-Net; only matching parameters are trained, and
            all if it is empty.
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
        """Return component -> tensors by name, of the trained components."""
        return {trained.name: trained.module.state_dict() for trained in self.modules}


def _let_learn(encoder: ClipHiddenStates, layers: int | None) -> None:
    """Unfreeze the modules that affect a text encoder's output, or only its last `layers` ones."""
    encoder.requires_grad_(requires_grad=True).train()
    for module in encoder.unused_modules():
        module.requires_grad_(requires_grad=False)
    if layers is not None:
        encoder.train_last_layers_only(layers)


def block_of(name: str, blocks: Collection[str]) -> str:
    """Return the block that contains a parameter: of those that prefix its name, the longest.

    Returns an empty string if no block does.
    """
    return max((block for block in blocks if name.startswith(f"{block}.")), key=len, default="")


def freeze_blocks(unet: nn.Module, rates: Mapping[str, float]) -> None:
    """Freeze the parameters of blocks whose learning rate is 0."""
    for name, parameter in unet.named_parameters():
        if rates.get(block_of(name, rates)) == 0:
            parameter.requires_grad = False


def freeze_others(unet: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the parameters whose names match none of the patterns."""
    for name, parameter in unet.named_parameters():
        if not any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad = False


def found_by(unet: nn.Module, pattern: str) -> dict[str, nn.Parameter]:
    """Return the parameters whose names match a pattern, frozen ones included."""
    return {n: p for n, p in unet.named_parameters() if fnmatchcase(n, pattern)}


class UNetWithHypernetwork(nn.Module):
    """A U-Net and its hypernetwork as one module, whose gradients several processes exchange."""

    def __init__(self, unet: nn.Module, hypernetwork: Hypernetwork) -> None:
        super().__init__()
        self.unet, self.hypernetwork = unet, hypernetwork

    def forward(self, *args: Any, **options: Any) -> Any:
        """Return the U-Net's output; its attention calls the hypernetwork."""
        return self.unet(*args, **options)


class HypernetworkTraining:
    """Trains a hypernetwork; the model stays frozen.

    Args:
        model: Base model; the hypernetwork is attached to its U-Net.
        hypernetwork: Hypernetwork to train.
        name: Name of the hypernetwork.
        lr: Its learning rate.
        clip_skip: Layer of the text encoder that is used.
        gradient_checkpointing: Whether activations are recomputed in the backward pass.
        checkpointed_levels: Number of the U-Net's resolutions, from the highest, whose activations
            are recomputed; None for all.
        frozen_dtype: Type that the U-Net's weights are converted to; None leaves them unchanged.

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
        """Return the tensors of the hypernetwork, for its file."""
        return {trained.name: trained.module.state_dict() for trained in self.modules}


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a U-Net or a text encoder, with some millions of parameters each.

    Blocks are residual and attention blocks and transformer layers: the modules in the lists
    `resnets`, `attentions` and `layers`.
    """
    return [
        module
        for name, module in network.named_modules()
        if name.rpartition(".")[0].rpartition(".")[2] in _BLOCK_LISTS
    ]


def recomputed_blocks(unet: Any) -> list[nn.Module]:
    """Return the blocks of a U-Net that recompute their activations if all levels do.

    These are residual blocks and transformer blocks (diffusers 0.42). The first residual block of
    the middle block retains its activations even then.
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
    """Have the blocks of a U-Net's highest resolutions recompute their activations.

    Activations are largest there: of those of SD 1 at 512 pixels, two thirds are in the blocks of
    64x64 latents. The middle block belongs to the lowest resolution.

    Args:
        unet: diffusers' UNet2DConditionModel.
        levels: Number of resolutions, from the highest; None for all.
    """
    unet.enable_gradient_checkpointing()
    down, up = list(unet.down_blocks), list(unet.up_blocks)
    kept = len(down) if levels is None else min(levels, len(down))
    others = [*down[kept:], *up[: len(up) - kept], *([unet.mid_block] if kept < len(down) else [])]
    for block in others:
        for module in block.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False
