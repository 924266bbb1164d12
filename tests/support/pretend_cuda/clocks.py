"""A detector of memory races: streams and host threads as vector clocks (Mattern 1989).

A stream counts its kernels, and records how far it has waited for each other stream. Two accesses
to the same memory, at least one of them a write, must be ordered by what one knows of the other.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePath

Clock = Counter["Timeline"]


class Timeline:
    """A stream, or a thread of the host: its operations happen in order."""

    def __init__(self, name: str, *, is_host: bool = False) -> None:
        self.name, self.is_host = name, is_host
        self.clock: Clock = Counter()

    def advance(self) -> None:
        self.clock[self] += 1

    def learn(self, clock: Clock) -> None:
        """Order later operations after everything that a clock knows of."""
        own = self.clock
        for other, count in clock.items():
            if count > own[other]:
                own[other] = count

    def __repr__(self) -> str:
        return self.name


@dataclass
class Findings:
    """Observations since the last `reset`, each with the function that caused it."""

    waits: Counter[str] = field(default_factory=Counter)
    races: Counter[str] = field(default_factory=Counter)
    frees: Counter[str] = field(default_factory=Counter)
    allocations: Counter[str] = field(default_factory=Counter)
    fail_at: str | None = None

    def reset(self) -> None:
        for counter in (self.waits, self.races, self.frees, self.allocations):
            counter.clear()
        self.fail_at = None


FINDINGS = Findings()
LOCK = threading.RLock()
_here = threading.local()


def host() -> Timeline:
    """Return the timeline of this host thread."""
    if not hasattr(_here, "host"):
        _here.host = Timeline(f"the thread {threading.current_thread().name}", is_host=True)
    return _here.host


def stand_beside() -> None:
    """Mark this thread as running in parallel with the training."""
    _here.is_beside = True


def host_waits_for(clock: Clock, how: str) -> None:
    """Record that the host waits for the device, and what it knows afterwards.

    Waits of threads that run in parallel with the training are not recorded: they do not delay it.
    """
    if not getattr(_here, "is_beside", False):
        FINDINGS.waits[f"{how} at {project_line()}"] += 1
    host().learn(clock)


class Stream(Timeline):
    """A replacement for `torch.cuda.Stream`."""

    _made = 0

    def __init__(self, device: object = None, priority: int = 0) -> None:
        super().__init__(f"stream {Stream._made}")
        Stream._made += 1
        self.device, self.device_index = device, 0

    def wait_stream(self, other: Stream) -> None:
        self.learn(other.clock)

    def wait_event(self, event: Event) -> None:
        self.learn(event.clock)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.clock = Counter(self.clock)
        return event

    def synchronize(self) -> None:
        host_waits_for(self.clock, "stream.synchronize")

    def query(self) -> bool:
        return True


class Event:
    """A replacement for `torch.cuda.Event`."""

    def __init__(self, *_: object, **__: object) -> None:
        self.clock: Clock = Counter()

    def record(self, stream: Stream | None = None) -> None:
        (stream or current_stream()).record_event(self)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or current_stream()).wait_event(self)

    def synchronize(self) -> None:
        host_waits_for(self.clock, "event.synchronize")

    def query(self) -> bool:
        return True


DEFAULT = Stream()


class _Asking:
    """The stream of the main thread, which autograd's own threads use too."""

    stream = DEFAULT


def current_stream(_: object = None) -> Stream:
    if isinstance(threading.current_thread(), threading._DummyThread):
        return _Asking.stream
    return getattr(_here, "stream", DEFAULT)


@contextlib.contextmanager
def use_stream(stream: Stream | None):
    before = current_stream()
    _set_stream(stream or before)
    try:
        yield
    finally:
        _set_stream(before)


def _set_stream(stream: Stream) -> None:
    _here.stream = stream
    if threading.current_thread() is threading.main_thread():
        _Asking.stream = stream


class Memory:
    """A block of memory: its last writer, its readers since then, and its owner.

    Args:
        owner: The stream that it was allocated on; None for pinned memory of the host, which
            PyTorch's
            allocator frees only after copies from it are complete.
        made_at: The function of the project that allocated it.
    """

    def __init__(self, owner: Stream | None, made_at: str = "") -> None:
        self.owner, self.made_at = owner, made_at
        self.writer: tuple[Timeline, int] | None = None
        self.readers: dict[Timeline, int] = {}
        self.recorded: set[Timeline] = set()

    def touch(self, who: Timeline, *, writes: bool, what: str) -> None:
        """Record an access, and a race if it is not ordered after earlier conflicting ones."""
        before = list(self.readers.items()) if writes else []
        before += [self.writer] if self.writer is not None else []
        for other, count in before:
            both_on_host = other.is_host and who.is_host  # ordered by locks and queues
            if other is not who and not both_on_host and who.clock[other] < count:
                FINDINGS.races[f"{who} in {what} meets {other} at {project_line()}"] += 1
        if writes:
            self.writer, self.readers = (who, who.clock[who]), {}
        else:
            self.readers[who] = who.clock[who]

    def __del__(self) -> None:
        """Record a fault if another stream may still use the memory, which can now be reused."""
        if self.owner is None:
            return
        users = list(self.readers.items()) + ([self.writer] if self.writer else [])
        for other, count in users:
            if other is self.owner or other.is_host or other in self.recorded:
                continue
            if self.owner.clock[other] < count:
                FINDINGS.frees[f"freed while {other} may use it; made at {self.made_at}"] += 1


def project_line() -> str:
    """Return the innermost running function of the project, as `file:function`."""
    frame = sys._getframe(1)
    while frame is not None:
        inside = _in_project(frame.f_code.co_filename)
        if inside:
            return f"{inside}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


@functools.cache
def _in_project(file: str) -> str:
    """Return the path of a project file within its package; an empty string for other files."""
    parts = PurePath(file).parts
    if "impasto" not in parts or "site-packages" in parts:
        return ""
    return PurePath(*parts[len(parts) - parts[::-1].index("impasto") :]).as_posix()
