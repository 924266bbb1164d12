"""Reads and writes the text encoder outputs that sd-scripts keeps in files beside images.

`<stem>_te_outputs.npz` of kohya-ss/sd-scripts (`library/strategy_sdxl.py`,
SdxlTextEncoderOutputsCachingStrategy; `library/train_util.py` before 2025) holds for SDXL

    hidden_state1  [77, 768]    states of the first text encoder
    hidden_state2  [77, 1280]   states of the second
    pool2          [1280]       pooled output of the second

in float16 or float32. With `max_token_length` of 150 or 225 there are 152 or 227 positions instead
of 77, however short the caption: the first of the first chunk, the 75 in the middle of each, the
last of the last, with the pooled output of the first (SdxlTextEncodingStrategy). The file does not
record its caption, text encoders or settings, and sd-scripts uses whatever file it finds. Files
written by Impasto also have the token ids, in an array that sd-scripts ignores.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from impasto import files
from impasto.data.caching.npz import CLOCK_SLACK_NS, DamagedNpzError, arrays_of
from impasto.data.caching.npz_exchange import why_shared
from impasto.data.engines.stages import Failure
from impasto.data.records import ImageRecord
from impasto.errors import DatasetError

Ids = tuple[int, ...]

TOKEN_IDS = "impasto_token_ids"
POOLED = "pool2"
HASH_DIGITS = 16
"""Number of hex digits of a file's hash that a run's training state records."""

_MOST_BYTES = 16 << 20  # 227 positions of both encoders in float64 are 3.7 MiB


@dataclass(frozen=True)
class TextShape:
    """The shape of a model's text encoder outputs.

    Attributes:
        positions: Positions of a chunk.
        widths: Numbers per state, for each encoder.
        pooled: Numbers of the pooled output.
        chunks: Chunks per caption if they are joined as sd-scripts does; otherwise 1.
    """

    positions: int
    widths: tuple[int, ...]
    pooled: int
    chunks: int = 1

    @property
    def lengths(self) -> tuple[int, ...]:
        """Numbers of positions that files may have: of one chunk, and of all chunks joined."""
        joined = self.chunks * (self.positions - 2) + 2
        return tuple(dict.fromkeys((self.positions, joined)))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arrays of states in a file."""
        return tuple(f"hidden_state{number}" for number in range(1, len(self.widths) + 1))


@dataclass(frozen=True)
class TextOutputs:
    """The contents of a file, or of one chunk in it.

    Attributes:
        states: Per encoder, float32 [positions, width]; NaN at positions of a chunk that the file
            does not have.
        pooled: The pooled output, float32 [P]; NaN for a chunk that is not the first.
        ids: The token ids of the chunk, of all encoders in sequence; None if the file has none.
        digest: SHA-256 of the file's bytes.
    """

    states: tuple[np.ndarray, ...]
    pooled: np.ndarray
    ids: Ids | None
    digest: str

    @property
    def packed(self) -> np.ndarray:
        """All states side by side, then the pooled output, as one row of numbers."""
        return np.concatenate([np.concatenate(self.states, axis=-1).ravel(), self.pooled])

    def chunk(self, index: int, positions: int) -> TextOutputs:
        """Return one of the joined chunks, with all positions of a chunk that was encoded alone.

        Its first position is that of the first chunk: in CLIP, no later token influences it. The
        last position is known for the last chunk only, the pooled output for the first.
        """
        inner, length = positions - 2, len(self.states[0])
        chunks = (length - 2) // inner
        states = []
        for joined in self.states:
            own = np.full((positions, joined.shape[1]), np.nan, np.float32)
            own[0] = joined[0]
            own[1:-1] = joined[1 + index * inner : 1 + (index + 1) * inner]
            if index == chunks - 1:
                own[-1] = joined[-1]
            states.append(own)
        pooled = self.pooled if index == 0 else np.full_like(self.pooled, np.nan)
        return replace(self, states=tuple(states), pooled=pooled)


