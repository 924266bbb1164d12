"""Locks between processes: held, released, taken from dead processes, never from living ones."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from impasto import files, lock_file, locks, temporary_names
from impasto.data.caching.latent_cache import LatentCache
from impasto.errors import DatasetError, RunError
from impasto.lock_file import LockHolder
from impasto.owners import ProcessIdentity, current_process, parse_process_token
from impasto.runs import RunDirectory

HOLDING = """
import sys, time
from pathlib import Path
from impasto import files, locks
folder = Path(sys.argv[1])
def refuse(holder): raise SystemExit(holder.description)
with locks.FolderLock(folder, "training", refuse), files.replace_file(folder / "model") as partial:
    partial.write_text("half", encoding="utf-8")
    print("held", flush=True)
    time.sleep(600)
"""


class BusyError(Exception):
    pass


def refuse(holder):
    raise BusyError(holder.description)


@pytest.fixture
def other(tmp_path):
    """A process that holds the lock of `tmp_path` and writes a file there."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().strip() == "held"
    yield process
    process.kill()
    process.communicate()


def written_by(owner, folder, name=locks.LOCK_NAME, **changes):
    said = {"owner": owner.token, "pid": owner.pid, "host": "far", "since": "s", "what": "training"}
    file = folder / name
    file.write_text(json.dumps({**said, **changes}), encoding="utf-8")
    return file


def test_a_living_process_is_named_and_its_files_are_left_alone(tmp_path, other):
    words = rf"process {other.pid} on .* \(training\)"
    with pytest.raises(BusyError, match=words), locks.FolderLock(tmp_path, "training", refuse):
        pass
    assert temporary_names.remove_leftovers(tmp_path) == 0
    assert len(temporary_names.partial_files_in(tmp_path)) == 1


def test_a_killed_process_holds_nothing(tmp_path, other):
    other.kill()
    other.wait()
    with locks.FolderLock(tmp_path, "training", refuse):
        assert locks.lock_holder(tmp_path).owner == current_process()
        assert temporary_names.remove_leftovers(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there are no zombies on Windows")
def test_what_remains_of_a_killed_process_holds_nothing(tmp_path, other):
    """The process is a zombie: its number is still in use."""
    os.kill(other.pid, signal.SIGKILL)
    while locks.lock_holder(tmp_path) is not None:
        time.sleep(0.01)
    assert other.returncode is None
    with locks.FolderLock(tmp_path, "training", refuse):
        pass


def test_a_number_that_was_given_anew_is_another_process(tmp_path):
    """The lock's process has ended, and this process has its number."""
    me = current_process()
    written_by(ProcessIdentity(me.pid, me.start - 5000, me.machine), tmp_path)
    with locks.FolderLock(tmp_path, "training", refuse):
        pass


def test_a_process_of_another_machine_is_alive_while_it_gives_signs(tmp_path):
    file = written_by(ProcessIdentity(1, 1, "ffffff"), tmp_path)
    words = r"on far.*counts as ended after another \d+ s without"
    with pytest.raises(BusyError, match=words), locks.FolderLock(tmp_path, "training", refuse):
        pass
    long_ago = file.stat().st_mtime - lock_file.STALE_S - 1
    os.utime(file, (long_ago, long_ago))
    with locks.FolderLock(tmp_path, "training", refuse):
        pass


def test_a_temporary_file_of_another_machine_is_left_over_after_a_day(tmp_path, monkeypatch):
    partial = (
        tmp_path
        / f".model.{ProcessIdentity(1, 1, 'ffffff').token}.00000000{temporary_names.PARTIAL_SUFFIX}"
    )
    partial.mkdir()
    (partial / "part").write_text("half", encoding="utf-8")
    assert temporary_names.remove_leftovers(tmp_path) == 0
    now = time.time()
    with monkeypatch.context() as wrong:  # this machine's clock is a week ahead of the disk's
        wrong.setattr(time, "time", lambda: now + 7 * 86400)
        assert temporary_names.remove_leftovers(tmp_path) == 0
    for path in (partial / "part", partial):
        os.utime(path, (1, 1))
    assert temporary_names.remove_leftovers(tmp_path) == 1


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"owner": 3}', "[" * 90_000, "\0" * 300])
def test_a_damaged_lock_holds_only_while_it_may_be_being_written(tmp_path, text):
    file = tmp_path / locks.LOCK_NAME
    file.write_text(text, encoding="utf-8")
    with pytest.raises(BusyError), locks.FolderLock(tmp_path, "training", refuse):
        pass
    os.utime(file, (1, 1))
    with locks.FolderLock(tmp_path, "training", refuse):
        pass


