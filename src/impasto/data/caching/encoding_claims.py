"""Which latents and masks a program is about to encode, so that no other encodes them meanwhile.

What a claim is, whatever keeps it: files beside a cache on a disk
(`data/caching/folder_claims.py`), or numbered objects below one in an object store
(`data/caching/stored_claims.py`). Both look for what others have claimed first, and after that for
what is in the cache: who has ended a claim has written all that it made before.

A claim is no lock of the cache: shards are written without what is there
(`data/sharding/shards.py`). If one counts for nothing, because it is damaged or its owner was
asleep, images are encoded twice, and kept once.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from impasto.lock_file import LockHolder

CLAIMS = "claims"
"""The folder of claims, in that of the cache."""

KEYS_SUFFIX = ".keys"
KEY_BYTES = 16

Keys = frozenset[bytes]
"""Keys of latents and masks: the 16 bytes of their hex digits."""

NO_KEYS: Keys = frozenset()

Written = tuple[list[str], list[str]]
"""The names of shards of latents, and of masks."""


@dataclass(frozen=True)
class Taken:
    """What a program has claimed.

    Attributes:
        own: What it encodes.
        lacking: What is not in the cache: its own, and what others have claimed.
        rivals: The names of others' claims on what it lacks.
        name: Of its own claim; empty where it has none.
    """

    own: Keys
    lacking: Keys
    rivals: tuple[str, ...] = ()
    name: str = ""

    @classmethod
    def beside(cls, others: Mapping[str, Keys], lacking: Keys) -> Taken:
        """Take what is lacking and no other program has claimed.

        Args:
            others: The keys of each claim that counts before this one, by its name.
            lacking: What is not in the cache, looked up after those were read.
        """
        rivals = tuple(name for name, keys in others.items() if keys & lacking)
        return cls(lacking - NO_KEYS.union(*others.values()), lacking, rivals)


class EncodingClaims(Protocol):
    """The claims of all programs on what a cache lacks.

    Attributes:
        looks_every_s: Seconds between two looks at claims that a program waits for.
    """

    looks_every_s: float

    def taken(
        self, lacking: Callable[[], Keys], on_busy: Callable[[LockHolder], None]
    ) -> contextlib.AbstractContextManager[Taken]:
        """Claim what is lacking and nobody else has claimed, until the end of the context.

        Where nothing can be written nobody claims anything: nothing can be encoded there either.

        Args:
            lacking: Looks up what is not in the cache now.
            on_busy: Is told who is claiming something just now, at each look, where one waits.

        Raises:
            StorageError: The disk is full, or the store cannot be used.
        """

    def living(self, taken: Taken) -> list[LockHolder]:
        """Those of the rivals whose claims have not ended, also by being killed.

        Raises:
            StorageError: The store cannot be used.
        """

    def tell(self, taken: Taken, written: Written) -> None:
        """Say what was written of what was claimed, before the claim ends: a disk may list late.

        Raises:
            StorageError: The disk is full.
        """

    def told(self, taken: Taken) -> Written:
        """What those of the rivals have said whose claims have ended."""

    def of_others(self) -> Keys:
        """What other programs have claimed; for who has claimed nothing.

        Raises:
            StorageError: The store cannot be used.
        """


def packed(keys: Keys) -> bytes:
    """Keys as the bytes of a file: the SHA-256 of what follows, then the keys in order."""
    content = b"".join(sorted(keys))
    return hashlib.sha256(content).digest() + content


def unpacked(stored: bytes) -> Keys:
    """The keys of `packed`; none where the bytes are not what was written."""
    digest, content = stored[:32], stored[32:]
    if len(content) % KEY_BYTES or hashlib.sha256(content).digest() != digest:
        return NO_KEYS
    places = range(0, len(content), KEY_BYTES)
    return frozenset(content[start : start + KEY_BYTES] for start in places)
