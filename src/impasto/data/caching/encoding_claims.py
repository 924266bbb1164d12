"""Claims on latents and masks that a program is about to encode, so that no other encodes them too.

This is the interface; claims are stored as files beside a cache on a disk
(`data/caching/folder_claims.py`), or as numbered objects below one in an object store
(`data/caching/stored_claims.py`). Both read the claims of others first and the contents of the
cache after that: a program writes all that it made before it ends its claim.

A claim does not lock the cache: keys that already exist are left out of new shards
(`data/sharding/shards.py`). If a claim is ignored, because it is damaged or its owner was
suspended, images are encoded twice, and stored once.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from impasto.lock_file import LockHolder

CLAIMS = "claims"
"""Name of the folder of claims within the cache's folder."""

KEYS_SUFFIX = ".keys"
KEY_BYTES = 16

Keys = frozenset[bytes]
"""Keys of latents and masks: the 16 bytes of their hex digits."""

NO_KEYS: Keys = frozenset()

Written = tuple[list[str], list[str]]
"""The names of shards of latents, and of shards of masks."""


@dataclass(frozen=True)
class ClaimOutcome:
    """The outcome of claiming.

    Attributes:
        own: The keys that this program has claimed and encodes.
        lacking: All keys that are not in the cache: its own, and those claimed by others.
        rivals: The names of others' claims on keys that the cache lacks.
        name: The name of its own claim; empty if it has none.
    """

    own: Keys
    lacking: Keys
    rivals: tuple[str, ...] = ()
    name: str = ""

    @classmethod
    def beside(cls, others: Mapping[str, Keys], lacking: Keys) -> ClaimOutcome:
        """Claim the keys that the cache lacks and no other program has claimed.

        Args:
            others: The keys of each claim that has precedence over this one, by the claim's name.
            lacking: The keys that the cache lacks, determined after `others` was read.
        """
        rivals = tuple(name for name, keys in others.items() if keys & lacking)
        return cls(lacking - NO_KEYS.union(*others.values()), lacking, rivals)


class EncodingClaims(Protocol):
    """The claims of all programs on the keys that a cache lacks.

    Attributes:
        looks_every_s: Seconds between two checks of the claims that a program waits for.
    """

    looks_every_s: float

    def taken(
        self, lacking: Callable[[], Keys], on_busy: Callable[[LockHolder], None]
    ) -> contextlib.AbstractContextManager[ClaimOutcome]:
        """Claim the keys that are lacking and unclaimed, until the end of the context.

        If nothing can be written, nothing is claimed and all lacking keys are the caller's.

        Args:
            lacking: Returns the keys that are not in the cache now.
            on_busy: Called at each check with the program that is claiming, if this has to wait.

        Raises:
            StorageError: The disk is full, or the store cannot be used.
        """

    def living(self, taken: ClaimOutcome) -> list[LockHolder]:
        """Return the owners of rivals' claims that are still held, not ended or left by a kill.

        Raises:
            StorageError: The store cannot be used.
        """

    def tell(self, taken: ClaimOutcome, written: Written) -> None:
        """Publish the shards written for a claim before it ends, as disks may list them late.

        Raises:
            StorageError: The disk is full.
        """

    def told(self, taken: ClaimOutcome) -> Written:
        """Return the shards published by the rivals whose claims have ended."""

    def of_others(self) -> Keys:
        """Return the keys that other programs have claimed; for callers without a claim.

        Raises:
            StorageError: The store cannot be used.
        """


def packed(keys: Keys) -> bytes:
    """Return keys as the bytes of a file: a SHA-256 of the rest, then the sorted keys."""
    content = b"".join(sorted(keys))
    return hashlib.sha256(content).digest() + content


def unpacked(stored: bytes) -> Keys:
    """Return the keys stored by `packed`; none if the bytes are damaged."""
    digest, content = stored[:32], stored[32:]
    if len(content) % KEY_BYTES or hashlib.sha256(content).digest() != digest:
        return NO_KEYS
    places = range(0, len(content), KEY_BYTES)
    return frozenset(content[start : start + KEY_BYTES] for start in places)
