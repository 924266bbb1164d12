"""The CLIP text encoders of a model, their choice of layer, and the device that they are on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from impasto.errors import ConfigError
from impasto.models.family import Reading
from impasto.models.networks.loading import BaseModel
from impasto.models.networks.offload import is_waiting, on_device, wait_again, wake_for_good
from impasto.models.tokenization.tokens import LENGTH


class ClipHiddenStates(nn.Module):
    """A CLIP text encoder that returns the hidden states of one of its layers.

    Args:
        text_encoder: transformers' CLIPTextModel, of version 4 (with `.text_model`) or 5, or
            CLIPTextModelWithProjection.
        reading: How its family uses its output.
        clip_skip: Layer to use instead of the family's, counted from the end. 2 is NovelAI's choice
            (NovelAI Improvements on Stable Diffusion, 2022): hidden_states[-2] + final layer norm.
            SD 2's encoder has one layer fewer than OpenCLIP's, so its last is the penultimate;
            layers are counted from that, as in sd-scripts. Runs of SDXL have none.

    Raises:
        ConfigError: The encoder has no such layer.
    """

    def __init__(
        self, text_encoder: nn.Module, reading: Reading, clip_skip: int | None = None
    ) -> None:
        super().__init__()
        self.text_encoder, self.reading = text_encoder, reading
        self.layer = reading.layer if clip_skip is None else clip_skip
        layers = len(self._inner.encoder.layers)
        if not 1 <= self.layer <= layers:
            raise ConfigError(
                f"model.clip_skip is {self.layer}, but this text encoder has {layers} layers; "
                f"give a number from 1 to {layers}."
            )

    @property
    def _inner(self) -> Any:
        return getattr(self.text_encoder, "text_model", self.text_encoder)

    @property
    def width(self) -> int:
        """The width of the hidden state of one token."""
        return int(self._inner.config.hidden_size)

    @property
    def pooled_width(self) -> int:
        """The width of the pooled text; 0 if it is not used."""
        return int(self._inner.config.projection_dim) if self.reading.pooled else 0

    def unused_modules(self) -> list[nn.Module]:
        """Return the modules that do not affect the output: layers after the used one, the norm."""
        if self.reading.pooled:  # computed from the last layer
            return []
        skipped = self.layer - 1
        layers = list(self._inner.encoder.layers[-skipped:]) if skipped else []
        return layers if self.reading.final_norm else [*layers, self._inner.final_layer_norm]

    def used_layers(self) -> list[nn.Module]:
        """Return the layers that affect the output."""
        unused = {id(module) for module in self.unused_modules()}
        return [layer for layer in self._inner.encoder.layers if id(layer) not in unused]

    def train_last_layers_only(self, count: int) -> None:
        """Train only the last `count` of the used layers, and the modules after them.

        Raises:
            ConfigError: Fewer layers are used.
        """
        used, unused = self.used_layers(), {id(module) for module in self.unused_modules()}
        if count > len(used):
            raise ConfigError(
                f"method.text_encoder_layers is {count}, but only {len(used)} layers are used."
            )
        self.requires_grad_(requires_grad=False)
        ends = [self._inner.final_layer_norm, getattr(self.text_encoder, "text_projection", None)]
        for module in (*used[-count:], *ends):
            if module is not None and id(module) not in unused:
                module.requires_grad_(requires_grad=True)

    def forward(self, input_ids: Int[Tensor, "b n"]) -> tuple[Tensor, Tensor | None]:
        """Return the hidden states of the chosen layer, and the pooled text or None."""
        output = self.text_encoder(input_ids, output_hidden_states=True)
        states = output.hidden_states[-self.layer]
        if self.reading.final_norm:
            states = self._inner.final_layer_norm(states)
        return states, output.text_embeds if self.reading.pooled else None


@dataclass(frozen=True)
class EncodedShape:
    """The shape of the text encoders' output for a chunk, as one tensor for the cache.

    Without a pooled text the tensor is the states, `[77, D]`; with one, both flattened and
    concatenated.

    Attributes:
        widths: Width of the states of each encoder.
        pooled: Width of the pooled text; 0 for none.
    """

    widths: tuple[int, ...]
    pooled: int = 0

    @property
    def numbers(self) -> int:
        """The number of values per chunk of text."""
        return LENGTH * sum(self.widths) + self.pooled

    def packed(self, states: Tensor, pooled: Tensor | None) -> Tensor:
        """Pack `[chunks, 77, D]` and `[chunks, P]` into one tensor for the cache."""
        return states if pooled is None else torch.cat([states.flatten(1), pooled], dim=1)

    def unpacked(self, encoded: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Return each encoder's states `[..., 77, D]`, and the pooled text `[..., P]` or None."""
        if not self.pooled:
            return torch.split(encoded, list(self.widths), dim=-1), None
        pooled = encoded[..., -self.pooled :]
        states = encoded[..., : -self.pooled].reshape(*encoded.shape[:-1], LENGTH, -1)
        return torch.split(states, list(self.widths), dim=-1), pooled


