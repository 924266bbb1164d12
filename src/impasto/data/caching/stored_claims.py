"""Claims on what is encoded into a cache in an object store, between programs on any machines.

`claims/00000003.keys` below the cache is the third claim: its owner, and the keys. A program takes
the next number, which the store grants to one program only (`storage/claims.py`); if two claims
have a key in common, it belongs to the lower number. A listing made after a program's claim was
put shows all lower numbers, so no clock decides. While a claim is held, a thread puts
`claims/00000003.beat` regularly; after two minutes without it, by the store's clock, the owner
is regarded as ended.

An ended claim is marked as such and stays for a while: the highest number is never removed, or
numbers would be given twice. A program that was suspended between listing the highest number and
putting its claim may get one that was removed meanwhile. It then finds much higher numbers, and
takes another.

The requirements are those of the locks on a remote run (`runs/remote/ownership.py`): listings that
show all earlier puts, and conditional writes. Without those, programs that start within the same
second may encode the same images; nothing is lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from impasto import storage_errors
from impasto.data.caching.encoding_claims import (
    CLAIMS,
    NO_KEYS,
    ClaimOutcome,
    Keys,
    Written,
    packed,
    unpacked,
)
from impasto.errors import StorageError
from impasto.lock_file import HEARTBEAT_S, STALE_S, LockHolder
from impasto.owners import current_process, parse_process_token
from impasto.parsing import parse_json
from impasto.storage import claims, objects

KEPT = 20
"""Ended claims are removed once their number is this far below the newest."""

LOOKS_EVERY_S = 5.0
"""Seconds between two checks of the claims that a program waits for."""

_HEADER_BYTES = 1024
_ATTEMPTS = 100


@dataclass(frozen=True)
class _Claim:
    """A claim as stored."""

    holder: LockHolder
    has_ended: bool
    keys: Keys


class StoredClaims:
    """The claims on one cache in an object store.

    Args:
        cache: The folder of the cache.
    """

    looks_every_s = LOOKS_EVERY_S

    def __init__(self, cache: Path) -> None:
        self._folder = cache / CLAIMS

    @contextlib.contextmanager
    def taken(
        self, lacking: Callable[[], Keys], on_busy: Callable[[LockHolder], None]
    ) -> Iterator[ClaimOutcome]:
        """Take the next claim number; the claim is marked as ended when the context exits."""
        del on_busy  # taking a number never waits
        own = _OwnClaim(self._folder, lacking())
        try:
            there: set[int] | None = None
            with contextlib.suppress(StorageError):
                there = own.take()
            if there is None:
                own.end()  # the store may have it, though it reported an error
                found = lacking()
                yield ClaimOutcome(found, found)
                return
            with own.beating():
                yield self._shared_out(own, there, lacking)
        finally:
            own.end()

    def living(self, taken: ClaimOutcome) -> list[LockHolder]:
        """Return the holders of the rivals' claims that have not ended and have fresh beats."""
        numbers = [int(rival) for rival in taken.rivals]
        living = self._alive(self._read(numbers, with_keys=False))
        return [claim.holder for claim in living.values()]

    def tell(self, taken: ClaimOutcome, written: Written) -> None:
        """Do nothing: listings of a store show all earlier puts."""

    def told(self, taken: ClaimOutcome) -> Written:  # noqa: ARG002 - as in FolderClaims
        """Return no names: none are published in a store."""
        return [], []

    def of_others(self) -> Keys:
        """Return the keys of all claims that have not ended."""
        living = self._alive(self._read(sorted(numbers_in(self._folder)), with_keys=True))
        return NO_KEYS.union(*(claim.keys for claim in living.values()))

    def _shared_out(
        self, own: _OwnClaim, there: set[int], lacking: Callable[[], Keys]
    ) -> ClaimOutcome:
        read = self._read(sorted(n for n in there if n < own.number), with_keys=True)
        others = self._alive(read)
        found = lacking()  # after the claims were read: owners write shards before they end one
        old = (n for n, content in read.items() if n <= own.number - KEPT and content is not None)
        self._tidy(set(old) - others.keys())
        return ClaimOutcome.beside(
            {str(number): claim.keys for number, claim in others.items()}, found
        )

    def _read(self, numbers: list[int], *, with_keys: bool) -> dict[int, bytes | None]:
        """Return the stored claims of these numbers; None for those that cannot be read now."""
        files_of_claims = [file_of(self._folder, number) for number in numbers]
        read = (
            objects.read_all(files_of_claims)
            if with_keys
            else objects.read_beginnings(files_of_claims, _HEADER_BYTES)
        )
        pairs = zip(numbers, read, strict=True)
        return {
            number: None if isinstance(content, OSError) else content for number, content in pairs
        }

    def _alive(self, read: Mapping[int, bytes | None]) -> dict[int, _Claim]:
        """Return those of some stored claims that have not ended."""
        open_ones = {
            number: claim
            for number, content in read.items()
            if content is not None
            and (claim := _parsed(content)) is not None
            and not claim.has_ended
        }
        if not open_ones:
            return {}
        now = claims.clock_of(self._folder)
        aged = {
            number: replace(claim, holder=replace(claim.holder, age_s=self._age_s(number, now)))
            for number, claim in open_ones.items()
        }
        return {number: claim for number, claim in aged.items() if _is_alive(claim.holder)}

    def _age_s(self, number: int, now: float) -> float:
        """Return the seconds since the owner of a claim gave a sign of life."""
        for sign in (_beat_of(self._folder, number), file_of(self._folder, number)):
            modified = claims.modified_at(sign)
            if modified is not None:
                return max(0.0, now - modified)
        return STALE_S

    def _tidy(self, ended: set[int]) -> None:
        """Remove ended claims and their beats."""
        with contextlib.suppress(StorageError, OSError):  # the next program will remove them
            for number in sorted(ended):
                objects.remove(_beat_of(self._folder, number))
                objects.remove(file_of(self._folder, number))


