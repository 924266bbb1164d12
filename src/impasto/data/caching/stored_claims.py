"""Claims on what is encoded into a cache in an object store, between any machines.

`claims/00000003.keys` below the cache is the third claim: who it is of, and the keys. A program
takes the next number, which the store gives to one alone (`storage/claims.py`); of two claims on
one key the lower number has it. Every lower number was there before, so a listing after the own
claim was put shows all that count, and no clock decides. While a claim is held a thread puts
`claims/00000003.beat` again and again; without that for two minutes, by the store's clock, the
owner counts as ended.

An ended claim says so and stays for a while: the highest number is never removed, or numbers would
be given twice. Who was asleep between its look for the highest number and its claim may get one
that was removed since. It finds numbers that are far above its own, and takes another.

It rests on what turns at writing a run rest on (`runs/remote/ownership.py`): listings that show
what was put before them, and conditional writes. Without those, programs that begin within the
same second may encode the same images; nothing is lost.
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
    Keys,
    Taken,
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
"""Ended claims of so many numbers below the newest one stay."""

LOOKS_EVERY_S = 5.0
"""Seconds between two looks at claims that a program waits for."""

_HEADER_BYTES = 1024
_ATTEMPTS = 100


@dataclass(frozen=True)
class _Claim:
    """A claim as the store has it."""

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
    ) -> Iterator[Taken]:
        """Take the next claim number; the claim is marked as ended when the context exits."""
        del on_busy  # nobody waits for a number
        own = _OwnClaim(self._folder, lacking())
        try:
            there: set[int] | None = None
            with contextlib.suppress(StorageError):
                there = own.take()
            if there is None:
                own.end()  # the store may have it, though it did not say so
                found = lacking()
                yield Taken(found, found)
                return
            with own.beating():
                yield self._shared_out(own, there, lacking)
        finally:
            own.end()

    def living(self, taken: Taken) -> list[LockHolder]:
        """Those of the rivals whose objects do not say that they ended, and have fresh beats."""
        numbers = [int(rival) for rival in taken.rivals]
        living = self._alive(self._read(numbers, with_keys=False))
        return [claim.holder for claim in living.values()]

    def tell(self, taken: Taken, written: Written) -> None:
        """Say nothing: listings of a store show what was put before them."""

    def told(self, taken: Taken) -> Written:  # noqa: ARG002 - as of a folder
        """Return no names: nobody writes any into a store."""
        return [], []

    def of_others(self) -> Keys:
        """What stands in the claims of all numbers that have not ended."""
        living = self._alive(self._read(sorted(numbers_in(self._folder)), with_keys=True))
        return NO_KEYS.union(*(claim.keys for claim in living.values()))

    def _shared_out(self, own: _OwnClaim, there: set[int], lacking: Callable[[], Keys]) -> Taken:
        read = self._read(sorted(n for n in there if n < own.number), with_keys=True)
        others = self._alive(read)
        found = lacking()  # after the claims were read: who ends one has written before
        old = (n for n, content in read.items() if n <= own.number - KEPT and content is not None)
        self._tidy(set(old) - others.keys())
        return Taken.beside({str(number): claim.keys for number, claim in others.items()}, found)

    def _read(self, numbers: list[int], *, with_keys: bool) -> dict[int, bytes | None]:
        """The claims of these numbers as they are stored; None of what cannot be read now."""
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
        """Those of some claims that have not ended."""
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
        """Seconds since the owner of a claim gave a sign of life."""
        for sign in (_beat_of(self._folder, number), file_of(self._folder, number)):
            modified = claims.modified_at(sign)
            if modified is not None:
                return max(0.0, now - modified)
        return STALE_S

    def _tidy(self, ended: set[int]) -> None:
        """Remove claims that have ended, and signs of life with them."""
        with contextlib.suppress(StorageError, OSError):  # the next program does it
            for number in sorted(ended):
                objects.remove(_beat_of(self._folder, number))
                objects.remove(file_of(self._folder, number))


class _OwnClaim:
    """The claim of this program.

    Attributes:
        number: Its number.
        keys: What it names.
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
        """Take the next number; returns all numbers that were there after that.

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
        raise StorageError(f"{self._folder}: numbers of claims change hands all the time.")

    def _is_own(self, content: bytes) -> bool:
        """Whether no other program has the number, of a store that gives it to two."""
        return self._stored() == content

    def _stored(self) -> bytes | None:
        """What stands under the number now; None where nothing does."""
        file = file_of(self._folder, self.number)
        with storage_errors.reported(file), contextlib.suppress(FileNotFoundError):
            return objects.read(file)
        return None

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Give signs of life meanwhile."""
        thread = threading.Thread(target=self._beat, name="claim", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def end(self) -> None:
        """Say that the claim has ended; if the store does not answer now, it ends by its age.

        A number that another program has by now is left alone.
        """
        if not self.number or self._has_ended:
            return
        with contextlib.suppress(StorageError, OSError):
            stored = self._stored()
            self._has_ended = stored in (None, self._put)
            if stored == self._put:
                content = self._content(NO_KEYS, ended=True)
                claims.write(file_of(self._folder, self.number), content)
            if self._has_ended:  # also where others took it for one that was killed
                objects.remove(_beat_of(self._folder, self.number))

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            with contextlib.suppress(StorageError, OSError):  # the next one may get through
                claims.write(_beat_of(self._folder, self.number), b"alive")

    def _content(self, keys: Keys, *, ended: bool) -> bytes:
        header = json.dumps({**self._said, "ended": ended}).encode("ascii")
        return header.ljust(_HEADER_BYTES) + packed(keys)


def numbers_in(folder: Path) -> set[int]:
    """The numbers of all claims that are there.

    Raises:
        StorageError: The store cannot be used.
    """
    names = (key.removesuffix(".keys") for key in objects.find(folder).objects)
    return {int(name) for name in names if len(name) == 8 and name.isascii() and name.isdigit()}


def file_of(folder: Path, number: int) -> Path:
    """The object of a claim."""
    return folder / f"{number:08d}.keys"


def _beat_of(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.beat"


def _is_alive(holder: LockHolder) -> bool:
    """Whether the owner of a claim may still write what it claimed."""
    if holder.owner is None or holder.age_s >= STALE_S:
        return False
    return holder.owner.is_running() is not False


def _parsed(content: bytes) -> _Claim | None:
    """A claim, without keys where they were not read; None where it is damaged."""
    try:
        said = parse_json(content[:_HEADER_BYTES].decode("ascii"))
        owner = parse_process_token(str(said["owner"]))
        host, since, what = (str(said[name])[:100] for name in ("host", "since", "what"))
        has_ended = said.get("ended") is True
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    holder = LockHolder("", owner, host, since, what, 0.0)
    return _Claim(holder, has_ended, unpacked(content[_HEADER_BYTES:]))
