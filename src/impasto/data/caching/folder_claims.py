"""Claims on what is encoded into a cache in a folder, between the programs that see it.

A claim (`data/caching/encoding_claims.py`) is a file of keys beside a presence file
(`locks.SharedLock`), which its owner keeps fresh: `.in-use.NAME.lock` and `NAME.keys` in
`<cache>/claims`. The presence is there before the keys and goes after them, so keys without a
living owner count for nothing. Who claims something does so alone (`locks.FolderLock`).

A network disk may still list the cache as it was before a claim ended. So the owner says in
`NAME.written` which shards it has written, before its presence goes; who waited for it opens that
file and those shards by their names, which such a disk looks up anew. The file stays an hour.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from impasto import files, locks, storage_errors, temporary_names
from impasto.data.caching.encoding_claims import (
    CLAIMS,
    KEYS_SUFFIX,
    NO_KEYS,
    Keys,
    Taken,
    Written,
    packed,
    unpacked,
)
from impasto.lock_file import STALE_S, LockHolder
from impasto.parsing import parse_json

WRITTEN_SUFFIX = ".written"
WRITTEN_KEPT_S = 3600.0
"""Seconds that the names of shards of an ended claim stay; no disk lists that late."""


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

    def tell(self, taken: Taken, written: Written) -> None:
        """Write the names of shards beside the keys; nothing where nothing was claimed."""
        if taken.name and any(written):
            files.write_json(written_file(self._folder / taken.name), written)

    def told(self, taken: Taken) -> Written:
        """What ended rivals have said; of others nothing is opened, or the disk would remember it.

        Linux keeps for a while that a file of a network disk is missing.
        """
        there = {presence.name for presence in self._alive()}
        ended = [rival for rival in taken.rivals if rival not in there]
        told = [read_written(written_file(self._folder / rival)) for rival in ended]
        return [n for latents, _ in told for n in latents], [n for _, masks in told for n in masks]

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
            taken = Taken.beside(
                {presence.name: keys for presence, keys in others.items()}, lacking()
            )
            taken = replace(taken, name=own.name)
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
            now = own.stat().st_mtime  # of the disk's clock
            for file in self._folder.glob(f"*{WRITTEN_SUFFIX}"):
                with contextlib.suppress(OSError):
                    if now - file.stat().st_mtime > WRITTEN_KEPT_S:
                        file.unlink()
        return {presence: read_keys(keys_file(presence)) for presence in sorted(living)}


def keys_file(presence: Path) -> Path:
    """The file with the keys of a claim, by the presence file of its owner."""
    return presence.with_name(f"{_name_of(presence)}{KEYS_SUFFIX}")


def written_file(presence: Path) -> Path:
    """The file with the names of the shards of a claim, by the presence file of its owner."""
    return presence.with_name(f"{_name_of(presence)}{WRITTEN_SUFFIX}")


def _name_of(presence: Path) -> str:
    return presence.name.removeprefix(".in-use.").removesuffix(".lock")


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


def read_written(file: Path) -> Written:
    """The names of shards of latents and of masks; none where the file is missing or damaged."""
    try:
        latents, masks = parse_json(file.read_text(encoding="utf-8"))
        return [str(name) for name in latents], [str(name) for name in masks]
    except (OSError, ValueError, TypeError):
        return [], []
