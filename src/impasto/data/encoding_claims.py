"""Which latents and masks a program is about to encode, so that no other encodes them meanwhile.

A claim is a file of keys beside a presence file (`locks.SharedLock`), which its owner keeps fresh:
`.in-use.NAME.lock` and `NAME.keys` in `<cache>/claims`. The presence is there before the keys and
goes after them, so keys without a living owner count for nothing. Who claims something does so
alone (`locks.FolderLock`), and looks then for what the others have claimed, and after that for what
is in the cache: who has ended a claim has written all that it made before.

A claim is no lock of the cache: shards are written without what is there (`data/shards.py`). If one
counts for nothing, because it is damaged or its owner was asleep, images are encoded twice, and
kept once.

`data/stored_claims.py` has the claims on a cache in an object store.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from impasto import files, locks, storage_errors, temporary_names
from impasto.lock_file import STALE_S, LockHolder

CLAIMS = "claims"
"""The folder of claims, in that of the cache."""

KEYS_SUFFIX = ".keys"
KEY_BYTES = 16

Keys = frozenset[bytes]
"""Keys of latents and masks: the 16 bytes of their hex digits."""


@dataclass(frozen=True)
class Taken:
    """What a program has claimed.

    Attributes:
        own: What it encodes.
        lacking: What is not in the cache: its own, and what others have claimed.
        rivals: The names of others' claims on what it lacks.
    """

    own: Keys
    lacking: Keys
    rivals: tuple[str, ...] = ()


class EncodingClaims(Protocol):
    """The claims of all programs on what a cache lacks.

    Attributes:
        looks_every_s: Seconds between two looks at claims that a program waits for.
    """

    looks_every_s: float

    def taken(
        self, lacking: Callable[[], Keys], on_busy: Callable[[LockHolder], None]
    ) -> contextlib.AbstractContextManager[Taken]:
        """Claim what is lacking and nobody else has claimed, until the end of the context."""

    def living(self, taken: Taken) -> list[LockHolder]:
        """Those of the rivals whose claims have not ended, also by being killed."""

    def of_others(self) -> Keys:
        """What other programs have claimed; for who has claimed nothing."""


class FolderClaims:
    """The claims of all programs that see the folder of a cache.

    Args:
        cache: The folder of the cache.
    """

    looks_every_s = 0.5

    def __init__(self, cache: Path) -> None:
        self._folder = cache / CLAIMS

    @contextlib.contextmanager
    def taken(
        self, lacking: Callable[[], Keys], on_busy: Callable[[LockHolder], None]
    ) -> Iterator[Taken]:
        """Claim what is lacking and nobody else has claimed, until the end of the context.

        Where nothing can be written nobody claims anything: nothing can be encoded there either.

        Args:
            lacking: Looks what is not in the cache now.
            on_busy: Is told who is claiming something just now, at each look.

        Raises:
            StorageError: The disk is full.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            found = lacking()
            yield Taken(found, found)
            return
        with locks.SharedLock(self._folder, "encoding images", on_busy) as presence:
            if not presence.file.is_file():
                found = lacking()
                yield Taken(found, found)
                return
            try:
                yield self._claim(presence.file, lacking, on_busy)
            finally:
                with contextlib.suppress(OSError):  # without its owner it counts for nothing
                    keys_file(presence.file).unlink(missing_ok=True)

    def living(self, taken: Taken) -> list[LockHolder]:
        """Those of the rivals whose claims have not ended, also by being killed."""
        there = self._alive()
        return [holder for presence, holder in there.items() if presence.name in taken.rivals]

    def of_others(self) -> Keys:
        """What other programs have claimed; for who has claimed nothing."""
        return frozenset[bytes]().union(*(read_keys(keys_file(file)) for file in self._alive()))

    def _alive(self) -> dict[Path, LockHolder]:
        """Those that give signs of life: not who was stopped, or could not remove its file."""
        there = locks.shared_locks(self._folder)
        return {file: holder for file, holder in there.items() if holder.age_s < STALE_S}

    def _claim(
        self, own: Path, lacking: Callable[[], Keys], on_busy: Callable[[LockHolder], None]
    ) -> Taken:
        with locks.FolderLock(self._folder, "claiming images to encode", on_busy):
            others = self._others(own)
            found = lacking()  # after the claims were read: who ends one has written before
            theirs = frozenset[bytes]().union(*others.values())
            claimed = found - theirs
            if claimed:
                write_keys(keys_file(own), claimed)
        rivals = tuple(presence.name for presence, keys in others.items() if keys & found)
        return Taken(claimed, found, rivals)

    def _others(self, own: Path) -> dict[Path, Keys]:
        """What the living have claimed, by their presence; what dead ones left is removed."""
        with storage_errors.reported(self._folder):
            with contextlib.suppress(OSError):  # another person's, in a folder of several
                temporary_names.remove_leftovers(self._folder)
            living = self._alive().keys() - {own}
            named = {keys_file(presence) for presence in (*living, own)}
            for file in self._folder.glob(f"*{KEYS_SUFFIX}"):
                if file not in named:
                    with contextlib.suppress(OSError):  # its owner may be ending just now
                        file.unlink()
        return {presence: read_keys(keys_file(presence)) for presence in sorted(living)}


def keys_file(presence: Path) -> Path:
    """The file with the keys of a claim, by the presence file of its owner."""
    name = presence.name.removeprefix(".in-use.").removesuffix(".lock")
    return presence.with_name(f"{name}{KEYS_SUFFIX}")


def write_keys(file: Path, keys: Keys) -> None:
    """Write the keys of a claim, whole or not at all, behind their SHA-256.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    with files.replace_file(file) as partial:
        partial.write_bytes(packed(keys))


def read_keys(file: Path) -> Keys:
    """The keys of a claim; none where there are none, or where they are damaged."""
    try:
        return unpacked(file.read_bytes())
    except OSError:
        return frozenset()


def packed(keys: Keys) -> bytes:
    """Keys as the bytes of a file: the SHA-256 of what follows, then the keys in order."""
    content = b"".join(sorted(keys))
    return hashlib.sha256(content).digest() + content


def unpacked(stored: bytes) -> Keys:
    """The keys of `packed`; none where the bytes are not what was written."""
    digest, content = stored[:32], stored[32:]
    if len(content) % KEY_BYTES or hashlib.sha256(content).digest() != digest:
        return frozenset()
    places = range(0, len(content), KEY_BYTES)
    return frozenset(content[start : start + KEY_BYTES] for start in places)
