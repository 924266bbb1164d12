"""Ownership of a run in an object store, and its move to another machine."""

import json
import shutil
from pathlib import Path

import pytest
from flat_models import one_level_model
from object_store import refusing
from stored_runs import (
    ELSEWHERE,
    content,
    files_of,
    make_run,
    owner_elsewhere,
    sent,
    write,
    write_state,
)

from impasto.errors import ConfigError, RunError, StorageError
from impasto.progress import SilentProgress
from impasto.runs import RunDirectory
from impasto.runs.queue_settings import output_of
from impasto.runs.remote import ownership
from impasto.runs.remote.contents import is_safe, whole_states
from impasto.runs.remote.fetching import fetch_model, is_here, list_run
from impasto.runs.remote.local_folders import home_of, location_of, working_folder
from impasto.runs.remote.ownership import Ownership
from impasto.runs.remote.reading import open_run
from impasto.runs.remote.record import SentRecord
from impasto.runs.remote.run_in_store import (
    RunInStore,
    remove_working_folder,
    require_free,
    require_location,
    send_again,
)
from impasto.runs.remote.sending import Sender
from impasto.storage import claims, objects
from impasto.studio.new_form import examine

nano_model = one_level_model


@pytest.fixture
def run(place):
    """The working folder of a run with a state, a model in a folder, and a preview."""
    return make_run(place)


def test_one_process_writes_a_run_at_a_time(place):
    with Ownership(place) as first:
        with pytest.raises(RunError, match=r"is being written by process \d+ on"):
            Ownership(place)
        assert first.number == 1
    with Ownership(place) as second:
        assert second.before is not None
        assert (second.number, second.before.number) == (2, 1)


def test_an_owner_on_another_machine_counts_until_it_gives_no_sign(place, monkeypatch):
    owner_elsewhere(place, 1)
    with pytest.raises(RunError, match=r"process 1 on machine-b.*sent no heartbeat.*for 5 minutes"):
        Ownership(place)
    monkeypatch.setattr(ownership, "STALE_S", -1e9)
    with Ownership(place) as own:
        assert own.number == 2


def test_an_owner_that_has_ended_is_nobody(place):
    owner_elsewhere(place, 7, ended=True)
    with Ownership(place) as own:
        assert own.number == 8


def test_of_two_that_begin_at_once_the_store_lets_one(s3, bucket):
    place = bucket / "run"

    def another_is_faster(environ, _):
        if environ["REQUEST_METHOD"] == "PUT" and "owners" in environ["PATH_INFO"]:
            s3.fault = None
            owner_elsewhere(place, 1)

    s3.fault = another_is_faster
    with pytest.raises(RunError, match="Another process has just begun"):
        Ownership(place)
    assert b"machine-b" in objects.read(place / "owners/00000001.json")


def test_who_was_taken_over_notices_and_neither_saves_nor_sends(run, place):
    with Ownership(place) as own:
        directory = RunDirectory(run, location=place, taken_over=own.taken_over)
        directory.require_locked()
        owner_elsewhere(place, 2)
        own.look()
        with pytest.raises(RunError, match="taken over by process 1 on machine-b"):
            directory.require_locked()
    assert b'"ended": true' not in objects.read(place / "owners/00000002.json")


def test_a_run_comes_to_another_machine_with_its_newest_whole_state(
    run, place, tmp_path, monkeypatch
):
    write_state(run, 4)
    sent(run, place)
    claims.write(place / "states/step-00000006/weights.safetensors", b"half of a state")
    monkeypatch.setenv("IMPASTO_STORE_CACHE", str(tmp_path / "another machine"))
    with RunInStore(place, SilentProgress(), is_new=False) as kept:
        assert RunDirectory(kept.folder).saved_steps() == [4]
        fetched = files_of(kept.folder)
        everything = content(place)
        kept.start()
    assert fetched == {key: everything[key] for key in fetched}
    assert "metrics.jsonl" in fetched
    assert "samples/step-00000002/00.png" in fetched
    assert not [key for key in fetched if key.startswith("models/")]
    assert content(place) == everything, "an object that was not fetched was removed"


