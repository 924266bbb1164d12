"""From a text to chunks of 77 token ids, the input size of CLIP, and their weights.

A chunk is BOS, up to 75 tokens, EOS and padding. `split` is how a long text is cut into chunks,
`join` how their states are joined afterwards:

- `kohya`: sd-scripts' (`library/strategy_sd.py`): always as many chunks as `max_tokens` allows,
  joined with one BOS and one EOS: 77, 152 or 227 positions.
- `a1111`: A1111's (`modules/sd_hijack_clip.py`): as many chunks as the text needs, each with its
  BOS and EOS: 77, 154 or 231 positions.
- `plain` cuts anywhere; `comma` moves the tokens after the last comma to the next chunk, if that
  comma is among the last 20 tokens.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ftfy

from impasto.models.tokenization.emphasis import Fragment, parse_emphasis, split_at_breaks

CHUNK = 75
LENGTH = CHUNK + 2
BOS_ID, EOS_ID = 49406, 49407
COMMA = ",</w>"
BACKTRACK = 20  # A1111's comma_padding_backtrack
JoinName = Literal["kohya", "a1111"]
Split = Literal["plain", "comma"]
Emphasis = Literal["off", "no_norm", "mean"]
Token = tuple[int, float]
_MOST_PIECES = 1 << 19
_AT_ONCE = 1000  # texts whose tokens are counted together
_PIECES = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")
"""Pieces into which CLIP cuts lower-case ASCII text before it tokenises each separately
(openai/CLIP, `clip/simple_tokenizer.py`)."""


@dataclass(frozen=True)
class Join:
    """Rules of a system beyond how it joins chunks.

    Attributes:
        fixed_length: Whether a text always has the maximum number of chunks.
        reads_break: Whether BREAK starts a chunk if emphasis is parsed.
        pads_with_token: Whether SD 2's `!` counts as padding anywhere in a text.
    """

    fixed_length: bool
    reads_break: bool
    pads_with_token: bool


JOINS: dict[JoinName, Join] = {
    "kohya": Join(fixed_length=True, reads_break=False, pads_with_token=True),
    "a1111": Join(fixed_length=False, reads_break=True, pads_with_token=False),
}


@dataclass(frozen=True)
class TextLayout:
    """The layout of texts for the text encoder.

    Attributes:
        max_tokens: 75, 150 or 225; further tokens are cut off.
        join: How the states of chunks are joined.
        split: Where a long text is cut.
        emphasis: Whether brackets are emphasis, and how the mean of the states is treated:
            `no_norm` leaves it, `mean` restores it as A1111 does.

    Raises:
        ValueError: A value is not one of these.
    """

    max_tokens: int = CHUNK
    join: JoinName = "a1111"
    split: Split = "comma"
    emphasis: Emphasis = "off"

    def __post_init__(self) -> None:
        allowed = (*typing.get_args(Split), *typing.get_args(Emphasis))
        if self.max_tokens not in (75, 150, 225) or self.join not in JOINS:
            raise ValueError(f"invalid text layout: {self}")
        if self.split not in allowed or self.emphasis not in allowed:
            raise ValueError(f"invalid text layout: {self}")

    @property
    def rules(self) -> Join:
        """The further rules of the system whose `join` is used."""
        return JOINS[self.join]

    @property
    def max_chunks(self) -> int:
        """The maximum number of chunks."""
        return self.max_tokens // CHUNK


@dataclass(frozen=True)
class ChunkedText:
    """A text cut into chunks of 77 tokens.

    Attributes:
        ids: Token ids, 77 per chunk.
        weights: Weights in the same shape; 1 means no emphasis.
        lost: Number of tokens that did not fit.
    """

    ids: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    lost: int = 0

    @property
    def has_emphasis(self) -> bool:
        """Whether a token has a weight other than 1."""
        return any(weight != 1 for chunk in self.weights for weight in chunk)


class TextTokens:
    """Cuts texts into chunks.

    Args:
        tokenizer: transformers' CLIPTokenizer.
        layout: Layout of the chunks.
        pad_id: Token id of the padding: EOS for SD 1, 0 for SD 2.
        pad_word: Text that counts as padding anywhere: transformers removes `!`, the pad token of
            SD 2's tokenizer files, from texts before anything else.
    """

    def __init__(
        self,
        tokenizer: Any,
        layout: TextLayout,
        pad_id: int = EOS_ID,
        pad_word: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.layout = layout
        self._pad_id = pad_id
        self._pad_word = pad_word
        self._tokens_of_piece: dict[str, int] = {}
        self._comma = tokenizer.convert_tokens_to_ids(COMMA)
        self.empty = self._close([])

    def __call__(self, text: str) -> ChunkedText:
        """Cut a text into chunks of 77 token ids."""
        groups = self._groups(text)
        if self.layout.rules.fixed_length and self.layout.split == "plain":
            return self._sliced([token for group in groups for token in group])
        return self._chunked(groups)

    def too_long(self, texts: Sequence[str]) -> int:
        """Return how many texts were cut because they have too many tokens.

        A token has at least one character, except where a repair may lengthen the text, so short
        texts need no tokenizing.
        """
        if self.layout.emphasis != "off":  # BREAK can cut off parts of a short text too
            return sum(self(text).lost > 0 for text in texts)
        exact = self.layout.split == "plain" or self.layout.max_chunks == 1
        waiting = [text for text in texts if len(text) > CHUNK or not _is_plain(text)]
        return sum(
            self(text).lost > 0
            if count is None or (count > CHUNK and not exact)
            else count > self.layout.max_tokens
            for text, count in zip(waiting, self._counts(waiting), strict=True)
        )

    def _counts(self, texts: Sequence[str]) -> Iterator[int | None]:
        """Yield the number of tokens of each text; None if only the tokenizer can count them."""
        for start in range(0, len(texts), _AT_ONCE):
            pieces = [_pieces_of(text) for text in texts[start : start + _AT_ONCE]]
            self._learn({piece for own in pieces if own for piece in own})
            count = self._tokens_of_piece
            for own in pieces:
                yield None if own is None else sum([count[piece] for piece in own])

    def _learn(self, pieces: set[str]) -> None:
        """Count the tokens of new pieces; if very many are cached, the cache is emptied first."""
        if len(self._tokens_of_piece) > _MOST_PIECES:
            self._tokens_of_piece = {}
        new = sorted(pieces - self._tokens_of_piece.keys())
        if new:
            ids = self._tokenizer(new, add_special_tokens=False, verbose=False).input_ids
            self._tokens_of_piece |= {n: len(own) for n, own in zip(new, ids, strict=True)}

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text without BOS and EOS, however long it is."""
        return [sum(map(len, self._groups(text))) for text in texts]

    def _groups(self, text: str) -> list[list[Token]]:
        """Return the tokens with their weights, in groups that each start a new chunk."""
        if self.layout.emphasis == "off":
            return [self._tokens([(text, 1.0)])]
        fragments = parse_emphasis(text)
        if not self.layout.rules.reads_break:
            return [self._tokens(fragments)]
        return [self._tokens(group) for group in split_at_breaks(fragments)]

    def _tokens(self, fragments: Sequence[Fragment]) -> list[Token]:
        """Return token ids with weights, without BOS and EOS.

        OpenAI's CLIP repairs text with ftfy before tokenising; transformers 5 no longer does.
        """
        tokens: list[Token] = []
        for text, weight in fragments:
            pieces = text.split(self._pad_word) if self._pad_word else [text]
            for number, piece in enumerate(pieces):
                if number:
                    tokens.append((self._pad_id, weight))
                cleaned = _repaired(piece)
                ids = self._tokenizer(cleaned, add_special_tokens=False, verbose=False).input_ids
                tokens += [(token_id, weight) for token_id in ids]
        return tokens

    def _sliced(self, tokens: list[Token]) -> ChunkedText:
        """Cut tokens as sd-scripts does: one line of ids, cut into chunks with repairs for SD 2.

        A line has up to 227 ids.

        Its repairs mistake `!`, which SD 2 also pads with, for padding; they are reproduced
        unchanged.
        """
        limit, pad = self.layout.max_tokens, self._pad_id
        room = tokens[:limit]
        line = [BOS_ID, *(i for i, _ in room), EOS_ID, *[pad] * (limit - len(room))]
        weights = [1.0, *(w for _, w in room), *[1.0] * (limit + 1 - len(room))]
        chunks, chunk_weights = [], []
        for start in range(1, limit + 1, CHUNK):
            inner = line[start : start + CHUNK]
            chunk = [line[0], *inner, line[-1]]
            if self.layout.max_chunks > 1 and pad != EOS_ID:
                if chunk[-2] not in (EOS_ID, pad):
                    chunk[-1] = EOS_ID
                if chunk[1] == pad:
                    chunk[1] = EOS_ID
            chunks.append(tuple(chunk))
            chunk_weights.append((1.0, *weights[start : start + CHUNK], 1.0))
        return ChunkedText(tuple(chunks), tuple(chunk_weights), max(0, len(tokens) - limit))

    def _chunked(self, groups: list[list[Token]]) -> ChunkedText:
        """Cut groups of tokens as A1111 does: chunk after chunk, each group starting a new one."""
        cut = [chunk for group in groups for chunk in self._cut(group)]
        kept, over = cut[: self.layout.max_chunks], cut[self.layout.max_chunks :]
        if over and len(groups) == 1:  # no need to leave words to a next chunk that is cut off
            start = sum(len(chunk) for chunk in kept[:-1])
            kept[-1] = groups[0][start : start + CHUNK]
        lost = sum(map(len, cut)) - sum(map(len, kept))
        if self.layout.rules.fixed_length:
            kept += [[]] * (self.layout.max_chunks - len(kept))
        closed = [self._close(chunk) for chunk in kept]
        return ChunkedText(
            tuple(ids for ids, _ in closed), tuple(weights for _, weights in closed), lost
        )

    def _cut(self, tokens: list[Token]) -> list[list[Token]]:
        chunks: list[list[Token]] = []
        current: list[Token] = []
        last_comma = -1
        for token in tokens:
            if token[0] == self._comma:
                last_comma = len(current)
            elif self._goes_back(len(current), last_comma):
                chunks.append(current[: last_comma + 1])
                current, last_comma = current[last_comma + 1 :], -1
            if len(current) == CHUNK:
                chunks.append(current)
                current, last_comma = [], -1
            current.append(token)
        return [*chunks, current] if current or not chunks else chunks

    def _goes_back(self, filled: int, last_comma: int) -> bool:
        if self.layout.split == "plain" or filled < CHUNK or last_comma < 0:
            return False
        return CHUNK - last_comma <= BACKTRACK

    def _close(self, tokens: Sequence[Token]) -> tuple[tuple[int, ...], tuple[float, ...]]:
        rest = CHUNK - len(tokens)
        ids = (BOS_ID, *(i for i, _ in tokens), EOS_ID, *[self._pad_id] * rest)
        return ids, (1.0, *(w for _, w in tokens), *[1.0] * (rest + 1))


def _is_plain(text: str) -> bool:
    """Return whether ftfy has nothing to repair: printable ASCII without HTML entities."""
    return text.isascii() and text.isprintable() and "&" not in text


def _pieces_of(text: str) -> list[str] | None:
    """Return the pieces of a text that are tokenised separately; None if they are not known."""
    if not _is_plain(text) or "<|" in text or "!" in text:  # named tokens; SD 2's padding
        return None
    return _PIECES.findall(text.lower())


def _repaired(text: str) -> str:
    return text if _is_plain(text) else ftfy.fix_text(text)