def test_without_hard_links_a_lock_is_taken_all_the_same(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    one, two = (locks.FolderLock(tmp_path, name, refuse) for name in ("one", "two"))
    with one, pytest.raises(BusyError, match="one"), two:
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_another_process_took_is_lost_and_left_there(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_file, "HEARTBEAT_S", 0.01)
    tmp_path.joinpath("run").mkdir()
    run = RunDirectory(tmp_path / "run")
    with run.held() as held:
        held.require_locked()
        written_by(ProcessIdentity(1, 1, "ffffff"), run.path)
        while not held.lock.is_lost:
            time.sleep(0.01)
        with pytest.raises(RunError, match="taken over"):
            held.require_locked()
    assert (run.path / locks.LOCK_NAME).is_file()


def test_whoever_waits_for_a_lock_gets_it(tmp_path, other):
    told = []

    def wait(holder):
        told.append(holder.owner.pid)
        if len(told) == 2:
            other.kill()
            other.wait()

    with locks.FolderLock(tmp_path, "writing", wait):
        pass
    assert set(told) == {other.pid}


def test_a_long_wait_is_named_once(monkeypatch):
    monkeypatch.setattr(locks, "_NAMED_AFTER_S", -1.0)
    notes, holder = [], LockHolder("", current_process(), "h", "noon", "encoding", 0.0)
    patience = locks.LockWaiter(notes.append, "writing")
    for _ in range(4):
        patience(holder)
    assert len(notes) == 1
    assert notes[0].startswith(f"Waiting for process {os.getpid()} on h, since noon")


def test_nobody_tidies_up_a_cache_that_is_in_use(tmp_path):
    cache = LatentCache(tmp_path)
    present = locks.SharedLock(tmp_path, "training somewhere", refuse)
    words = r"in use by .*training somewhere.*Nothing was removed"
    with present, pytest.raises(DatasetError, match=words), cache.alone("pruning"):
        pass
    present = locks.SharedLock(tmp_path, "training", refuse)
    with cache.alone("pruning"), pytest.raises(BusyError, match="pruning"), present:
        pass
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == []


def test_a_user_that_was_killed_is_none(tmp_path):
    me = current_process()
    written_by(ProcessIdentity(me.pid, me.start - 1, me.machine), tmp_path, ".in-use.x.lock")
    assert locks.shared_lock_holders(tmp_path) == [] or sys.platform != "linux"


@pytest.mark.parametrize("text", ["", "1-2", "1-2-abcdeg", "1" * 30 + "-2-abcdef", "1-2-abcdef\n"])
def test_what_is_no_token_names_no_process(text):
    assert parse_process_token(text) is None


def test_a_token_names_its_process():
    assert parse_process_token(current_process().token) == current_process()
    assert current_process().is_running()


def test_temporary_names_are_no_longer_than_a_name_may_be(tmp_path):
    target = tmp_path / ("猫" * 85)
    with files.replace_file(target) as partial:
        partial.write_text("x", encoding="utf-8")
    assert target.read_text(encoding="utf-8") == "x"
    assert len(os.fsencode(temporary_names.partial_name(target).name)) <= 255


def test_a_directory_with_only_the_remains_of_a_killed_process_can_be_taken(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    me = current_process()
    dead = ProcessIdentity(me.pid, me.start - 5000, me.machine)
    written_by(dead, path)
    (path / f".config.toml.{dead.token}.00000000{temporary_names.PARTIAL_SUFFIX}").touch()
    with RunDirectory.begun(path):
        pass


def test_two_beginners_of_one_run_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "run"
    with RunDirectory.begun(path) as first:
        first.config_file.write_text("x", encoding="utf-8")
        with pytest.raises(RunError, match="being trained just now"), RunDirectory.begun(path):
            pass
        with pytest.raises(RunError, match="being trained just now"):  # instead of "delete it"
            RunDirectory.require_free(path)
        assert first.config_file.is_file()
    with pytest.raises(RunError, match="already exists and is not empty"), RunDirectory.begun(path):
        pass


def test_a_run_that_was_not_begun_leaves_nothing_but_what_others_put_there(tmp_path):
    with RunDirectory.begun(tmp_path / "a") as run:
        files.write_text(run.config_file, "x")
        run.discard()
    assert not (tmp_path / "a").exists()
    with RunDirectory.begun(tmp_path / "b") as run:
        files.write_text(run.config_file, "x")
        (run.path / "notes.txt").write_text("mine", encoding="utf-8")
        run.discard()
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["notes.txt"]


def test_a_lock_that_cannot_be_read_for_a_moment_is_not_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_file, "HEARTBEAT_S", 0.01)
    with locks.FolderLock(tmp_path, "training", refuse) as lock:
        file = tmp_path / locks.LOCK_NAME
        text = file.read_text(encoding="utf-8")
        file.unlink()
        file.mkdir()  # reading it fails, as on a disconnected network disk
        time.sleep(0.1)
        assert not lock.is_lost
        file.rmdir()
        file.write_text("of another", encoding="utf-8")
        wait_until(lambda: lock.is_lost)
        file.write_text(text, encoding="utf-8")
        wait_until(lambda: not lock.is_lost)


def test_a_lock_that_cannot_be_read_holds_while_its_owner_gives_signs(tmp_path):
    now = time.time()
    for name in (locks.LOCK_NAME, ".in-use.somebody.lock"):
        (tmp_path / name).mkdir()  # reading it fails, as on a disconnected network disk
        os.utime(tmp_path / name, (now - 60, now - 60))
    assert locks.lock_holder(tmp_path).description == "a process whose lock cannot be read just now"
    assert len(locks.shared_lock_holders(tmp_path)) == 1
    with pytest.raises(BusyError), locks.FolderLock(tmp_path, "training", refuse):
        pass
    with pytest.raises(BusyError), locks.exclusive_lock(tmp_path, "pruning", refuse):
        pass
    old = now - lock_file.STALE_S - 1
    os.utime(tmp_path / locks.LOCK_NAME, (old, old))
    assert locks.lock_holder(tmp_path) is None


def wait_until(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError


def test_of_two_that_find_a_dead_lock_one_removes_it(tmp_path):
    """The slower one would remove the lock that the faster one has taken since."""
    dead = written_by(replace(current_process(), start=1), tmp_path)
    found = locks.lock_holder(tmp_path) or lock_file.read_lock(dead, now=time.time())
    own = tmp_path / "own"
    own.write_text(written_by(current_process(), tmp_path, "said").read_text("utf-8"), "utf-8")
    lock_file.remove_dead(dead, found, own)
    assert not dead.exists()
    taken = written_by(current_process(), tmp_path)  # by the faster
    lock_file.remove_dead(dead, found, own)
    assert taken.exists()
    # only one process removes at a time
    written_by(current_process(), tmp_path, ".breaking.lock")
    old = written_by(replace(current_process(), start=1), tmp_path)
    lock_file.remove_dead(old, lock_file.read_lock(old, now=time.time()), own)
    assert old.exists()
    # a process that died while removing does not block others for ever
    written_by(replace(current_process(), start=1), tmp_path, ".breaking.lock")
    for _ in range(2):
        lock_file.remove_dead(old, lock_file.read_lock(old, now=time.time()), own)
    assert not old.exists()
    assert not list(tmp_path.glob("*breaking*"))