class TextStates(nn.Module):
    """The text encoders of a model as one module, for training and for wrapping by processes.

    Args:
        encoders: Encoders by name, in the order in which their states are concatenated.
    """

    def __init__(self, encoders: Mapping[str, ClipHiddenStates]) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)

    @classmethod
    def of(cls, model: BaseModel, clip_skip: int | None = None) -> TextStates:
        """Build the encoders of a base model; a `clip_skip` replaces the family's layer."""
        return cls(
            {
                component.name: ClipHiddenStates(
                    model.networks[component.name], component.text, clip_skip
                )
                for component in model.family.text_encoders
            }
        )

    def each(self) -> tuple[ClipHiddenStates, ...]:
        """Return the text encoders in the order of the family's table."""
        return tuple(self.encoders.values())  # type: ignore[arg-type]

    def by_name(self) -> dict[str, ClipHiddenStates]:
        """Return the text encoders by the names of their networks, in the same order."""
        return dict(self.encoders.items())  # type: ignore[arg-type]

    @property
    def shape(self) -> EncodedShape:
        """The shape of the encoded output of a chunk."""
        each = self.each()
        return EncodedShape(tuple(e.width for e in each), sum(e.pooled_width for e in each))

    def to_device(self, device: torch.device) -> TextStates:
        """Bring the encoders to a device, except offloaded ones, and return self."""
        for encoder in self.each():
            if not is_waiting(encoder.text_encoder):
                encoder.to(device)
        return self

    def stay_on(self, device: torch.device) -> None:
        """Bring the encoders to a device permanently, offloaded ones included."""
        for encoder in self.each():
            if is_waiting(encoder.text_encoder):
                wake_for_good(encoder.text_encoder, device)
            encoder.to(device)

    def leave_device(self) -> None:
        """Offload the encoders again, or bring those that never were offloaded to the CPU."""
        for encoder in self.each():
            if not wait_again(encoder.text_encoder):
                encoder.to("cpu")

    @property
    def are_waiting(self) -> bool:
        """Whether an encoder is offloaded and without values."""
        return any(is_waiting(encoder.text_encoder) for encoder in self.each())

    @contextlib.contextmanager
    def awake(self, device: torch.device) -> Iterator[None]:
        """Have the offloaded encoders on a device within the block."""
        with contextlib.ExitStack() as stack:
            for encoder in self.each():
                if is_waiting(encoder.text_encoder):
                    stack.enter_context(on_device(encoder.text_encoder, device))
            yield

    def forward(self, ids: Int[Tensor, "chunks n"]) -> Tensor:
        """Return the packed output (`EncodedShape`) of chunks with concatenated ids per encoder."""
        answers = [
            encoder(own)
            for encoder, own in zip(self.each(), torch.split(ids, LENGTH, dim=1), strict=True)
        ]
        pooled = [one for _, one in answers if one is not None]
        states = torch.cat([states for states, _ in answers], dim=-1)
        return self.shape.packed(states, torch.cat(pooled, dim=-1) if pooled else None)
