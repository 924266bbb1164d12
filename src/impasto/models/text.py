"""From captions to what the U-Net's cross-attention takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from impasto.diffusion.transfer import to_device
from impasto.errors import ConfigError
from impasto.models.offload import META, on_device
from impasto.models.text_memory import TextMemory
from impasto.models.tokens import LENGTH, ChunkedText, TextTokens


@runtime_checkable
class TextConditioner(Protocol):
    """Turns captions into keyword arguments of the U-Net."""

    def __call__(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        """Arguments for one forward pass, on the U-Net's device."""


class ClipHiddenStates(nn.Module):
    """A CLIP text encoder that answers with one of its layers, after the final layer norm.

    A module of its own, so that a wrapper for several processes goes around the whole of it, and
    so that the layers it never uses are known: they are not trained.

    Args:
        text_encoder: transformers' CLIPTextModel, of version 4 (with `.text_model`) or 5.
        clip_skip: Which layer from the end; None and 1 are the last. 2 is NovelAI's choice
            (NovelAI Improvements on Stable Diffusion, 2022): hidden_states[-2] + final layer norm.
            SD 2's encoder has one layer less than OpenCLIP's, so its last is the penultimate.
    """

    def __init__(self, text_encoder: nn.Module, clip_skip: int | None = None) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.clip_skip = clip_skip or 1
        layers = len(self._inner.encoder.layers)
        if self.clip_skip > layers:
            raise ConfigError(
                f"model.clip_skip is {clip_skip}, but this text encoder has {layers} layers; "
                f"give a number from 1 to {layers}."
            )

    @property
    def _inner(self) -> Any:
        return getattr(self.text_encoder, "text_model", self.text_encoder)

    def unused_layers(self) -> list[nn.Module]:
        """The layers after the one that is taken."""
        skipped = self.clip_skip - 1
        return list(self._inner.encoder.layers[-skipped:]) if skipped else []

    def train_last_layers_only(self, count: int) -> None:
        """Let only the last `count` layers of those that are used learn, and the final norm.

        Raises:
            ConfigError: There are not so many.
        """
        used = list(self._inner.encoder.layers)
        used = used[: len(used) - len(self.unused_layers())]
        if count > len(used):
            raise ConfigError(
                f"method.text_encoder_layers is {count}, but only {len(used)} layers are used."
            )
        self.requires_grad_(requires_grad=False)
        for module in (*used[-count:], self._inner.final_layer_norm):
            module.requires_grad_(requires_grad=True)

    def forward(self, input_ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """Hidden states of the chosen layer, normalised."""
        output = self.text_encoder(input_ids, output_hidden_states=True)
        return self._inner.final_layer_norm(output.hidden_states[-self.clip_skip])  # type: ignore[no-any-return]


class ClipTextConditioner:
    """Captions, in the layout of `tokens`, to states of a CLIP encoder.

    Args:
        tokens: Cuts captions into chunks.
        states: The encoder, as `ClipHiddenStates` or wrapped for several processes.
        device: Where the U-Net is; None means where the encoder is.
        train: Whether gradients flow into the encoder.
        memory: Keeps what chunks were encoded to; for a frozen encoder only.
    """

    def __init__(
        self,
        tokens: TextTokens,
        states: nn.Module,
        *,
        device: torch.device | None = None,
        train: bool = False,
        memory: TextMemory | None = None,
    ) -> None:
        self.tokens = tokens
        self._states = states
        self._device = device
        self._train = train
        self._memory = memory

    def __call__(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        """`{"encoder_hidden_states": [B, N, D]}`; N is 77 for one chunk."""
        texts = self._of_one_length([self.tokens(caption) for caption in captions])
        ids = torch.tensor([text.ids for text in texts])
        with torch.set_grad_enabled(self._train and torch.is_grad_enabled()):
            flat = ids.flatten(0, 1)
            encoded = self._encode(flat) if self._memory is None else self._remembered(flat)
            states = encoded.view(*ids.shape[:2], *encoded.shape[1:])
            if any(text.has_emphasis for text in texts):
                weights = torch.tensor([text.weights for text in texts]).to(states)
                keep_mean = self.tokens.layout.emphasis == "mean"
                states = emphasised(states, weights, keep_mean=keep_mean)
            return {"encoder_hidden_states": JOINERS[self.tokens.layout.join](states)}

    @property
    def is_frozen(self) -> bool:
        """Whether the same captions always give the same states."""
        return self._memory is not None

    def learn(self, *, now: bool) -> None:
        """Whether gradients flow into the encoder from now on; of one that may learn."""
        self._train = now

    def too_long(self, captions: Sequence[str]) -> int:
        """How many captions have more tokens than there is room for, and so lose words."""
        return self.tokens.too_long(captions)

    def encode_ahead(self, captions: Sequence[str]) -> None:
        """Have the memory hold all that these captions need."""
        if self._memory is not None:
            chunks = {ids for caption in captions for ids in self.tokens(caption).ids}
            self._memory.encode_ahead(sorted({*chunks, self.tokens.empty[0]}), self._encode)

    def leave_device(self) -> None:
        """Bring the encoder to the CPU; what is not remembered is encoded there from now on."""
        self._states.to("cpu")

    def _of_one_length(self, texts: list[ChunkedText]) -> list[ChunkedText]:
        """Fill a batch up with empty chunks, as A1111 does."""
        longest = max(len(text.ids) for text in texts)
        ids, weights = self.tokens.empty
        return [
            ChunkedText(
                text.ids + (ids,) * (longest - len(text.ids)),
                text.weights + (weights,) * (longest - len(text.ids)),
            )
            for text in texts
        ]

    def _encode(self, ids: Int[Tensor, "chunks 77"]) -> Float[Tensor, "chunks 77 d"]:
        home = next(self._states.parameters()).device
        if home == META:  # a caption that was not encoded ahead
            device = self._device or torch.device("cpu")
            with on_device(self._states.text_encoder, device):  # type: ignore[arg-type]
                return self._states(to_device(ids, device))  # type: ignore[no-any-return]
        return self._states(to_device(ids, home)).to(self._device or home)  # type: ignore[no-any-return]

    def _remembered(self, ids: Int[Tensor, "chunks 77"]) -> Float[Tensor, "chunks 77 d"]:
        assert self._memory is not None  # noqa: S101 - asked by the caller
        return self._memory.states_of(ids, self._encode)


def emphasised(
    states: Float[Tensor, "b chunks n d"],
    weights: Float[Tensor, "b chunks n"],
    *,
    keep_mean: bool,
) -> Float[Tensor, "b chunks n d"]:
    """Multiply each position by its weight; A1111's `modules/sd_emphasis.py`.

    With `keep_mean` the mean of each chunk is brought back to what it was. A1111 takes it over all
    images of a batch, which are of one prompt there; here it is taken per text, so that a caption
    does not depend on its company.
    """
    changed = states * weights.unsqueeze(-1)
    if not keep_mean:
        return changed
    before, after = states.mean((-2, -1), keepdim=True), changed.mean((-2, -1), keepdim=True)
    return changed * (before / after)


def join_chunks(states: Float[Tensor, "b chunks n d"]) -> Float[Tensor, "b positions d"]:
    """A1111's way: one chunk after the other, each with its BOS and EOS."""
    return states.flatten(1, 2)


def join_lines(states: Float[Tensor, "b chunks n d"]) -> Float[Tensor, "b positions d"]:
    """sd-scripts' way: the first BOS, 75 states of each chunk, the last position of the last."""
    if states.shape[1] == 1:
        return states[:, 0]
    inner = states[:, :, 1 : LENGTH - 1].flatten(1, 2)
    return torch.cat([states[:, 0, :1], inner, states[:, -1, -1:]], dim=1)


JOINERS = {"a1111": join_chunks, "kohya": join_lines}