def test_older_states_go_once_the_other_machine_has_sent_a_newer_one(
    run, place, tmp_path, monkeypatch
):
    sent(run, place)
    monkeypatch.setenv("IMPASTO_STORE_CACHE", str(tmp_path / "another machine"))
    with RunInStore(place, SilentProgress(), is_new=False) as kept:
        kept.start()
        write_state(kept.folder, 4)
        shutil.rmtree(kept.folder / "states/step-00000002")
    assert whole_states(list_run(place)) == [4]


def test_what_was_not_sent_is_kept_where_the_run_went_on_elsewhere(run, place):
    with Ownership(place) as own:
        record = SentRecord(place, owner=own.number)
        record.write()
        Sender(run, record).send(all_of_it=True)
    write(run, "samples/step-00000002/01.png", "only here")
    owner_elsewhere(place, 2, ended=True)
    with pytest.raises(RunError, match="continued elsewhere"):
        send_again(place, SilentProgress())
    with RunInStore(place, SilentProgress(), is_new=False) as kept:
        kept.start()
    kept_aside = home_of(place) / "kept" / run.name / "samples/step-00000002/01.png"
    assert kept_aside.read_text(encoding="utf-8") == "only here"
    assert "samples/step-00000002/01.png" not in list_run(place)


def test_a_run_that_this_machine_wrote_last_is_not_fetched(s3, bucket):
    place = bucket / "run"
    folder = working_folder(place)
    with RunInStore(place, SilentProgress(), is_new=True) as kept:
        write(folder, "config.toml", "")
        write_state(folder, 2)
        kept.start()
    s3.requests.clear()
    with RunInStore(place, SilentProgress(), is_new=False):
        assert RunDirectory(folder).saved_steps() == [2]
    assert not [r for r in s3.requests if r.startswith("GET") and "step-" in r.split(" ")[1]]


def test_a_state_that_a_killed_process_sent_and_nobody_remembers_goes_too(run, place):
    sent(run, place)
    SentRecord(place).write()
    shutil.rmtree(run / "states")
    write_state(run, 4)
    with Ownership(place) as own:
        SentRecord(place, owner=own.number).write()
    send_again(place, SilentProgress())
    assert whole_states(list_run(place)) == [4]
    assert not [key for key in list_run(place) if "step-00000002" in key and "states" in key]


def test_a_resume_that_fails_after_its_turn_began_is_still_the_newest(s3, bucket):
    place = bucket / "run"
    folder = working_folder(place)
    with RunInStore(place, SilentProgress(), is_new=True) as kept:
        write(folder, "config.toml", "")
        kept.start()
    write(folder, "report.html", "not sent yet")
    refuse, claimed = refusing("SlowDown", 503), []

    def fault(environ, ask):
        if claimed:
            return refuse(environ, ask)
        if environ["REQUEST_METHOD"] == "PUT" and "owners" in environ["PATH_INFO"]:
            claimed.append(True)
        return None

    with (
        s3.failing(fault),
        pytest.raises(StorageError),
        RunInStore(place, SilentProgress(), is_new=False),
    ):
        pass
    with RunInStore(place, SilentProgress(), is_new=False) as kept:
        kept.start()
    assert content(place) == files_of(folder)
    assert b"not sent yet" in content(place)["report.html"]


def test_settings_that_were_changed_in_the_store_count_unless_changed_here_too(run, place):
    with Ownership(place) as own:
        record = SentRecord(place, owner=own.number)
        record.write()
        Sender(run, record).send(all_of_it=True)
    claims.write(place / "config.toml", b"seed = 22\n")
    with RunInStore(place, SilentProgress(), is_new=False) as kept:
        kept.start()
    assert (run / "config.toml").read_text(encoding="utf-8") == "seed = 22\n"
    claims.write(place / "config.toml", b"seed = 333\n")
    write(run, "config.toml", "seed = 4444\n")
    send_again(place, SilentProgress())
    assert objects.read(place / "config.toml") == b"seed = 4444\n"


def test_what_was_deleted_here_while_no_process_had_the_run_stays_in_the_store(run, place):
    write(run, "status.json", json.dumps({"phase": "finished"}))
    with Ownership(place) as own:
        record = SentRecord(place, owner=own.number)
        record.write()
        Sender(run, record).send(all_of_it=True)
    before = content(place)
    for name in ("models", "states", "samples"):
        shutil.rmtree(run / name)
    send_again(place, SilentProgress())
    assert content(place) == before
    assert RunDirectory(run).saved_steps() == [2], "a run continues from the state in the store"


