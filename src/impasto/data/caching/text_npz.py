"""Reads and writes the text encoder outputs that sd-scripts keeps in files beside images.

`<stem>_te_outputs.npz` of kohya-ss/sd-scripts (`library/strategy_sdxl.py`,
SdxlTextEncoderOutputsCachingStrategy; `library/train_util.py` before 2025) holds for SDXL

    hidden_state1  [77, 768]    states of the first text encoder
    hidden_state2  [77, 1280]   states of the second
    pool2          [1280]       the second's pooled text

in float16 or float32. With `max_token_length` of 150 or 225 there are 152 or 227 positions in the
place of 77, however short the caption: the first of the first chunk, the 75 in the middle of each,
the last of the last, with the pooled text of the first (SdxlTextEncodingStrategy). Nothing says
which caption, which text encoders or which settings they were made from, and sd-scripts takes
whatever is there. Files written here also have the token ids, in an array that sd-scripts ignores.
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
"""Hexadecimal digits of a hash that a run's states record."""

_MOST_BYTES = 16 << 20  # 227 positions of both in float64 are 3.7 MiB


@dataclass(frozen=True)
class TextShape:
    """The shape of what a model's text encoders make of text.

    Attributes:
        positions: Positions of a chunk.
        widths: Numbers of each state, of each encoder.
        pooled: Numbers of the pooled text.
        chunks: Chunks of every caption, where they are joined as sd-scripts does; 1 elsewhere.
    """

    positions: int
    widths: tuple[int, ...]
    pooled: int
    chunks: int = 1

    @property
    def lengths(self) -> tuple[int, ...]:
        """Positions that files may hold: of one chunk, and of as many as captions have."""
        joined = self.chunks * (self.positions - 2) + 2
        return tuple(dict.fromkeys((self.positions, joined)))

    @property
    def names(self) -> tuple[str, ...]:
        """What the arrays of states are called."""
        return tuple(f"hidden_state{number}" for number in range(1, len(self.widths) + 1))


@dataclass(frozen=True)
class TextOutputs:
    """What a file holds.

    Attributes:
        states: Of each encoder, float32 [positions, width]; of a chunk, NaN where nothing is known.
        pooled: The pooled text, float32 [P]; NaN for a chunk that is not the first.
        ids: The token ids of the chunk, those for all encoders in a row; None where the file does
            not say.
        digest: SHA-256 of the file's bytes.
    """

    states: tuple[np.ndarray, ...]
    pooled: np.ndarray
    ids: Ids | None
    digest: str

    @property
    def packed(self) -> np.ndarray:
        """The states side by side, then the pooled text, as one row of numbers."""
        return np.concatenate([np.concatenate(self.states, axis=-1).ravel(), self.pooled])

    def chunk(self, index: int, positions: int) -> TextOutputs:
        """One of the chunks that were joined, with as many positions as it was encoded to.

        Its first position is that of the first chunk: CLIP looks back only, so nothing of what
        follows is in it. The last one is known of the last chunk, the pooled text of the first.
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
    """Where sd-scripts keeps the text encoder outputs of an image."""
    return image.with_name(f"{image.stem}{ending}")


def by_text_file(records: Iterable[ImageRecord], ending: str) -> dict[Path, list[ImageRecord]]:
    """Group images by the file that sd-scripts has for their text encoder outputs."""
    found: dict[Path, list[ImageRecord]] = {}
    for record in records:
        found.setdefault(text_npz_file(record.path, ending), []).append(record)
    return found


def why_ambiguous(records: Sequence[ImageRecord]) -> Failure | None:
    """Why no caption can be told for a file, from all images that it is beside; None if one can.

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
    """Whether a file has token ids, which only Impasto writes; False if it cannot be read."""
    try:
        return TOKEN_IDS in arrays_of(file, lambda name: name == TOKEN_IDS)
    except (DamagedNpzError, OSError):
        return False


def read_text_npz(file: Path, shape: TextShape) -> TextOutputs | Failure:
    """Read a file, or say why it is of no use for text encoders of that shape."""
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
        return Failure(f"holds no {', no '.join(missing)}: it is of another family than SDXL")
    fault = _fault(arrays, shape)
    if fault:
        return Failure(fault)
    ids = arrays.get(TOKEN_IDS)
    return TextOutputs(
        tuple(arrays[name].astype(np.float32) for name in shape.names),
        arrays[POOLED].astype(np.float32),
        None if ids is None else tuple(ids.ravel().tolist()),  # damaged ones are nobody's
        hashlib.sha256(content).hexdigest(),
    )


