"""Write turns on a run in an object store when a response is lost, or a machine has slept."""

import time

import pytest
from object_store import refusing
from stored_runs import content, files_of, make_run, owner_elsewhere, write_state

from impasto.errors import RunError, StorageError
from impasto.progress import SilentProgress
from impasto.runs import RunDirectory
from impasto.runs.remote import run_in_store
from impasto.runs.remote.contents import whole_states
from impasto.runs.remote.fetching import is_here, list_run
from impasto.runs.remote.local_folders import home_of
from impasto.runs.remote.ownership import Ownership
from impasto.runs.remote.reading import open_run, settings_to_go_on
from impasto.runs.remote.record import SentRecord
from impasto.runs.remote.run_in_store import RunInStore, send_again
from impasto.runs.remote.sending import Sender
from impasto.storage import claims


@pytest.fixture
def run(bucket):
    """The working folder of an uploaded run, with a state that has not been uploaded."""
    place = bucket / "run"
    folder = make_run(place)
    with Ownership(place) as own:
        record = SentRecord(place, owner=own.number)
        record.write()
        Sender(folder, record).send(all_of_it=True)
    write_state(folder, 4)
    return folder


def losing_the_answer(code, status):
    """A fault: the store grants a turn, but its response is another one."""
    refuse = refusing(code, status)

    def fault(environ, ask):
        if environ["REQUEST_METHOD"] != "PUT" or "owners" not in environ["PATH_INFO"]:
            return None
        if "HTTP_IF_NONE_MATCH" not in environ:
            return None  # a sign of life
        ask()
        return refuse(environ, ask)

    return fault


@pytest.mark.parametrize(("code", "status"), [("PreconditionFailed", 412), ("InternalError", 500)])
def test_a_turn_that_the_store_gave_and_did_not_say_is_this_ones(run, bucket, s3, code, status):
    place = bucket / "run"
    with s3.failing(losing_the_answer(code, status)):
        send_again(place, SilentProgress())
    assert content(place) == files_of(run)
    assert whole_states(list_run(place)) == [2, 4]


def test_a_turn_of_which_nothing_could_be_read_is_found_again(run, bucket, s3):
    place = bucket / "run"
    lose, refuse, asked = losing_the_answer("InternalError", 500), refusing("SlowDown", 503), []

    def fault(environ, ask):
        answer = refuse(environ, ask) if asked else lose(environ, ask)
        if answer is not None:
            asked.append(answer)
        return answer

    with s3.failing(fault), pytest.raises(StorageError):
        send_again(place, SilentProgress())
    assert SentRecord.read(place).owner == 1
    assert is_here(place)
    with RunInStore(place, SilentProgress(), is_new=False) as kept:
        assert RunDirectory(kept.folder).saved_steps() == [2, 4]
        kept.start()
    assert not (home_of(place) / "kept").exists()
    assert content(place) == files_of(run)


def test_a_process_that_ends_just_after_it_got_its_turn_has_lost_nothing(run, bucket, monkeypatch):
    place = bucket / "run"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run_in_store, "fetch_to_resume", killed)
        with pytest.raises(KeyboardInterrupt):
            send_again(place, SilentProgress())
    send_again(place, SilentProgress())
    assert content(place) == files_of(run)


def test_a_folder_that_another_machine_went_on_from_never_becomes_the_newest(
    run, bucket, monkeypatch
):
    place = bucket / "run"
    owner_elsewhere(place, 2, ended=True)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run_in_store, "fetch_to_resume", killed)
        with pytest.raises(KeyboardInterrupt), RunInStore(place, SilentProgress(), is_new=False):
            pass
    assert not is_here(place)
    with pytest.raises(RunError, match="continued elsewhere"):
        send_again(place, SilentProgress())


def test_settings_that_were_changed_in_the_store_are_those_to_go_on_with(run, bucket):
    place = bucket / "run"
    found = open_run(place)
    assert settings_to_go_on(found) == run / "config.toml"
    claims.write(place / "config.toml", b"seed = 22\n")
    assert settings_to_go_on(open_run(place)).read_bytes() == b"seed = 22\n"
    assert (run / "config.toml").read_bytes() == b"seed = 1\n"
    with RunInStore(place, SilentProgress(), is_new=False) as kept:
        assert (kept.folder / "config.toml").read_bytes() == b"seed = 22\n"
        kept.start()
    claims.write(place / "config.toml", b"seed = 333\n")
    (run / "config.toml").write_bytes(b"seed = 4444\n")
    assert settings_to_go_on(open_run(place)) == run / "config.toml", "it changed here too"


def test_who_slept_looks_before_anything_is_put(bucket, monkeypatch):
    with Ownership(bucket / "run") as own:
        owner_elsewhere(bucket / "run", 2)
        own.require_fresh()
        assert not own.taken_over(), "the last check was just now"
        now = time.time()
        with monkeypatch.context() as patched:  # the monotonic clock stands still meanwhile
            patched.setattr(time, "time", lambda: now + 3600)
            own.require_fresh()
        assert "machine-b" in own.taken_over()
