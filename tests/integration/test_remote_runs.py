"""A run in an object store: its listing at every moment, and the cost of faults."""

import errno
import json
import os
import shutil
import threading

import pytest
from flat_models import one_level_model
from object_store import cutting, refusing
from stored_runs import (
    STATE,
    content,
    files_of,
    make_run,
    moments,
    sent,
    write,
    write_state,
)

from impasto.errors import NotSentError, StorageError
from impasto.progress import SilentProgress
from impasto.runs.remote.contents import whole_states
from impasto.runs.remote.fetching import _keeps_models, list_run
from impasto.runs.remote.local_folders import working_folder
from impasto.runs.remote.mirror import Mirror
from impasto.runs.remote.record import SentRecord
from impasto.runs.remote.run_in_store import RunInStore, send_again
from impasto.runs.remote.sending import Sender
from impasto.storage import objects

nano_model = one_level_model


@pytest.fixture
def run(place):
    """The working folder of a run with a state, a model in a folder, and a preview."""
    return make_run(place)


def test_all_of_a_run_is_in_the_store_and_nothing_else(run, place):
    sent(run, place)
    assert content(place) == files_of(run)
    assert not [key for key in content(place) if "lock" in key or "commands" in key]


def test_at_no_moment_a_listing_shows_half_of_a_state_or_model(s3, bucket):
    place = bucket / "run"
    folder = working_folder(place)
    write(folder, "config.toml", "")
    write(folder, "metrics.jsonl", "")
    write_state(folder, 2)
    for name in ("model_index.json", "unet/config.json", "vae/config.json"):
        write(folder, f"models/cat/{name}", f"first {name}")
    write(folder, "models.json", "first")
    sent(folder, place)
    write_state(folder, 4)
    shutil.rmtree(folder / "states" / "step-00000002")
    for name in ("model_index.json", "unet/config.json", "vae/other.json"):
        write(folder, f"models/cat/{name}", f"second, longer {name}")
    (folder / "models/cat/vae/config.json").unlink()
    write(folder, "models.json", "second")
    sent(folder, place)

    seen = moments(s3, place)
    assert len(seen) > 20
    had_state = False
    for keys in seen:
        for step in whole_states(keys):
            assert {f"states/step-{step:08d}/{name}" for name in STATE} <= keys
            assert "metrics.jsonl" in keys
            had_state = True
        assert not had_state or whole_states(keys), "a state was removed too early"
        if "models/cat/model_index.json" in keys:
            assert "models/cat/unet/config.json" in keys
            assert len([key for key in keys if key.startswith("models/cat/vae/")]) == 1
        else:
            assert "models.json" not in keys, "the record names a missing model"
    assert content(place) == files_of(folder)


def test_what_was_sent_is_not_sent_again(s3, bucket):
    place = bucket / "run"
    folder = working_folder(place)
    write(folder, "config.toml", "")
    write_state(folder, 2)
    sent(folder, place)
    s3.requests.clear()
    write(folder, "status.json", "{}")
    sent(folder, place)  # as in another process, from the record on the disk
    assert [r.split(" ")[1] for r in s3.requests if r.startswith("PUT")] == [
        f"/{bucket.name}/run/status.json"
    ]


def test_a_log_that_grows_while_it_is_copied_is_sent_again(run, place, monkeypatch):
    write(run, "metrics.jsonl", "first\n")
    copyfile = shutil.copyfile

    def growing(source, target):
        copyfile(source, target)
        if source == run / "metrics.jsonl":
            with source.open("a", encoding="utf-8") as file:
                file.write("second\n")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", growing)
        sender = sent(run, place)
    assert objects.read(place / "metrics.jsonl") == b"first\n"
    assert "metrics.jsonl" in sender.unsent()
    sender.send(all_of_it=True)
    assert objects.read(place / "metrics.jsonl") == b"first\nsecond\n"
    assert sender.unsent() == {}


def test_an_upload_that_is_refused_leaves_no_state_and_is_made_up_for(s3, bucket):
    place = bucket / "run"
    folder = working_folder(place)
    write(folder, "config.toml", "")
    write_state(folder, 2)
    with (
        s3.failing(refusing("SlowDown", 503, "weights.safetensors")),
        pytest.raises(StorageError, match="too busy"),
    ):
        sent(folder, place)
    assert whole_states(list_run(place)) == []
    s3.requests.clear()
    sent(folder, place)
    assert whole_states(list_run(place)) == [2]
    assert not any("config.toml" in request for request in s3.requests if "PUT" in request)


def test_an_upload_that_the_store_took_and_lost_is_not_believed(s3, bucket):
    place = bucket / "run"
    folder = working_folder(place)
    write(folder, "config.toml", "")
    write_state(folder, 2)

    def losing(environ, _):
        if environ["REQUEST_METHOD"] == "PUT" and "weights" in environ["PATH_INFO"]:
            return "200 OK", [("Content-Length", "0")], b""
        return None

    with s3.failing(losing), pytest.raises(OSError, match="took 0 of 24 bytes"):
        sent(folder, place)
    assert whole_states(list_run(place)) == []
    sent(folder, place)
    assert content(place) == files_of(folder)