def text_npz_file(image: Path, ending: str) -> Path:
    """Return the path at which sd-scripts keeps the text encoder outputs of an image."""
    return image.with_name(f"{image.stem}{ending}")


def by_text_file(records: Iterable[ImageRecord], ending: str) -> dict[Path, list[ImageRecord]]:
    """Group images by the path of sd-scripts' file with their text encoder outputs."""
    found: dict[Path, list[ImageRecord]] = {}
    for record in records:
        found.setdefault(text_npz_file(record.path, ending), []).append(record)
    return found


def why_ambiguous(records: Sequence[ImageRecord]) -> Failure | None:
    """Return why a file's caption cannot be determined from its images; None if it can.

    sd-scripts keeps one file for `a.png` and `a.jpg`, and one for an image in two subsets.
    """
    shared = why_shared({record.path for record in records})
    if shared is not None:
        return shared
    if any(record.subset.captions.changes_captions for record in records):
        return Failure("the caption changes each time that it is shown")
    if len({record.fixed_caption for record in records}) > 1:
        return Failure("the image is in several subsets, which give it different captions")
    return None


def is_by_impasto(file: Path) -> bool:
    """Return whether a file has token ids, which only Impasto writes; False if unreadable."""
    try:
        return TOKEN_IDS in arrays_of(file, lambda name: name == TOKEN_IDS)
    except (DamagedNpzError, OSError):
        return False


def read_text_npz(file: Path, shape: TextShape) -> TextOutputs | Failure:
    """Read a file, or return why it cannot be used for text encoders of that shape."""
    try:
        if file.stat().st_size > _MOST_BYTES:
            return Failure(f"is larger than {_MOST_BYTES >> 20} MiB, which no text needs")
        content = file.read_bytes()
        names = (*shape.names, POOLED, TOKEN_IDS)
        arrays = arrays_of(io.BytesIO(content), lambda name: name in names)
    except (DamagedNpzError, OSError) as error:
        return Failure(f"damaged ({error})")
    missing = [name for name in (*shape.names, POOLED) if name not in arrays]
    if missing:
        return Failure(f"holds no {', no '.join(missing)}: it is for another family than SDXL")
    fault = _fault(arrays, shape)
    if fault:
        return Failure(fault)
    ids = arrays.get(TOKEN_IDS)
    return TextOutputs(
        tuple(arrays[name].astype(np.float32) for name in shape.names),
        arrays[POOLED].astype(np.float32),
        None if ids is None else tuple(ids.ravel().tolist()),  # damaged ids match no caption
        hashlib.sha256(content).hexdigest(),
    )


def _fault(arrays: Mapping[str, np.ndarray], shape: TextShape) -> str:
    """Return the fault of the arrays, all of which exist; empty if there is none."""
    states, pooled = [arrays[name] for name in shape.names], arrays[POOLED]
    found = tuple(array.shape[-1] if array.ndim == 2 else 0 for array in states)
    if (*found, pooled.shape) != (*shape.widths, (shape.pooled,)):
        shapes = ", ".join(str(array.shape) for array in (*states, pooled))
        return (
            f"holds arrays of shape {shapes}, made by other text encoders than this model's, whose "
            f"states have {' and '.join(map(str, shape.widths))} numbers"
        )
    lengths = {len(array) for array in states}
    if len(lengths) > 1 or not lengths <= set(shape.lengths):
        return _wrong_length(max(lengths), shape)
    for array in (*states, pooled):
        if array.dtype.kind != "f" or not np.isfinite(array.astype(np.float32)).all():
            return "holds NaN, infinite or integer values"
    return ""


def _wrong_length(positions: int, shape: TextShape) -> str:
    tokens = positions - 2
    used = " or ".join(map(str, shape.lengths))
    if tokens % (shape.positions - 2):
        return f"holds {positions} positions, which no setting of sd-scripts makes; expected {used}"
    return (
        f"holds {positions} positions: captions of up to {tokens} tokens, joined by sd-scripts "
        f"(max_token_length); they need model.max_tokens = {tokens} with model.token_join = "
        f'"kohya" and model.token_split = "plain". The present settings use {used} positions'
    )


