"""From captions to what the U-Net's cross-attention takes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor, nn

from impasto.data.engines.process_group import ALONE, CacheShare
from impasto.data.records import Geometry
from impasto.diffusion.conditioning import Conditioning
from impasto.diffusion.transfer import to_device
from impasto.errors import ConfigError
from impasto.models.family import SizeConditioning
from impasto.models.networks.loading import BaseModel
from impasto.models.text.conditioning import unet_conditioning, without_text
from impasto.models.text.text_memory import TextCache
from impasto.models.text.text_states import EncodedShape, TextStates
from impasto.models.tokenization.joining import JOINERS, apply_emphasis
from impasto.models.tokenization.tokens import ChunkedText, TextTokens

CPU = torch.device("cpu")


@runtime_checkable
class TextConditioner(Protocol):
    """Turns captions, and where the pixels beside them come from, into what the U-Net is told."""

    def __call__(self, captions: Sequence[str], geometry: Sequence[Geometry]) -> Conditioning:
        """What the U-Net is called with for a batch, on its device.

        Args:
            captions: One of each sample.
            geometry: Where the pixels of each sample come from.
        """


def require_zeroes_empty_text(model: BaseModel, asked: str) -> None:
    """Make sure that a model's family can be given zeros for an empty text.

    Args:
        model: The model.
        asked: What asked for it, as the subject of a sentence.

    Raises:
        ConfigError: It cannot: it always encodes the empty text.
    """
    if model.family.pipeline.empty_text_entry is None:
        raise ConfigError(
            f"{asked} has no effect: {model.contents.name} is {model.family.name}, which always "
            f"encodes the empty text. Take it out."
        )


class ClipTextConditioner:
    """Captions, in the layout of `tokens`, to states of CLIP encoders.

    Args:
        tokens: Cuts captions into chunks, for each encoder.
        states: The encoders, as `TextStates` or wrapped for several processes.
        shape: What these answer with; None is the states of one.
        sizes: The size conditioning of the U-Net; None for none.
        device: Where the U-Net is; None means where the encoders are.
        train: Whether gradients flow into them.
        memory: Keeps what chunks were encoded to; for frozen encoders only.
        zeroes_empty_text: Whether an empty caption is zeros instead of the encoded empty text; what
            `memory` keeps is the same either way.
    """

    def __init__(
        self,
        tokens: Sequence[TextTokens],
        states: nn.Module,
        shape: EncodedShape | None = None,
        *,
        sizes: SizeConditioning | None = None,
        device: torch.device | None = None,
        train: bool = False,
        memory: TextCache | None = None,
        zeroes_empty_text: bool = False,
    ) -> None:
        self.tokens = tuple(tokens)
        self._states, self._shape, self._sizes = states, shape, sizes
        self._device = device
        self._train = train
        self._memory = memory
        self._zeroes_empty_text = zeroes_empty_text

    def __call__(self, captions: Sequence[str], geometry: Sequence[Geometry] = ()) -> Conditioning:
        """States `[B, N, D]`, where N is 77 for one chunk, and what the family takes besides.

        Raises:
            ValueError: The U-Net is told sizes, and there is not one geometry for each caption.
        """
        texts = self._pad_chunks([[cut(text) for text in captions] for cut in self.tokens])
        ids = torch.tensor([[text.ids for text in own] for own in texts])
        with torch.set_grad_enabled(self._train and torch.is_grad_enabled()):
            rows = ids.permute(1, 2, 0, 3).flatten(2)  # [B, chunks, encoders x 77]
            flat = rows.flatten(0, 1)
            chunks = rows.shape[1]
            encoded = self._encode(flat) if self._memory is None else self._cached(flat, chunks)
            by_text = encoded.view(*rows.shape[:2], *encoded.shape[1:])
            each, pooled = self._unpacked(by_text)
            joined = [self._joined(one, own) for one, own in zip(each, texts, strict=True)]
            states = joined[0] if len(joined) == 1 else torch.cat(joined, dim=-1)
            first = None if pooled is None else pooled[:, 0]
            found = unet_conditioning(states, first, self._size_numbers(geometry, states))
            empty = [self._zeroes_empty_text and not caption.strip() for caption in captions]
            return without_text(found, empty)

    def _size_numbers(self, geometry: Sequence[Geometry], states: Tensor) -> Tensor | None:
        if self._sizes is None:
            return None
        if len(geometry) != len(states):
            raise ValueError(f"{len(geometry)} geometries for {len(states)} captions")
        rows = [self._sizes.numbers(one) for one in geometry]
        return to_device(torch.tensor(rows, dtype=torch.float32), states.device)

    def _unpacked(self, encoded: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        return ((encoded,), None) if self._shape is None else self._shape.unpacked(encoded)

    def _joined(self, states: Tensor, texts: Sequence[ChunkedText]) -> Tensor:
        """The chunks of one encoder put together, with emphasis."""
        layout = self.tokens[0].layout
        if any(text.has_emphasis for text in texts):
            weights = torch.tensor([text.weights for text in texts]).to(states)
            states = apply_emphasis(states, weights, keep_mean=layout.emphasis == "mean")
        return JOINERS[layout.join](states)

    @property
    def is_frozen(self) -> bool:
        """Whether the same captions always give the same states."""
        return self._memory is not None

    def learn(self, *, now: bool) -> None:
        """Whether gradients flow into the encoders from now on; of some that may learn."""
        self._train = now

    def too_long(self, captions: Sequence[str]) -> int:
        """How many captions have more tokens than there is room for, and so lose words."""
        return self.tokens[0].too_long(captions)

    def precompute(self, captions: Sequence[str], share: CacheShare = ALONE) -> None:
        """Have the memory hold all that these captions need.

        Args:
            captions: The captions, the same in all processes of a run.
            share: What this process encodes of them; all processes of a run call this.
        """
        if self._memory is not None:
            texts = [self.chunks_of(caption) for caption in captions]
            empty = sum((tokens.empty[0] for tokens in self.tokens), ())
            with contextlib.ExitStack() as stack:

                def encode(ids: Tensor) -> Tensor:
                    if self._waits():  # not before there is something to encode
                        stack.enter_context(self._states.awake(self._device or CPU))  # type: ignore[operator]
                    return self._encode(ids)

                self._memory.precompute([*texts, [empty]], encode, share)

    def chunks_of(self, caption: str) -> list[tuple[int, ...]]:
        """The token ids of each chunk of a caption, those for all encoders in a row."""
        texts = self._pad_chunks([[cut(caption)] for cut in self.tokens])
        return [sum(ids, ()) for ids in zip(*(own[0].ids for own in texts), strict=True)]

    def leave_device(self) -> None:
        """Have the encoders wait, or compute on the CPU, from now on."""
        self._states.leave_device()  # type: ignore[operator]

    def _pad_chunks(self, texts: list[list[ChunkedText]]) -> list[list[ChunkedText]]:
        """Fill a batch up with empty chunks, as A1111 does."""
        longest = max(len(text.ids) for own in texts for text in own)
        return [
            [_filled_up(text, tokens.empty, longest) for text in own]
            for tokens, own in zip(self.tokens, texts, strict=True)
        ]

    def _waits(self) -> bool:
        return isinstance(self._states, TextStates) and self._states.are_waiting

    def _encode(self, ids: Int[Tensor, "chunks n"]) -> Tensor:
        if self._waits():  # a caption that was not encoded ahead: not where training needs the room
            with self._states.awake(CPU):  # type: ignore[operator]
                return self._states(ids).to(self._device or CPU)  # type: ignore[no-any-return]
        home = next(self._states.parameters()).device
        return self._states(to_device(ids, home)).to(self._device or home)  # type: ignore[no-any-return]

    def _cached(self, ids: Int[Tensor, "chunks n"], each: int) -> Tensor:
        assert self._memory is not None  # noqa: S101 - asked by the caller
        return self._memory.states_of(ids, self._encode, each)


def _filled_up(
    text: ChunkedText, empty: tuple[tuple[int, ...], tuple[float, ...]], length: int
) -> ChunkedText:
    missing = length - len(text.ids)
    ids, weights = empty
    return ChunkedText(text.ids + (ids,) * missing, text.weights + (weights,) * missing)
