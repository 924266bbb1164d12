"""From captions to what the U-Net's cross-attention takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import ftfy
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from impasto.errors import ConfigError

REMEMBERED_CAPTIONS = 1024  # 236 KiB each for SD 1: at most 0.24 GiB


@runtime_checkable
class TextConditioner(Protocol):
    """Turns captions into keyword arguments of the U-Net."""

    def __call__(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        """Arguments for one forward pass, on the U-Net's device."""


class ClipStates(nn.Module):
    """A CLIP text encoder that answers with one of its layers, after the final layer norm.

    A module of its own, so that a wrapper for several processes goes around the whole of it, and
    so that the layers it never uses are known: they are not trained.

    Args:
        text_encoder: transformers' CLIPTextModel, of version 4 (with `.text_model`) or 5.
        clip_skip: Which layer from the end; None and 1 are the last. 2 is NovelAI's choice
            (NovelAI Improvements on Stable Diffusion, 2022): hidden_states[-2] + final layer norm.
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

    def forward(self, input_ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """Hidden states of the chosen layer, normalised."""
        output = self.text_encoder(input_ids, output_hidden_states=True)
        return self._inner.final_layer_norm(output.hidden_states[-self.clip_skip])  # type: ignore[no-any-return]


class ClipTextConditioner:
    """75 tokens of text between BOS and EOS, padded to 77 positions.

    Args:
        tokenizer: A CLIP tokenizer of transformers.
        states: The encoder, as `ClipStates` or wrapped for several processes.
        train: Whether gradients flow into the encoder.
        remember: Keep what each caption was encoded to. Only for a frozen encoder and at most
            `REMEMBERED_CAPTIONS` captions: beyond that, whole batches are faster.
    """

    def __init__(
        self, tokenizer: Any, states: nn.Module, *, train: bool = False, remember: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._states = states
        self._train = train
        self._remember = remember
        self._known: dict[str, Tensor] = {}

    def __call__(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        """`{"encoder_hidden_states": [B, 77, D]}`."""
        with torch.set_grad_enabled(self._train and torch.is_grad_enabled()):
            encode = self._remembered if self._remember else self._encode
            return {"encoder_hidden_states": encode(captions)}

    def _encode(self, captions: Sequence[str]) -> Float[Tensor, "b 77 d"]:
        device = next(self._states.parameters()).device
        return self._states(self.token_ids(captions).to(device))  # type: ignore[no-any-return]

    def _remembered(self, captions: Sequence[str]) -> Float[Tensor, "b 77 d"]:
        """Encode only captions that were not met before: a frozen encoder never changes its mind.

        Captions are encoded one by one: in a batch their last bits would depend on the company in
        which they were first met, which a resumed run does not repeat.
        """
        for caption in dict.fromkeys(captions):
            if caption not in self._known:
                self._known[caption] = self._encode([caption])[0]
        return torch.stack([self._known[caption] for caption in captions])

    def token_ids(self, captions: Sequence[str]) -> Int[Tensor, "b 77"]:
        """Token ids of cleaned texts; what is over 75 tokens is cut off.

        OpenAI's CLIP repairs text with ftfy before tokenising; transformers 5 no longer does.
        """
        cleaned = [ftfy.fix_text(caption) for caption in captions]
        tokens = self._tokenizer(
            cleaned, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        )
        return tokens.input_ids  # type: ignore[no-any-return]

    def too_long(self, captions: Sequence[str]) -> int:
        """How many captions have more than 75 tokens, and so lose words."""
        lengths = [len(ids) for ids in self._tokenizer(list(captions)).input_ids]
        return sum(length > 77 for length in lengths)
