"""Claims on what is encoded into a cache in a folder, between all programs that share the folder.

A claim (`data/caching/encoding_claims.py`) is a file of keys beside a presence file
(`locks.SharedLock`), which its owner touches regularly: `.in-use.NAME.lock` and `NAME.keys` in
`<cache>/claims`. The presence file is created before the keys and removed after them, so keys
without a living owner are ignored. Only one program claims at a time (`locks.FolderLock`).

A network disk may list the cache as it was before a claim ended. So the owner writes the names of
its shards to `NAME.written` before it removes its presence file; programs that waited open that
file and those shards by name, which such a disk does not answer from its old listing. The file is
kept for an hour.
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
    ClaimOutcome,
    Keys,
    Written,
    packed,
    unpacked,
)
from impasto.lock_file import STALE_S, LockHolder
from impasto.parsing import parse_json

WRITTEN_SUFFIX = ".written"
WRITTEN_KEPT_S = 3600.0
"""Seconds for which the shard names of an ended claim are kept: longer than any disk's listing is
outdated."""


class FolderClaims:
    """The claims of all programs that share the folder of a cache.

    Args:
        cache: The folder of the cache.
    """

    looks_every_s = 0.5

    def __init__(self, cache: Path) -> None:
        self._folder = cache / CLAIMS

    @contextlib.contextmanager
    def taken(
        self, lacking: Callable[[], Keys], on_busy: Callable[[LockHolder], None]
    ) -> Iterator[ClaimOutcome]:
        """Claim keys in a file that is removed when the context exits."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            found = lacking()
            yield ClaimOutcome(found, found)
            return
        with locks.SharedLock(self._folder, "encoding images", on_busy) as presence:
            if not presence.file.is_file():
                found = lacking()
                yield ClaimOutcome(found, found)
                return
            try:
                yield self._claim(presence.file, lacking, on_busy)
            finally:
                with contextlib.suppress(OSError):  # without its owner it is ignored
                    keys_file(presence.file).unlink(missing_ok=True)

    def living(self, taken: ClaimOutcome) -> list[LockHolder]:
        """Return the holders of the rivals' claims whose presence files are fresh."""
        there = self._alive()
        return [holder for presence, holder in there.items() if presence.name in taken.rivals]

    def tell(self, taken: ClaimOutcome, written: Written) -> None:
        """Write the shards' names beside the keys; nothing if no key was claimed or written."""
        if taken.name and any(written):
            files.write_json(written_file(self._folder / taken.name), written)

    def told(self, taken: ClaimOutcome) -> Written:
        """Return the shards published by ended rivals.

        The files of other rivals are not opened: Linux caches for a while that a file is missing on
        a network disk.
        """
        there = {presence.name for presence in self._alive()}
        ended = [rival for rival in taken.rivals if rival not in there]
        told = [read_written(written_file(self._folder / rival)) for rival in ended]
        return [n for latents, _ in told for n in latents], [n for _, masks in told for n in masks]

    def of_others(self) -> Keys:
        """Return the keys claimed by all programs whose presence files are fresh."""
        return NO_KEYS.union(*(read_keys(keys_file(file)) for file in self._alive()))

    def _alive(self) -> dict[Path, LockHolder]:
        """Return the fresh presence files; stale ones belong to stopped or killed programs."""
        there = locks.shared_locks(self._folder)
        return {file: holder for file, holder in there.items() if holder.age_s < STALE_S}

    def _claim(
        self, own: Path, lacking: Callable[[], Keys], on_busy: Callable[[LockHolder], None]
    ) -> ClaimOutcome:
        with locks.FolderLock(self._folder, "claiming images to encode", on_busy):
            others = self._others(own)  # read first: owners write shards before they end a claim
            taken = ClaimOutcome.beside(
                {presence.name: keys for presence, keys in others.items()}, lacking()
            )
            taken = replace(taken, name=own.name)
            if taken.own:
                write_keys(keys_file(own), taken.own)
        return taken

    def _others(self, own: Path) -> dict[Path, Keys]:
        """Return the keys of each living claim by its presence file; remove files of dead ones."""
        with storage_errors.reported(self._folder):
            with contextlib.suppress(OSError):  # another user's, in a shared folder
                temporary_names.remove_leftovers(self._folder)
            living = self._alive().keys() - {own}
            named = {keys_file(presence) for presence in (*living, own)}
            for file in self._folder.glob(f"*{KEYS_SUFFIX}"):
                if file not in named:
                    with contextlib.suppress(OSError):  # its owner may just be removing it
                        file.unlink()
            now = own.stat().st_mtime  # by the disk's clock
            for file in self._folder.glob(f"*{WRITTEN_SUFFIX}"):
                with contextlib.suppress(OSError):
                    if now - file.stat().st_mtime > WRITTEN_KEPT_S:
                        file.unlink()
        return {presence: read_keys(keys_file(presence)) for presence in sorted(living)}


def keys_file(presence: Path) -> Path:
    """Return the file with the keys of a claim, given the presence file of its owner."""
    return presence.with_name(f"{_name_of(presence)}{KEYS_SUFFIX}")


def written_file(presence: Path) -> Path:
    """Return the file with the shard names of a claim, given the presence file of its owner."""
    return presence.with_name(f"{_name_of(presence)}{WRITTEN_SUFFIX}")


def _name_of(presence: Path) -> str:
    return presence.name.removeprefix(".in-use.").removesuffix(".lock")


def write_keys(file: Path, keys: Keys) -> None:
    """Write the keys of a claim atomically, with their SHA-256 before them.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    with files.replace_file(file) as partial:
        partial.write_bytes(packed(keys))


def read_keys(file: Path) -> Keys:
    """Return the keys of a claim; none if the file is missing or damaged."""
    try:
        return unpacked(file.read_bytes())
    except OSError:
        return NO_KEYS


def read_written(file: Path) -> Written:
    """Return the names of shards of latents and of masks; none if the file is missing or bad."""
    try:
        latents, masks = parse_json(file.read_text(encoding="utf-8"))
        return [str(name) for name in latents], [str(name) for name in masks]
    except (OSError, ValueError, TypeError):
        return [], []