def _fault(arrays: Mapping[str, np.ndarray], shape: TextShape) -> str:
    """What is wrong with arrays that are all there; empty if nothing is."""
    states, pooled = [arrays[name] for name in shape.names], arrays[POOLED]
    found = tuple(array.shape[-1] if array.ndim == 2 else 0 for array in states)
    if (*found, pooled.shape) != (*shape.widths, (shape.pooled,)):
        shapes = ", ".join(str(array.shape) for array in (*states, pooled))
        return (
            f"holds arrays of {shapes}, which are of other text encoders than this model's, whose "
            f"states have {' and '.join(map(str, shape.widths))} numbers"
        )
    lengths = {len(array) for array in states}
    if len(lengths) > 1 or not lengths <= set(shape.lengths):
        return _wrong_length(max(lengths), shape)
    for array in (*states, pooled):
        if array.dtype.kind != "f" or not np.isfinite(array.astype(np.float32)).all():
            return "holds NaN, infinite or whole values"
    return ""


def _wrong_length(positions: int, shape: TextShape) -> str:
    tokens = positions - 2
    used = " or ".join(map(str, shape.lengths))
    if tokens % (shape.positions - 2):
        return f"holds {positions} positions, which no setting of sd-scripts makes; {used} are used"
    return (
        f"holds {positions} positions, of captions of up to {tokens} tokens that sd-scripts has "
        f"joined (max_token_length): they fit model.max_tokens = {tokens} with model.token_join = "
        f'"kohya" and model.token_split = "plain", and files of {used} positions are used'
    )


def write_text_npz(file: Path, states: Sequence[np.ndarray], pooled: np.ndarray, ids: Ids) -> None:
    """Write a file as sd-scripts does, in float32, with the token ids besides.

    Args:
        file: Beside the image; see `text_npz_file`.
        states: Of each encoder, [positions, width].
        pooled: The pooled text, [P].
        ids: The token ids of the chunk, those for all encoders in a row.

    Raises:
        StorageError: It could not be written.
    """
    arrays = {f"hidden_state{n}": array for n, array in enumerate(states, start=1)}
    arrays[POOLED] = pooled
    exact = {name: array.astype(np.float32) for name, array in arrays.items()}
    with files.rewrite_file(file) as partial, partial.open("wb") as handle:
        np.savez(handle, allow_pickle=False, **exact, **{TOKEN_IDS: np.array(ids, dtype=np.int32)})


def is_before(file: Path, words: Sequence[Path]) -> Path | None:
    """The first of some files that was changed after another; None if none was.

    A second is allowed for, which is as exact as some file systems and archives are.
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
    """Chunks of text whose states are taken from files, by their token ids.

    Attributes:
        files: The token ids of a chunk -> its file, and the SHA-256 of that when it was checked.
        shape: The shape of what is in them.
        indices: The token ids of a chunk -> which chunk of its file it is; 0 is not named.
        unended: The token ids of chunks that are not the last of their file.
    """

    files: Mapping[Ids, tuple[Path, str]]
    shape: TextShape
    indices: Mapping[Ids, int] = field(default_factory=dict)
    unended: Collection[Ids] = ()

    def serves(self, ids: Ids, index: int, chunks: int) -> bool:
        """Whether a file has all that is taken of a chunk where it stands in a text.

        Of the first chunk of a text that is the pooled text, which a joined file has of its own
        first alone; of the last one the last position, which such a file has of its own last.

        Args:
            ids: The token ids of the chunk.
            index: Which chunk of the text it is, counted from 0.
            chunks: How many the text has.
        """
        if ids not in self.files or (index == 0 and self.indices.get(ids, 0) > 0):
            return False
        return index < chunks - 1 or ids not in self.unended

    def outputs(self, ids: Ids) -> TextOutputs | Failure:
        """What its file holds of a chunk that is there, or why it cannot be read."""
        found = read_text_npz(self.files[ids][0], self.shape)
        if isinstance(found, Failure):
            return found
        return found.chunk(self.indices.get(ids, 0), self.shape.positions)

    def read(self, ids: Ids) -> np.ndarray:
        """What `TextOutputs.packed` says, of a chunk that is there.

        Raises:
            DatasetError: The file is not any more as it was when it was checked.
        """
        file, digest = self.files[ids]
        found = self.outputs(ids)
        if isinstance(found, Failure) or found.digest != digest:
            reason = f": {found.reason}" if isinstance(found, Failure) else ""
            raise DatasetError(
                f"{file} was changed or removed while the run was using it{reason}. Resume the "
                f"run when it is there as before, or begin a new run, which checks it again."
            )
        return found.packed

    @property
    def recorded(self) -> dict[str, str]:
        """What a run's states record: `text_key` of each chunk -> its file's hash and name."""
        return {
            text_key(ids): f"{digest[:HASH_DIGITS]} {file.name}"
            for ids, (file, digest) in sorted(self.files.items())
        }


def text_key(ids: Ids) -> str:
    """A short hash of token ids."""
    return hashlib.sha256(np.asarray(ids, dtype="<i4").tobytes()).hexdigest()[:HASH_DIGITS]
