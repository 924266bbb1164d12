"""A run directory reports the true state of its run, even after the process was killed."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
from conftest import impasto

from impasto.errors import StorageError
from impasto.lock_file import LockHolder
from impasto.owners import ProcessIdentity, current_process
from impasto.runs import RunDirectory
from impasto.runs.commands import COMMANDS, discard_commands, send_command, waiting_commands
from impasto.runs.events import EventLog, read_events
from impasto.runs.learning import checkpoints_of
from impasto.runs.listing import find_runs, newest_first
from impasto.runs.status import StatusWriter, state_of

GONE = ProcessIdentity(2**30, 1, current_process().machine).token


def status_of(run):
    return json.loads(run.status_file.read_text(encoding="utf-8"))


def eventually(holds, seconds=30.0):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def make_run(folder, **status):
    folder.mkdir(parents=True)
    run = RunDirectory(folder)
    run.config_file.write_text("", encoding="utf-8")
    if status:
        run.status_file.write_text(json.dumps(status), encoding="utf-8")
    return run


def test_what_is_noted_goes_out_with_the_next_beat(tmp_path):
    run = RunDirectory(tmp_path)
    with StatusWriter(run.status_file, every_s=0.01) as status:
        status.note(step=1)  # nothing has started: nothing is written
        time.sleep(0.05)
        assert not run.status_file.exists()
        status.write("training", total_steps=9)
        assert status_of(run)["phase"] == "training"
        status.note(step=4, stage="Drawing")
        eventually(lambda: status_of(run).get("step") == 4)
        status.note(stage=None)
        eventually(lambda: "stage" not in status_of(run))
    found = status_of(run)
    assert found["process"] == current_process().token
    assert found["pid"] == os.getpid()
    assert found["started_at"] <= found["updated_at"] <= time.time()


def test_an_end_keeps_the_numbers_of_training(tmp_path):
    run = RunDirectory(tmp_path)
    with StatusWriter(run.status_file) as status:
        status.write("training", total_steps=9, stage="Encoding")
        status.note(step=4)
        status.write("failed", message="Out of memory.")
    found = status_of(run)
    assert (found["step"], found["total_steps"], found["message"]) == (4, 9, "Out of memory.")
    assert "stage" not in found


def test_nothing_is_written_of_a_run_that_was_removed(tmp_path):
    with RunDirectory.begun(tmp_path / "run") as run:
        run.write_status("preparing")
        run.discard()
        assert not run.status_file.exists()
    assert not run.path.exists()
    with StatusWriter(tmp_path / "status.json", every_s=0.01) as status:
        status.write("preparing")
        status.drop()
        (tmp_path / "status.json").unlink()
        time.sleep(0.1)
        assert not (tmp_path / "status.json").exists()
    gone = tmp_path / "gone"
    gone.mkdir()
    with StatusWriter(gone / "status.json", every_s=0.01) as status:
        status.write("training")
        shutil.rmtree(gone, ignore_errors=True)
        shutil.rmtree(gone, ignore_errors=True)  # a heartbeat may have been writing
        time.sleep(0.1)
    assert not gone.exists()


FINISHED = {
    "phase": "finished", "step": 40, "total_steps": 40, "model": "export/dog.safetensors",
    "merged_loss": 0.25, "steps_per_epoch": 8,
}  # fmt: skip


def made_longer(run, **then):
    """Resume a finished run and end that early; return the reported state."""
    with StatusWriter(run.status_file) as status:
        status.write("preparing")
        if "total_steps" in then:
            status.write("training", step=then["step"], total_steps=then["total_steps"])
        if then["phase"] != "killed":
            status.write(then["phase"], message=then.get("message", ""))
    return run.state()


@pytest.mark.parametrize(
    ("phase", "words"),
    [("stopped", "was stopped"), ("failed", "ended with an error"), ("killed", "was killed")],
)
def test_a_resumption_without_a_step_leaves_a_finished_run_finished(tmp_path, phase, words):
    run = make_run(tmp_path / "run", **FINISHED)
    state = made_longer(run, phase=phase, message="Out of memory.")
    assert (state.state, state.resumption, state.step, state.total_steps) == (
        "finished", phase, 40, 40
    )  # fmt: skip
    assert state.can_go_on
    sentence = state.sentence("run")
    assert sentence.startswith("This run is finished: 40 of 40 steps. It was resumed later, which ")
    assert f"which {words} before a step." in sentence
    assert ("Out of memory." in sentence) == (phase != "killed")
    assert run.status()["model"] == FINISHED["model"]
    assert run.status()["merged_loss"] == 0.25
    assert f"resumed later and {phase} before a step" in shown_by_runs(run)
    (told,) = (summary.as_json() for summary in newest_first([run]))
    assert (told["state"], told["finished_step"], told["resumption"]) == ("finished", 40, phase)


@pytest.mark.parametrize("phase", ["stopped", "failed", "killed"])
def test_a_run_that_is_made_longer_says_that_it_had_finished(tmp_path, phase):
    run = make_run(tmp_path / "run", **FINISHED)
    state = made_longer(run, phase=phase, step=60, total_steps=80)
    assert (state.state, state.resumption, state.step, state.total_steps) == (phase, None, 60, 80)
    assert state.can_go_on
    words = "It had finished at step 40 and was resumed, to be made longer."
    assert words in state.sentence("run")
    assert "60 of 80 steps · had finished at step 40" in shown_by_runs(run)
    with StatusWriter(run.status_file) as status:  # and again
        status.write("preparing")
        status.write("finished", step=80, total_steps=80)
    assert "finished_step" not in run.status()
    assert run.state().sentence("run") == "This run is finished: 80 of 80 steps."
    assert not run.state().can_go_on


def test_the_step_of_an_earlier_end_is_that_of_its_model(tmp_path):
    run = make_run(tmp_path / "run", **FINISHED)
    run.export.mkdir()
    (run.export / "dog.safetensors").write_bytes(b"x")
    record = json.dumps({"written": ["export/dog.safetensors"]})
    (run.path / "models.json").write_text(record, encoding="utf-8")
    made_longer(run, phase="stopped", step=60, total_steps=80)
    assert [one.step for one in checkpoints_of(run)] == [40]


def test_what_is_kept_and_what_to_do_are_one_hint(tmp_path):
    run = make_run(tmp_path / "run", phase="training", step=3, total_steps=9, process=GONE)
    sentence = run.state().sentence("run")
    assert "No state was saved yet. Begin again from the start with: " in sentence
    assert "Continue" not in sentence
    (run.states / "step-00000002").mkdir(parents=True)
    (run.states / "step-00000002" / "state.json").write_text("{}", encoding="utf-8")
    sentence = run.state().sentence("run")
    assert "The state of step 2 is kept, and nothing after it. Continue with: " in sentence
    assert "Begin again" not in sentence


def shown_by_runs(run):
    return impasto("runs", run.path.parent).stdout


def test_an_end_that_cannot_be_written_is_tried_again(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path)

    def full(*_, **__):
        raise StorageError("The disk is full.")

    with StatusWriter(run.status_file) as status:
        monkeypatch.setattr("impasto.files.write_json", full)
        status.write("finished", step=3)  # the error ends no training
        monkeypatch.undo()
    assert status_of(run)["phase"] == "finished"


def test_a_full_disk_ends_no_beat(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path)
    written = threading.Event()
    with StatusWriter(run.status_file, every_s=0.01) as status:
        status.write("training")

        def full(*_, **__):
            written.set()
            raise StorageError("The disk is full.")

        monkeypatch.setattr("impasto.files.write_json", full)
        assert written.wait(30)
        monkeypatch.undo()
        status.note(step=7)
        eventually(lambda: status_of(run).get("step") == 7)


def test_a_slow_disk_holds_no_step_up(tmp_path, monkeypatch):
    """A heartbeat that waits for the disk does not delay callers that only record something."""
    run = RunDirectory(tmp_path)
    begun, go_on = threading.Event(), threading.Event()
    with StatusWriter(run.status_file, every_s=0.01) as status:
        status.write("training", step=1)

        def slow(*_, **__):
            begun.set()
            assert go_on.wait(30)

        monkeypatch.setattr("impasto.files.write_json", slow)
        assert begun.wait(30)
        status.note(step=2)  # it would wait for ever
        monkeypatch.undo()
        go_on.set()
        status.write("finished", step=3)
    assert status_of(run)["phase"] == "finished"


@pytest.mark.parametrize("phase", ["preparing", "training"])
def test_a_run_without_its_process_was_killed(tmp_path, phase):
    run = make_run(tmp_path / "run", phase=phase, step=40, total_steps=100, process=GONE)
    (run.states / "step-00000020").mkdir(parents=True)
    state = run.state()
    assert state.state == "killed"
    assert not state.is_alive
    sentence = state.sentence(run.path)
    assert "about 40 of 100 steps" in sentence
    assert "The state of step 20 is kept" in sentence
    assert "resume" in sentence


@pytest.mark.parametrize("phase", ["finished", "stopped", "failed"])
def test_an_end_stays_what_it_was(tmp_path, phase):
    run = make_run(tmp_path / "run", phase=phase, step=4, total_steps=4, process=GONE)
    assert run.state().state == phase


def test_a_stop_in_a_file_of_a_former_version_is_called_as_now(tmp_path):
    run = make_run(tmp_path / "run", phase="interrupted", step=4, total_steps=9, process=GONE)
    assert run.state().state == "stopped"
    assert "was stopped" in run.state().sentence(run.path)


def test_a_run_that_is_resumed_is_being_prepared_at_once(tmp_path):
    run = make_run(tmp_path / "run", phase="stopped", process=GONE)
    with run.held() as held:
        assert run.state().state == "preparing"
        assert run.state().is_alive
        run.status_file.write_text(
            json.dumps({"phase": "training", "step": 4, "process": GONE}), encoding="utf-8"
        )
        assert run.state().state == "preparing"  # the killed process is not the current trainer
        held.write_status("training", step=1, total_steps=2)
        assert run.state().state == "training"
        held.write_status("finished", step=2, total_steps=2)
        assert run.state().state == "finished"
    assert run.state().state == "finished"


def test_a_process_on_another_machine_lives_as_long_as_its_lock_is_touched(tmp_path):
    away = ProcessIdentity(1, 1, "0" * 6)
    holder = LockHolder("", away, "other", "", "training", age_s=10.0)
    assert holder.is_alive
    assert state_of({"phase": "training"}, holder, 0).state == "training"
    assert not LockHolder("", away, "other", "", "training", age_s=500.0).is_alive


@pytest.mark.parametrize("text", ["", "{", "[]", '{"phase": 3}', '{"phase": "dancing"}'])
def test_a_damaged_status_is_of_unknown_state(tmp_path, text):
    run = make_run(tmp_path / "run")
    run.status_file.write_text(text, encoding="utf-8")
    assert run.state().state == "unknown"
    assert "of unknown state" in run.state().sentence(run.path)


def test_events_wait_for_their_file_and_keep_their_order(tmp_path):
    log = EventLog()
    log.note("first")
    log.note("Warning: second")
    log.open(tmp_path / "events.jsonl")
    log.add("end")
    events = [event for _, event in read_events(tmp_path / "events.jsonl")]
    assert [e["kind"] for e in events] == ["note", "warning", "begin", "end"]
    assert [e.get("text") for e in events[:2]] == ["first", "second"]
    assert all(isinstance(e["time"], float) for e in events)


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path):
    file = tmp_path / "events.jsonl"
    file.write_bytes(b'{"time": 1, "kind": "note", "text": "a"}\n{"time": 2, "ki')
    log = EventLog()
    log.open(file)
    log.note("b \udcff")
    texts = [event["text"] for _, event in read_events(file) if event["kind"] == "note"]
    assert texts[0] == "a"
    assert texts[1].startswith("b ")


def test_events_are_read_on_from_where_reading_ended(tmp_path):
    file = tmp_path / "events.jsonl"
    log = EventLog()
    log.open(file)
    ((place, _),) = read_events(file)
    log.note("next")
    with file.open("ab") as content:
        content.write(b'{"time": 3, "kind": "no')  # just being written
    found = list(read_events(file, place))
    assert [event["text"] for _, event in found] == ["next"]
    with file.open("ab") as content:
        content.write(b'te", "text": "whole"}\n')
    assert [event["text"] for _, event in read_events(file, found[-1][0])] == ["whole"]
    assert list(read_events(tmp_path / "missing.jsonl")) == []


def test_commands_come_in_order_and_are_taken_once(tmp_path):
    folder = tmp_path / "commands"
    assert waiting_commands(folder) == []
    sent = [send_command(folder, name) for name in COMMANDS]
    found = waiting_commands(folder)
    assert {c.id for c in found} == {c.id for c in sent}
    assert found == sorted(found, key=lambda c: c.id)
    assert found[0].take()
    assert not found[0].take()
    assert len(waiting_commands(folder)) == len(COMMANDS) - 1
    discard_commands(folder)
    assert not folder.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"command": "format"}',
        b'{"command": ["save"]}',
        b"\xff" * 9,
        b" " * 5000,
    ],
)
def test_what_is_no_command_is_passed_over(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    (tmp_path / "y.txt").write_text('{"command": "save"}', encoding="utf-8")
    (tmp_path / "z.json").mkdir()
    assert waiting_commands(tmp_path) == []
    discard_commands(tmp_path)
    assert (tmp_path / "x.json").exists()


def test_runs_are_found_below_and_sorted_by_life(tmp_path):
    old = make_run(tmp_path / "a" / "old", phase="finished", updated_at=10, process=GONE)
    new = make_run(tmp_path / "b" / "new", phase="failed", updated_at=20, process=GONE)
    alive = make_run(tmp_path / "alive", phase="stopped", updated_at=1, process=GONE)
    make_run(old.path / "inside", phase="finished")
    make_run(tmp_path / ".hidden" / "run", phase="finished")
    make_run(tmp_path / "a" / "b" / "c" / "d" / "too deep", phase="finished")
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "config.toml").write_text("", encoding="utf-8")
    with alive.held():
        found = newest_first(find_runs([tmp_path, tmp_path / "a"]))
        assert [summary.run.path for summary in found] == [alive.path, new.path, old.path]
        assert found[0].as_json()["process"] == os.getpid()


HOLDER = """
import sys, time
from pathlib import Path
from impasto.runs import RunDirectory
with RunDirectory(Path(sys.argv[1])).held() as run:
    run.write_status("training", step=3, total_steps=9)
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_list_tells_a_living_run_from_a_killed_one(tmp_path):
    run = make_run(tmp_path / "runs" / "dog")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        shown = impasto("runs", tmp_path)
        assert "training · 3 of 9 steps" in shown.stdout
    finally:
        process.kill()
        process.communicate()
    shown = impasto("runs", tmp_path)
    assert "killed · 3 of 9 steps · no state" in shown.stdout
    (line,) = impasto("runs", tmp_path, "--json").stdout.splitlines()
    assert json.loads(line)["state"] == "killed"
    refused = impasto("ask", run.path, "save")
    assert refused.returncode == 5
    assert "is not being trained" in refused.stderr


def test_a_list_of_nothing_says_so(tmp_path):
    assert "No runs in" in impasto("runs", tmp_path).stdout
    assert impasto("runs", tmp_path, "--json").stdout == ""
    missing = impasto("runs", tmp_path / "missing")
    assert missing.returncode == 5
    assert "is not a folder" in missing.stderr