class _OwnClaim:
    """The claim of this program.

    Attributes:
        number: Its number; 0 before it has one.
        keys: The claimed keys.
    """

    def __init__(self, folder: Path, keys: Keys) -> None:
        self._folder, self.keys, self.number = folder, keys, 0
        self._said = {
            "owner": current_process().token,
            "host": socket.gethostname()[:100],
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "what": "encoding images",
            "random": os.urandom(8).hex(),
        }
        self._ended = threading.Event()
        self._put, self._has_ended = b"", False

    def take(self) -> set[int]:
        """Take the next number; return all numbers in use after that.

        Raises:
            StorageError: The store cannot be used.
        """
        self._put = content = self._content(self.keys, ended=False)
        for _ in range(_ATTEMPTS):
            self.number = max(numbers_in(self._folder), default=0) + 1
            self._has_ended = False
            if not claims.create(file_of(self._folder, self.number), content):
                continue
            there = numbers_in(self._folder)
            if max(there, default=0) >= self.number + KEPT:
                self.end()  # the number may be one that was removed
            elif self._is_own(content):
                return there
        raise StorageError(f"{self._folder}: other programs took each claim number that was tried.")

    def _is_own(self, content: bytes) -> bool:
        """Return whether no other program has the number; some stores grant one number twice."""
        return self._stored() == content

    def _stored(self) -> bytes | None:
        """Return the claim stored under the number now; None if there is none."""
        file = file_of(self._folder, self.number)
        with storage_errors.reported(file), contextlib.suppress(FileNotFoundError):
            return objects.read(file)
        return None

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Give signs of life from a thread until the context exits."""
        thread = threading.Thread(target=self._beat, name="claim", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def end(self) -> None:
        """Mark the claim as ended; if the store does not answer now, it ends by its age.

        A number that another program has taken since is left alone.
        """
        if not self.number or self._has_ended:
            return
        with contextlib.suppress(StorageError, OSError):
            stored = self._stored()
            self._has_ended = stored in (None, self._put)
            if stored == self._put:
                content = self._content(NO_KEYS, ended=True)
                claims.write(file_of(self._folder, self.number), content)
            if self._has_ended:  # also if others took this program for killed
                objects.remove(_beat_of(self._folder, self.number))

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            with contextlib.suppress(StorageError, OSError):  # the next attempt may succeed
                claims.write(_beat_of(self._folder, self.number), b"alive")

    def _content(self, keys: Keys, *, ended: bool) -> bytes:
        header = json.dumps({**self._said, "ended": ended}).encode("ascii")
        return header.ljust(_HEADER_BYTES) + packed(keys)


def numbers_in(folder: Path) -> set[int]:
    """Return the numbers of all claims in a folder.

    Raises:
        StorageError: The store cannot be used.
    """
    names = (key.removesuffix(".keys") for key in objects.find(folder).objects)
    return {int(name) for name in names if len(name) == 8 and name.isascii() and name.isdigit()}


def file_of(folder: Path, number: int) -> Path:
    """Return the path of a claim's object."""
    return folder / f"{number:08d}.keys"


def _beat_of(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.beat"


def _is_alive(holder: LockHolder) -> bool:
    """Return whether the owner of a claim may still write what it claimed."""
    if holder.owner is None or holder.age_s >= STALE_S:
        return False
    return holder.owner.is_running() is not False


def _parsed(content: bytes) -> _Claim | None:
    """Return a stored claim, without keys if they were not read; None if it is damaged."""
    try:
        said = parse_json(content[:_HEADER_BYTES].decode("ascii"))
        owner = parse_process_token(str(said["owner"]))
        host, since, what = (str(said[name])[:100] for name in ("host", "since", "what"))
        has_ended = said.get("ended") is True
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    holder = LockHolder("", owner, host, since, what, 0.0)
    return _Claim(holder, has_ended, unpacked(content[_HEADER_BYTES:]))
