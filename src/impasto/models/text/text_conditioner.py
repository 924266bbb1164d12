"""Turns captions into the states that the U-Net's cross-attention reads."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor, nn

from impasto.data.engines.process_group import ALONE, CachePeers
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
    """Turns captions, and the crops of their images, into the conditioning of the U-Net."""

    def __call__(self, captions: Sequence[str], geometry: Sequence[Geometry]) -> Conditioning:
        """Return the conditioning of a batch, on the U-Net's device.

        Args:
            captions: Caption of each sample.
            geometry: Original size, crop and target size of each sample.
        """


def require_zeroes_empty_text(model: BaseModel, asked: str) -> None:
    """Check that a model's family can use zeros for an empty text.

    Args:
        model: The model.
        asked: Setting or option that requests it, as the subject of a sentence.

    Raises:
        ConfigError: The family always encodes the empty text.
    """
    if model.family.pipeline.empty_text_entry is None:
        raise ConfigError(
            f"{asked} has no effect: {model.contents.name} is {model.family.name}, which always "
            f"encodes the empty text. Remove it."
        )


class ClipTextConditioner:
    """Turns captions, in the layout of `tokens`, into states of CLIP text encoders.

    Args:
        tokens: Cut captions into chunks, one per encoder.
        states: The encoders, as `TextStates` or wrapped for several processes.
        shape: Shape of their output; None for the states of a single encoder.
        sizes: Size conditioning of the U-Net; None for none.
        device: Device of the U-Net; None means the device of the encoders.
        train: Whether gradients flow into the encoders.
        memory: Cache of encoded chunks; for frozen encoders only.
        zeroes_empty_text: Whether an empty caption gives zeros instead of the encoded empty text;
            the contents of `memory` are the same either way.
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
        """Return the states `[B, N, D]`, N being 77 for one chunk, with the family's other inputs.

        Raises:
            ValueError: The U-Net takes sizes, and there is not one geometry per caption.
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
        """Return the states of one encoder's chunks with emphasis applied, joined."""
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
        """Set whether gradients flow into the encoders from now on, for encoders that can learn."""
        self._train = now

    def too_long(self, captions: Sequence[str]) -> int:
        """Return how many captions have more tokens than fit, and so are cut."""
        return self.tokens[0].too_long(captions)

    def precompute(self, captions: Sequence[str], peers: CachePeers = ALONE) -> None:
        """Encode all chunks of these captions, and of the empty text, into the cache.

        Args:
            captions: The captions, the same in all processes of a run.
            peers: The processes that divide the work; all processes of a run call this.
        """
        if self._memory is not None:
            texts = [self.chunks_of(caption) for caption in captions]
            empty = sum((tokens.empty[0] for tokens in self.tokens), ())
            with contextlib.ExitStack() as stack:

                def encode(ids: Tensor) -> Tensor:
                    if self._waits():  # load them only once there is something to encode
                        stack.enter_context(self._states.awake(self._device or CPU))  # type: ignore[operator]
                    return self._encode(ids)

                self._memory.precompute([*texts, [empty]], encode, peers)

    def chunks_of(self, caption: str) -> list[tuple[int, ...]]:
        """Return the token ids of each chunk of a caption, those for all encoders concatenated."""
        texts = self._pad_chunks([[cut(caption)] for cut in self.tokens])
        return [sum(ids, ()) for ids in zip(*(own[0].ids for own in texts), strict=True)]

    def leave_device(self) -> None:
        """Offload the encoders, or have them compute on the CPU, from now on."""
        self._states.leave_device()  # type: ignore[operator]

    def _pad_chunks(self, texts: list[list[ChunkedText]]) -> list[list[ChunkedText]]:
        """Pad the texts of a batch with empty chunks to the longest, as A1111 does."""
        longest = max(len(text.ids) for own in texts for text in own)
        return [
            [_filled_up(text, tokens.empty, longest) for text in own]
            for tokens, own in zip(self.tokens, texts, strict=True)
        ]

    def _waits(self) -> bool:
        return isinstance(self._states, TextStates) and self._states.are_waiting

    def _encode(self, ids: Int[Tensor, "chunks n"]) -> Tensor:
        if self._waits():  # a caption not precomputed: on the CPU, since training needs the VRAM
            with self._states.awake(CPU):  # type: ignore[operator]
                return self._states(ids).to(self._device or CPU)  # type: ignore[no-any-return]
        home = next(self._states.parameters()).device
        return self._states(to_device(ids, home)).to(self._device or home)  # type: ignore[no-any-return]

    def _cached(self, ids: Int[Tensor, "chunks n"], each: int) -> Tensor:
        assert self._memory is not None  # noqa: S101 - checked by the caller
        return self._memory.states_of(ids, self._encode, each)


def _filled_up(
    text: ChunkedText, empty: tuple[tuple[int, ...], tuple[float, ...]], length: int
) -> ChunkedText:
    missing = length - len(text.ids)
    ids, weights = empty
    return ChunkedText(text.ids + (ids,) * missing, text.weights + (weights,) * missing)