def write_text_npz(file: Path, states: Sequence[np.ndarray], pooled: np.ndarray, ids: Ids) -> None:
    """Write a file as sd-scripts does, in float32, with the token ids added.

    Args:
        file: The path beside the image; see `text_npz_file`.
        states: Per encoder, [positions, width].
        pooled: The pooled output, [P].
        ids: The token ids of the chunk, of all encoders in sequence.

    Raises:
        StorageError: It could not be written.
    """
    arrays = {f"hidden_state{n}": array for n, array in enumerate(states, start=1)}
    arrays[POOLED] = pooled
    exact = {name: array.astype(np.float32) for name, array in arrays.items()}
    with files.rewrite_file(file) as partial, partial.open("wb") as handle:
        np.savez(handle, allow_pickle=False, **exact, **{TOKEN_IDS: np.array(ids, dtype=np.int32)})


def is_before(file: Path, words: Sequence[Path]) -> Path | None:
    """Return the first of the caption files changed after `file` was written; None if none was.

    One second of tolerance allows for file systems and archives with coarse times.
    """
    made = file.stat().st_mtime_ns + CLOCK_SLACK_NS
    return next((path for path in words if _changed_at(path) > made), None)


def _changed_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@dataclass(frozen=True)
class GivenTexts:
    """Chunks of text whose states are read from files, by their token ids.

    Attributes:
        files: The token ids of a chunk -> its file, and the file's SHA-256 when it was checked.
        shape: The shape of the files' contents.
        indices: The token ids of a chunk -> its index within its file; missing means 0.
        unended: The token ids of chunks that are not the last of their file.
    """

    files: Mapping[Ids, tuple[Path, str]]
    shape: TextShape
    indices: Mapping[Ids, int] = field(default_factory=dict)
    unended: Collection[Ids] = ()

    def serves(self, ids: Ids, index: int, chunks: int) -> bool:
        """Return whether a file has all outputs needed of a chunk at its position in a text.

        The first chunk of a text also needs the pooled output, which a joined file has of its own
        first chunk only; the last also needs the last position, which it has of its own last only.

        Args:
            ids: The token ids of the chunk.
            index: The chunk's index in the text, counted from 0.
            chunks: Number of chunks in the text.
        """
        if ids not in self.files or (index == 0 and self.indices.get(ids, 0) > 0):
            return False
        return index < chunks - 1 or ids not in self.unended

    def outputs(self, ids: Ids) -> TextOutputs | Failure:
        """Return a chunk's outputs from its file, or why the file cannot be read.

        Raises:
            KeyError: No file has the chunk.
        """
        found = read_text_npz(self.files[ids][0], self.shape)
        if isinstance(found, Failure):
            return found
        return found.chunk(self.indices.get(ids, 0), self.shape.positions)

    def read(self, ids: Ids) -> np.ndarray:
        """Return `TextOutputs.packed` of a chunk from its file.

        Raises:
            DatasetError: The file was changed or removed since it was checked.
            KeyError: No file has the chunk.
        """
        file, digest = self.files[ids]
        found = self.outputs(ids)
        if isinstance(found, Failure) or found.digest != digest:
            reason = f": {found.reason}" if isinstance(found, Failure) else ""
            raise DatasetError(
                f"{file} was changed or removed while the run was using it{reason}. Restore the "
                f"file and resume the run, or start a new run, which checks the file again."
            )
        return found.packed

    @property
    def recorded(self) -> dict[str, str]:
        """`text_key` of each chunk -> its file's hash and name, for the run's training state."""
        return {
            text_key(ids): f"{digest[:HASH_DIGITS]} {file.name}"
            for ids, (file, digest) in sorted(self.files.items())
        }


def text_key(ids: Ids) -> str:
    """Return a short hash of token ids."""
    return hashlib.sha256(np.asarray(ids, dtype="<i4").tobytes()).hexdigest()[:HASH_DIGITS]
