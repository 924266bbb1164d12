"""The keys of images in the latent cache, in columns of 16 bytes each instead of strings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
COLUMNS = ("plain", "flipped", "mask")


@dataclass(frozen=True, slots=True)
class LatentKeys:
    """The cache keys of an image's latents and mask; empty for what is not stored.

    Attributes:
        plain: Key of its moments.
        flipped: Key of the moments of its mirror image.
        mask: Key of its loss weights.
    """

    plain: str = ""
    flipped: str = ""
    mask: str = ""


class KeyTable(Sequence[LatentKeys]):
    """The keys of many images as columns.

    Args:
        count: Number of images.
        columns: Field of `LatentKeys` -> [images, 16] bytes of the key's hex digits, zeros for an
            empty key; a field that is empty for all images is omitted.
    """

    def __init__(self, count: int, columns: dict[str, Bytes]) -> None:
        self._count = count
        self.columns = {name: column for name, column in columns.items() if column.any()}

    @classmethod
    def of(cls, keys: Sequence[LatentKeys]) -> KeyTable:
        """Return a table of keys of 32 hex digits each; a `KeyTable` is returned unchanged."""
        if isinstance(keys, KeyTable):
            return keys
        columns = {}
        for name in COLUMNS:
            joined = b"".join(bytes.fromhex(getattr(key, name)) or bytes(16) for key in keys)
            columns[name] = np.frombuffer(joined, np.uint8).reshape(-1, 16)
        return cls(len(keys), columns)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> LatentKeys: ...
    @overload
    def __getitem__(self, index: slice) -> KeyTable: ...
    def __getitem__(self, index: int | slice) -> LatentKeys | KeyTable:
        if isinstance(index, slice):
            own = {name: column[index] for name, column in self.columns.items()}
            return KeyTable(len(range(*index.indices(len(self)))), own)
        row = range(len(self))[index]
        return LatentKeys(*(self._name(column, row) for column in COLUMNS))

    def __iter__(self) -> Iterator[LatentKeys]:
        return (self[row] for row in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def all_plain(self) -> bool:
        """Whether every image has a key for its moments."""
        if "plain" not in self.columns:
            return not len(self)
        return bool(self.columns["plain"].any(axis=1).all())

    def _name(self, name: str, row: int) -> str:
        column = self.columns.get(name)
        text = "" if column is None else column[row].tobytes().hex()
        return "" if text == _EMPTY else text


_EMPTY = "0" * 32


def join_keys(tables: Sequence[KeyTable]) -> KeyTable:
    """Return the keys of several tables as one table, in their order."""
    names = {name for table in tables for name in table.columns}
    columns = {
        name: np.concatenate(
            [table.columns.get(name, np.zeros((len(table), 16), np.uint8)) for table in tables]
        )
        for name in names
    }
    return KeyTable(sum(map(len, tables)), columns)