def test_a_run_that_came_in_part_is_fetched_again(s3, bucket, tmp_path, monkeypatch):
    place = bucket / "run"
    folder = working_folder(place)
    write(folder, "config.toml", "")
    write_state(folder, 2)
    sent(folder, place)
    monkeypatch.setenv("IMPASTO_STORE_CACHE", str(tmp_path / "another machine"))
    with (
        s3.failing(cutting(f"GET /{bucket.name}/run/states/step-00000002/weights")),
        pytest.raises(OSError, match=r"received incompletely|gave"),
        RunInStore(place, SilentProgress(), is_new=False),
    ):
        pass
    assert not (working_folder(place) / "config.toml").exists()
    with RunInStore(place, SilentProgress(), is_new=False) as kept:
        assert files_of(kept.folder) == content(place)


def test_a_state_that_training_removes_meanwhile_is_ended_and_kept_until_the_next(s3, bucket):
    place = bucket / "run"
    folder = working_folder(place)
    write(folder, "config.toml", "")
    write_state(folder, 2)

    def replacing(environ, _):
        if "optimizer" in environ["PATH_INFO"] and (folder / "states/step-00000002").exists():
            write_state(folder, 4)
            shutil.rmtree(folder / "states/step-00000002")

    with s3.failing(replacing):
        sender = sent(folder, place)
    assert whole_states(list_run(place)) == [2]
    assert objects.read(place / "states/step-00000002/weights.safetensors") == (
        b"weights.safetensors of 2"
    )
    sender.send()
    assert whole_states(list_run(place)) == [4]
    assert not [key for key in list_run(place) if "step-00000002" in key]


def test_states_that_a_run_drops_at_its_end_go_from_the_store_too(run, place):
    sent(run, place)
    shutil.rmtree(run / "states")
    sent(run, place)
    assert whole_states(list_run(place)) == [2], "the run must not count as finished"
    write(run, "status.json", json.dumps({"phase": "finished"}))
    sent(run, place)
    assert whole_states(list_run(place)) == [2], "its settings keep them, so somebody deleted them"
    write(run, "config.toml", "[saving]\nkeep_final_state = false\n")
    sent(run, place)
    assert not [key for key in list_run(place) if key.startswith("states/")]


def test_a_working_folder_that_was_deleted_removes_nothing(run, place):
    sent(run, place)
    before = content(place)
    shutil.rmtree(run)
    sent(run, place)
    assert content(place) == before


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(run, place, monkeypatch):
    sent(run, place)
    before, listdir = content(place), os.listdir

    def failing(folder):
        if str(folder).endswith("models"):
            raise OSError(errno.EMFILE, "Too many open files", str(folder))
        return listdir(folder)

    told = Told()
    mirror = mirror_of(run, place, told)
    monkeypatch.setattr(os, "listdir", failing)
    mirror.start()
    with pytest.raises(NotSentError, match=r"Too many open files"):
        mirror.finish(SilentProgress())
    assert content(place) == before


class Told:
    """Records notes, and sets an event for each one."""

    def __init__(self):
        self.notes, self.came = [], threading.Event()

    def __call__(self, note):
        self.notes.append(note)
        self.came.set()


def mirror_of(folder, place, told):
    def sender(stop):
        return Sender(folder, SentRecord.read(place), should_stop=stop)

    return Mirror(folder, place, sender, told, pauses_s=(0.01,))


def test_a_store_that_fails_for_a_while_is_told_of_once_and_ends_nothing(s3, bucket):
    place, told = bucket / "run", Told()
    folder = working_folder(place)
    write(folder, "config.toml", "")
    write_state(folder, 2)
    mirror = mirror_of(folder, place, told)
    refusals, refuse = threading.Semaphore(0), refusing("SlowDown", 503, "PUT")

    def fault(environ, ask):
        answer = refuse(environ, ask)
        if answer:
            refusals.release()
        return answer

    with s3.failing(fault):
        mirror.start()
        assert told.came.wait(300)
        for _ in range(14):  # s3fs tries a put up to six times: two more were tried
            assert refusals.acquire(timeout=300)
        told.came.clear()
    assert told.came.wait(300)
    mirror.finish(SilentProgress())
    assert "cannot be sent" in told.notes[0]
    assert "Training goes on" in told.notes[0]
    assert [note for note in told.notes[1:] if "again" in note] == told.notes[1:]
    assert len(told.notes) == 2
    assert content(place) == files_of(folder)


def test_what_is_not_there_in_the_end_is_named_with_the_command_that_sends_it(s3, bucket):
    place, told = bucket / "run", Told()
    folder = working_folder(place)
    write(folder, "config.toml", "")
    write_state(folder, 2)
    record = SentRecord(place)
    record.write()
    mirror = mirror_of(folder, place, told)
    mirror.start()
    with (
        s3.failing(refusing("AccessDenied", 403, "PUT")),
        pytest.raises(NotSentError, match="do not permit this") as fault,
    ):
        write(folder, "report.html")
        mirror.finish(SilentProgress())
    assert f"send s3://{bucket.name}/run" in str(fault.value)
    assert "6 files (" in str(fault.value)  # settings, four of the state, and the report
    assert fault.value.folder == folder
    assert "of-no-use" not in str(fault.value)
    send_again(place, SilentProgress())
    assert content(place) == files_of(folder)


@pytest.mark.parametrize("limit", ["keep_models", "keep_step_models", "keep_epoch_models"])
def test_models_come_with_a_run_that_removes_some_of_them(limit):
    assert _keeps_models(f"[saving]\n{limit} = 2\n".encode())
    assert not _keeps_models(b"[saving]\nmodel_every_steps = 2\n")
