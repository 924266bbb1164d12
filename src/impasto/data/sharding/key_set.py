"""A set of keys of shard rows, at 16 bytes each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_BYTES = 16
_NONE = bytes(_BYTES)
_ROW = f"S{_BYTES}"


class KeySet:
    """A set of keys of 32 hex digits.

    Args:
        rows: [keys, 16] bytes of their digits; zeros for no key.
    """

    def __init__(self, rows: npt.NDArray[np.uint8]) -> None:
        self._rows = np.ascontiguousarray(rows).reshape(-1, _BYTES).view(_ROW).ravel().copy()
        self._rows.sort()

    def holds(self, keys: Sequence[str]) -> list[bool]:
        """Return whether each of some keys is in the set."""
        if not len(self._rows):
            return [False] * len(keys)
        asked = np.frombuffer(b"".join(map(_row_of, keys)), _ROW)
        places = np.minimum(np.searchsorted(self._rows, asked), len(self._rows) - 1)
        found: list[bool] = ((self._rows[places] == asked) & (asked != b"")).tolist()
        return found

    def among(self, entries: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        """Return the entries, keys with their rows, whose keys are in the set."""
        flags = self.holds([key for key, _ in entries])
        return [entry for entry, is_held in zip(entries, flags, strict=True) if is_held]


def _row_of(key: str) -> bytes:
    """Return a key as bytes; zeros for a text that is not a key."""
    try:
        row = bytes.fromhex(key)
    except ValueError:
        return _NONE
    return row if len(row) == _BYTES else _NONE
