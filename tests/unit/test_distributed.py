"""Messages between the processes of a run through PyTorch's store, with threads as processes."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch

from impasto.datasets import distributed
from impasto.datasets.distributed import DistributedGroup, PeerError, ending_together
from impasto.datasets.store_keys import StoreKeys
from impasto.errors import DatasetError, Interrupted, RunError

LOST = RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")


class Barrier:
    """PyTorch's barrier for threads: the n-th one of each process belongs to the n-th of others.

    Attributes:
        begun: How many barriers each process has started.
        begin: Called at its start.
    """

    def __init__(self, size):
        self.begun = [0] * size
        self.begin = lambda: None
        self._changed = threading.Condition()

    def __call__(self, **_):
        self.begin()
        with self._changed:
            self.begun[rank()] += 1
            self._changed.notify_all()
        return self

    def is_completed(self):
        return True

    def wait(self):
        own = self.begun[rank()]
        with self._changed:
            assert self._changed.wait_for(lambda: min(self.begun) >= own, timeout=60)


THREAD = threading.local()


def rank():
    """The process that this thread stands for: the first, unless `together` says otherwise."""
    return getattr(THREAD, "rank", 0)


@pytest.fixture
def processes(monkeypatch):
    """Return a function that makes the groups of several processes with a common store and
    barrier."""

    def made(size, backend="gloo"):
        c10d, store, barrier = torch.distributed, torch.distributed.HashStore(), Barrier(size)
        store.set_timeout(timedelta(seconds=60))
        monkeypatch.setattr(c10d.distributed_c10d, "_get_default_store", lambda: store)
        monkeypatch.setattr(c10d, "barrier", barrier)
        monkeypatch.setattr(c10d, "get_backend", lambda: backend)
        groups = [DistributedGroup(rank, size, rank, StoreKeys()) for rank in range(size)]
        return groups, barrier

    return made


def together(groups, work):
    """Run `work` with each group, in a thread each; return the results."""

    def work_as(group):
        THREAD.rank = group.rank
        return work(group)

    with ThreadPoolExecutor(len(groups)) as pool:
        return [future.result() for future in [pool.submit(work_as, group) for group in groups]]


def failing(error, group):
    """Make a process fail, and return its exception."""
    with pytest.raises(type(error)) as ended, ending_together(group):
        raise error
    return ended.value


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_texts_of_any_length_come_in_pieces(processes, monkeypatch, backend):
    monkeypatch.setattr(distributed, "PIECE_BYTES", 5)
    groups, _ = processes(3, backend)
    texts = ["", "é" * 33, "12345"]
    for _ in range(2):
        assert together(groups, lambda group: group.gather(texts[group.rank])) == [texts] * 3


def test_a_dead_connection_says_what_the_dead_process_told(processes):
    (first, second), barrier = processes(2)
    first._keys.next_round()  # a process that fails before its first exchange has none
    error = failing_without_waiting(second, DatasetError("no images"))

    def torn():
        raise LOST

    barrier.wait = torn
    with pytest.raises(DatasetError, match="no images") as told:
        first.gather("")
    assert isinstance(told.value.__cause__, PeerError)
    assert error.args == ("no images",)


def failing_without_waiting(group, error):
    group._store.add(group._keys.of("heard"), group.size)
    return failing(error, group)


def test_a_torn_connection_outside_an_exchange_says_so_too(processes):
    first, second = processes(2)[0]
    failing_without_waiting(second, DatasetError("no images"))
    with pytest.raises(DatasetError, match="no images"), ending_together(first):
        raise LOST


def test_nobody_goes_into_nccl_s_first_barrier_before_all_are_there(processes):
    """A process there would wait for one that has failed, and not be notified."""
    (first, second), barrier = processes(2, "nccl")
    failing_without_waiting(second, DatasetError("no images"))

    def begin():
        raise AssertionError("in the barrier")

    barrier.begin = begin
    with pytest.raises(DatasetError, match="no images"):
        first.gather("")


def test_who_notices_that_one_was_killed_is_not_named(processes):
    _, second, third = processes(3)[0]
    failing(LOST, second)
    with pytest.raises(RunError) as told:
        third.raise_fault()
    assert str(told.value).startswith("Another process of this run has ended")
    assert "Process 2" not in str(told.value)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("Stopped.", signal.SIGTERM)])
def test_a_process_that_is_stopped_stops_all(processes, stop):
    first, second = processes(2)[0]
    first._store.add(first._keys.of("heard"), 1)
    failing(stop, second)
    with pytest.raises(Interrupted, match=r"Stopped.*Reported by process 2 of 2") as told:
        first.raise_fault()
    assert told.value.exit_code == getattr(stop, "exit_code", 128 + signal.SIGINT)


def test_after_an_error_all_begin_anew(processes):
    """After an error at different exchanges, the next exchanges start with new keys."""
    groups, barrier = processes(2)
    first, second = groups
    first._keys.next_round()
    first._keys.barriers, second._keys.barriers = 3, 2
    barrier.begun = [3, 2]  # an error ended the third of the first process
    failing_without_waiting(second, DatasetError("no images"))
    with pytest.raises(DatasetError):
        first.raise_fault()
    assert together(groups, lambda group: group.gather(f"{group.rank}")) == [["0", "1"]] * 2
    assert [group._keys.barriers for group in groups] == barrier.begun == [5, 5]


def test_an_error_is_told_once(processes):
    """The error passes through two handlers, of the preparation and of the command."""
    first, second = processes(2)[0]
    second._store.add(second._keys.of("heard"), 1)
    with (
        pytest.raises(RunError, match="in words"),
        ending_together(second),
    ):
        try:
            with ending_together(second):
                raise DatasetError("no images")
        except DatasetError as error:
            raise RunError("in words") from error
    with pytest.raises(DatasetError, match="no images"):
        first.raise_fault()
    first._looked = 0.0
    first.raise_fault()


def test_processes_that_are_started_again_hear_nothing_of_the_time_before(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    keys = []
    for number in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", number)
        keys.append(StoreKeys().of("fault"))
    assert keys[0] != keys[1]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # the launchers of two machines count separately
    assert StoreKeys().of("fault") == keys[0]