def test_of_a_folder_that_could_not_be_removed_wholly_nothing_is_believed(run, place, monkeypatch):
    write(run, "status.json", json.dumps({"phase": "finished"}))
    with RunInStore(place, SilentProgress(), is_new=False) as kept:
        kept.start()
    before = content(place)

    def cut_short(folder, **_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", cut_short)
        with pytest.raises(KeyboardInterrupt):
            remove_working_folder(RunDirectory(run, location=place))
    assert not is_here(place)
    assert content(place) == before


def test_what_somebody_removed_from_the_store_is_put_there_again(run, place):
    with Ownership(place) as own:
        record = SentRecord(place, owner=own.number)
        record.write()
        Sender(run, record).send(all_of_it=True)
    objects.remove(place / "states/step-00000002/weights.safetensors")
    send_again(place, SilentProgress())
    assert content(place) == files_of(run)


def test_a_place_that_is_taken_is_refused(run, place):
    sent(run, place)
    with pytest.raises(RunError, match="already exists and is not empty"):
        require_free(place)


def test_a_run_that_was_never_sent_is_not_begun_over(run, place):
    with pytest.raises(RunError, match="never sent, or was deleted"):
        require_free(place)
    assert (run / "states/step-00000002/state.json").is_file()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://key:secret@bucket/run", "user name or a password"),
        ("s3://bucket/run?X-Amz-Signature=1", "parameters"),
        ("hf://datasets/a/b/run", "is a read-only store"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_without_a_request(url, words):
    with pytest.raises(ConfigError, match=words):
        require_location(Path(url))


@pytest.mark.parametrize("key", ["a\\b", "C:x", "a/../b", "a//b", "con\x01", "x/.."])
def test_keys_of_strangers_become_no_odd_paths(key):
    assert not is_safe(key)
    assert is_safe("states/step-00000002/state.json")


def test_a_reader_gets_what_shows_a_run_and_who_trains_it(run, place, tmp_path, monkeypatch):
    write(run, "status.json", json.dumps({"phase": "training", "step": 2, "process": ELSEWHERE}))
    sent(run, place)
    owner_elsewhere(place, 1)
    monkeypatch.setenv("IMPASTO_STORE_CACHE", str(tmp_path / "another machine"))
    found = open_run(place)
    assert found.state().state == "training"
    assert found.has(found.path / "models" / "cat")
    assert not found.has(found.path / "models" / "dog")
    assert found.saved_steps() == [2]
    assert not list(found.path.rglob("weights.safetensors"))
    assert list(found.path.rglob("00.png"))
    owner_elsewhere(place, 1, ended=True)
    assert open_run(place).state().state == "killed"
    objects.remove(place / "samples/step-00000002/00.png")
    claims.write(place / "metrics.jsonl", b'{"step": 4}\n')
    again = open_run(place)
    assert [record["step"] for record in again.read_metrics()] == [4]
    assert not list(again.path.rglob("00.png"))


def test_a_model_is_fetched_whole_and_again_when_it_has_changed(in_memory):
    claims.write(in_memory / "a.safetensors", b"first")
    claims.write(in_memory / "b.safetensors", b"other")
    first = fetch_model(in_memory / "a.safetensors")
    other = fetch_model(in_memory / "b.safetensors")
    assert (first.read_bytes(), other.read_bytes()) == (b"first", b"other")
    claims.write(in_memory / "a.safetensors", b"again")
    assert fetch_model(in_memory / "a.safetensors").read_bytes() == b"again"
    assert other.is_file()


def test_the_working_folder_of_a_run_leads_to_its_url(run, place):
    assert location_of(run) is None  # nothing was stored yet
    SentRecord(place).write()
    assert location_of(run) == place
    assert location_of(place) == place
    assert location_of(run.parent) is None


def test_the_queue_and_the_studio_look_at_folders_and_say_so(tmp_path):
    with pytest.raises(ConfigError, match="output_dir is s3://bucket/run, in an object store"):
        output_of('output_dir = "s3://bucket/run"')
    fields = {
        "output_dir": "s3://bucket/run",
        "model.path": "base",
        "dataset.image_dir": str(tmp_path),
        "dataset.resolution": "512",
        "training.max_steps": "1",
    }
    found = examine(fields, [tmp_path])
    assert "in an object store" in found.all_faults["output_dir"], found.all_faults
    assert not any(tmp_path.iterdir())
