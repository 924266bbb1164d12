"""Claims on what is encoded into a cache in a folder, between the programs that see it.

A claim (`data/caching/encoding_claims.py`) is a file of keys beside a presence file
(`locks.SharedLock`), which its owner keeps fresh: `.in-use.NAME.lock` and `NAME.keys` in
`<cache>/claims`. The presence is there before the keys and goes after them, so keys without a
living owner count for nothing. Who claims something does so alone (`locks.FolderLock`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from impasto import files, locks, storage_errors, temporary_names
from impasto.data.caching.encoding_claims import (
    CLAIMS,
    KEYS_SUFFIX,
    NO_KEYS,
    Keys,
    Taken,
    packed,
    unpacked,
)
from impasto.lock_file import STALE_S, LockHolder


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
        """Claim with a file of keys, which goes with the context."""
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
        """Those of the rivals whose presence files are fresh."""
        there = self._alive()
        return [holder for presence, holder in there.items() if presence.name in taken.rivals]

    def of_others(self) -> Keys:
        """What stands in the keys of all whose presence files are fresh."""
        return NO_KEYS.union(*(read_keys(keys_file(file)) for file in self._alive()))

    def _alive(self) -> dict[Path, LockHolder]:
        """Those that give signs of life: not who was stopped, or could not remove its file."""
        there = locks.shared_locks(self._folder)
        return {file: holder for file, holder in there.items() if holder.age_s < STALE_S}

    def _claim(
        self, own: Path, lacking: Callable[[], Keys], on_busy: Callable[[LockHolder], None]
    ) -> Taken:
        with locks.FolderLock(self._folder, "claiming images to encode", on_busy):
            others = self._others(own)  # read first: who ends a claim has written before
            taken = Taken.beside({place.name: keys for place, keys in others.items()}, lacking())
            if taken.own:
                write_keys(keys_file(own), taken.own)
        return taken

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
        return NO_KEYS
