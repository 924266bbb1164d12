"""The queue of runs: its order, the true states of its jobs, and no job lost or run twice."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from test_run_status import GONE, eventually, make_run

from impasto import files, locks
from impasto.cli.main import impasto
from impasto.cli.queue_run import Runner, arguments_for
from impasto.errors import ConfigError, Interrupted, RunError, StorageError
from impasto.owners import current_process, identity_of
from impasto.progress import SilentProgress
from impasto.runs import RunDirectory, step_name
from impasto.runs.queue import Queue
from impasto.runs.queue_devices import (
    ask_runner_to_stop,
    device_name,
    is_asked_to_stop,
    lock_name,
    runners_of,
)
from impasto.runs.queue_jobs import outcome_of, read_job, write_job
from impasto.runs.queue_settings import output_of, with_output

VALID = """output_dir = "runs/{name}"
[model]
path = "base"
[dataset]
image_dir = "images"
[training]
max_steps = 5
"""


def text_of(name):
    return tomli_w.dumps({"output_dir": f"runs/{name}"})


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "queue")


def add(queue, name, **more):
    return queue.add(text_of(name), name, queue.folder.parent, **more)


def numbers(queue):
    return [job.number for job in queue.jobs()]


def states(queue):
    return {job.name: job.state for job in queue.jobs()}


# order


CHANGES = st.one_of(
    st.just(("add",)),
    st.tuples(st.just("remove"), st.integers(0, 9)),
    st.tuples(st.sampled_from(["up", "down", "first", "last"]), st.integers(0, 9)),
    st.tuples(st.sampled_from(["before", "after"]), st.integers(0, 9), st.integers(0, 9)),
)


@settings(max_examples=15, deadline=None)
@given(st.lists(CHANGES, max_size=10))
def test_the_order_is_that_of_a_list(changes):
    """After any change, a second reader sees the order of a list in memory."""
    with tempfile.TemporaryDirectory() as folder:
        queue, model, last = Queue(Path(folder) / "queue"), [], 0
        for what, *which in [("add",), ("add",), ("add",), *changes]:
            picked = [model[n % len(model)] for n in which] if model else []
            if what == "add":
                last += 1
                model.append(add(queue, f"run-{last}").number)
                assert model[-1] == last, "no number is given twice"
            elif not picked:
                continue
            elif what == "remove":
                queue.remove(picked[0])
                model.remove(picked[0])
            else:
                queue.move(picked[0], what, *picked[1:])
                place = model.index(picked[0])
                if picked[0] == picked[-1] and what in ("before", "after"):
                    continue
                model.remove(picked[0])
                if what in ("before", "after"):
                    place = model.index(picked[1]) + (what == "after")
                else:
                    places = {"up": max(0, place - 1), "down": place + 1, "first": 0}
                    place = places.get(what, len(model))
                model.insert(place, picked[0])
            assert numbers(Queue(queue.folder)) == model


def test_a_job_of_no_order_comes_last_and_a_damaged_order_loses_none(queue):
    """A kill before the order is written, or a damaged order, loses no job."""
    for name in "abc":
        add(queue, name)
    queue.move(3, "first")
    order = queue.folder / "queue.json"
    order.write_text('{"order": [3, 9, 1, 1, "x", true], "last": 3}', encoding="utf-8")
    assert numbers(queue) == [3, 1, 2]
    for damaged in ("", "[]", '{"order": 5}', "{", "\udcff"):
        order.write_bytes(damaged.encode("utf-8", "surrogateescape"))
        assert numbers(queue) == [1, 2, 3]
    assert add(queue, "d").number == 4


ADDING = """
import sys
from pathlib import Path
from impasto import locks
from impasto.runs.queue import Queue
from impasto.runs.queue_devices import lock_name
who, folder = sys.argv[1], Path(sys.argv[2])
queue = Queue(folder)
with locks.FolderLock(folder, "test", lambda _: None, lock_name(who)):
    for n in range(8):
        queue.add(f'output_dir = "runs/{who}-{n}"', f"{who}-{n}", folder.parent)
        print(queue.claim(who).number, flush=True)
    print("end", flush=True)
    sys.stdin.read()
"""


def test_processes_that_add_and_take_at_once_lose_no_job_and_take_none_twice(queue):
    queue.folder.mkdir()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", ADDING, who, str(queue.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for who in ("a", "b", "c")
    ]  # fmt: skip
    taken = [line.strip() for process in started for line in iter(process.stdout.readline, "end\n")]
    for process in started:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert sorted(map(int, taken)) == list(range(1, 25))
    jobs = queue.jobs()
    assert {job.name for job in jobs} == {f"{who}-{n}" for who in "abc" for n in range(8)}
    assert sorted(job.number for job in jobs) == list(range(1, 25))


def test_threads_of_one_program_take_turns(queue):
    """Requests of a studio use such threads."""
    together = [
        threading.Thread(target=lambda n=n: [add(queue, f"{n}-{k}") for k in range(5)])
        for n in range(4)
    ]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    assert sorted(numbers(queue)) == list(range(1, 21))


# settings


def test_comments_stay_when_the_output_dir_is_changed():
    text = '# mine\noutput_dir = "runs/a"\nseed = 3 # a prime\n[model]\npath = "b" # base\n'
    assert with_output(text, "runs/a-2") == text.replace("runs/a", "runs/a-2")


TEXTS = (
    'output_dir = "a"\n[model]\noutput_dir = "b"\n',
    '"output_dir" = "a"\n',
    "output_dir='a'\n",
    'note = """\noutput_dir = "b"\n"""\noutput_dir = "a"\n',
    'output_dir = """\na"""\n[x]\n',
    'output_dir = "a" # [x]\nlist = [\n[1],\n]\n',
)


@given(st.sampled_from(TEXTS), st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_only_the_output_dir_is_changed(text, output):
    assert tomllib.loads(with_output(text, output)) == tomllib.loads(text) | {"output_dir": output}


@pytest.mark.parametrize(
    "text", ["", "output_dir = 3", 'output_dir = " "', "output_dir =", 'x = "\udcff"', "a.b = 1"]
)
def test_settings_without_a_place_are_refused_and_nothing_is_written(queue, tmp_path, text):
    with pytest.raises(ConfigError):
        queue.add(text, "x", tmp_path)
    assert not queue.folder.exists()


def test_a_repeat_goes_to_the_next_place_that_is_free(queue, tmp_path):
    add(queue, "dog")
    (tmp_path / "runs" / "dog-2").mkdir(parents=True)
    assert output_of(queue.repeat(1).settings_file.read_text("utf-8")) == "runs/dog-3"
    assert output_of(queue.repeat(2).settings_file.read_text("utf-8")) == "runs/dog-4"


def test_settings_that_somebody_has_damaged_are_named(queue):
    job = add(queue, "dog")
    for content in (b"\xff\xfe", b"x =", b""):
        job.settings_file.write_bytes(content)
        assert queue.find(1).run is None
        with pytest.raises(ConfigError):
            queue.repeat(1)
    job.settings_file.unlink()
    with pytest.raises(ConfigError, match=r"settings\.toml cannot be read"):
        queue.repeat(1)
    assert queue.claim("0").number == 1  # `train` reports the error


def test_a_place_that_is_taken_is_refused_at_once(queue, tmp_path):
    add(queue, "dog")
    with pytest.raises(RunError, match="job 1, dog"):
        queue.add('output_dir = "x/../runs/dog"', "again", tmp_path)
    make_run(tmp_path / "runs" / "cat", phase="finished")
    with pytest.raises(RunError, match="already exists and is not empty"):
        add(queue, "cat")
    assert numbers(queue) == [1]


STRANGE = ['it\'s "odd"', "two\nlines", "<b>&", "\udcff\udcfe", "\x1b[2J", "", "é" * 500]


@pytest.mark.parametrize("name", STRANGE)
def test_any_name_comes_back_and_is_harmless_where_it_is_printed(queue, tmp_path, name):
    queue.add(text_of("dog"), name, tmp_path)
    wanted = name[:200] or "dog"
    assert queue.find(1).name == wanted
    shown = CliRunner().invoke(impasto, ["queue", "list", "--queue", str(queue.folder)])
    assert shown.exit_code == 0
    assert "\x1b[2J" not in shown.output
    told = CliRunner().invoke(impasto, ["queue", "list", "--json", "--queue", str(queue.folder)])
    assert json.loads(told.output)["name"] == wanted


def test_a_full_disk_leaves_the_queue_as_it_was(queue, monkeypatch):
    import errno

    add(queue, "dog")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted(os.listdir(queue.folder))
    monkeypatch.setattr(files, "_flush", full)
    for change in (
        lambda: add(queue, "cat"), lambda: queue.pause(1), lambda: queue.repeat(1),
        lambda: queue.claim("0"), lambda: queue.move(1, "last"),
    ):  # fmt: skip
        with pytest.raises(StorageError, match="The disk is full"):
            change()
    monkeypatch.undo()
    assert sorted(os.listdir(queue.folder)) == before
    assert states(queue) == {"dog": "waiting"}
    assert add(queue, "cat").number == 2


# true states


def written_by(queue, job, token, **more):
    job = replace(
        job, state="working", runner=token, device="0", tries=1, owns_run=True, **more
    )  # fmt: skip
    write_job(job)
    return job


def told(job, *events):
    job.task.path.mkdir(exist_ok=True)
    lines = "".join(json.dumps(event) + "\n" for event in events)
    job.task.events_file.write_text(lines, encoding="utf-8")


BEGIN = {"kind": "begin", "process": GONE}


@pytest.mark.parametrize(
    ("events", "phase", "pausing", "state", "words"),
    [
        ([], None, False, "waiting", "starts again from the beginning"),
        ([BEGIN], None, False, "waiting", "starts again from the beginning"),
        ([BEGIN], "training", False, "waiting", "killed"),
        ([BEGIN], "training", True, "paused", "paused"),
        ([BEGIN], "finished", False, "done", ""),
        ([BEGIN], "failed", False, "failed", "No images."),
        ([BEGIN, {"kind": "ended", "code": 0}], "finished", False, "done", ""),
        ([BEGIN, {"kind": "ended", "code": 0}], "finished", True, "done", ""),
        ([BEGIN, {"kind": "ended", "code": 143}], "stopped", False, "waiting", "stopped"),
        ([BEGIN, {"kind": "ended", "code": 130}], "stopped", True, "paused", "paused"),
        (
            [BEGIN, {"kind": "error", "text": "Bad."}, {"kind": "ended", "code": 2}],
            None, True, "failed", "Bad.",
        ),
    ],
)  # fmt: skip
def test_a_job_whose_runner_was_killed_is_seen_as_what_it_is(
    queue, events, phase, pausing, state, words
):
    job = written_by(queue, add(queue, "dog"), GONE, pausing=pausing)
    told(job, *events)
    if phase:
        make_run(job.run.path, phase=phase, process=GONE, message="No images.")
    found = queue.find(1)
    assert found.state == state
    assert words in found.message
    assert (queue.claim("0") is not None) == (state == "waiting")


def test_a_job_is_worked_on_as_long_as_its_runner_or_its_process_lives(queue):
    job = written_by(queue, add(queue, "dog"), current_process().token)
    told(job, BEGIN)
    assert queue.find(1).state == "waiting"  # the process is alive and works on another job
    with locks.FolderLock(queue.folder, "test", lambda _: None, lock_name("0")):
        assert queue.find(1).state == "working"
        assert queue.claim("1") is None
        with pytest.raises(RunError, match="being trained"):
            queue.remove(1)
    told(job, {"kind": "begin", "process": current_process().token})
    written_by(queue, job, GONE)
    assert queue.find(1).state == "working", "its process has outlived the runner"
    assert queue.claim("0") is None
    assert queue.adopt("1") is None, "another device's"
    assert queue.adopt("0").number == 1


def test_a_run_that_somebody_else_trains_is_left_alone(queue):
    job = replace(add(queue, "dog"), owns_run=True)
    write_job(job)
    make_run(job.run.path, phase="training", process=current_process().token)
    with locks.FolderLock(job.run.path, "training", lambda _: None):
        assert queue.claim("0") is None
        assert queue.find(1).state == "waiting"
    assert queue.claim("0").number == 1


def test_what_is_begun_again_is_resumed_only_where_it_is_its_own(queue):
    first = queue.claim("0") if add(queue, "dog") else None
    assert arguments_for(first)[0] == "train"
    first.run.path.mkdir(parents=True)
    said = {"owner": GONE, "pid": 1, "host": "h", "since": "s", "what": "training"}
    (first.run.path / ".lock").write_text(json.dumps(said), encoding="utf-8")
    first.run.commands.mkdir()
    assert arguments_for(first)[0] == "train"
    RunDirectory.require_free(first.run.path)  # which `train` checks
    first.run.config_file.write_text("", encoding="utf-8")
    assert arguments_for(first) == ["resume", str(first.run.path)]  # killed before its first state
    add(queue, "cat")
    make_run(queue.find(2).run.path, phase="finished", process=GONE)  # another's, created since
    queue.pause(1)
    assert queue.claim("0") is None
    assert queue.find(2).state == "failed"
    assert "already exists and is not empty" in queue.find(2).message
    queue.retry(2)
    assert queue.claim("0") is None
    assert queue.find(2).state == "failed"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"name": 1}', '{"name": "a", "folder": 3, "state": "waiting"}',
                '{"name": "a", "folder": "b", "state": "eaten"}', "\udcff",
                '{"name": "a", "folder": "b", "state": "waiting", "tries": true}'],
)  # fmt: skip
def test_a_damaged_record_is_named_and_ends_nothing(queue, content):
    add(queue, "a")
    add(queue, "b")
    record = queue.folder / "0001" / "job.json"
    record.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert [job.state for job in queue.jobs()] == ["failed", "waiting"]
    assert "job.json" in queue.find(1).message
    assert queue.claim("0").number == 2
    queue.remove(1)
    assert numbers(queue) == [2]


def test_what_does_not_fit_the_state_is_refused_in_words(queue):
    add(queue, "dog")
    with pytest.raises(
        RunError,
        match=r"Job 1 is waiting\. The command continue works only on jobs in the state paused",
    ):
        queue.go_on(1)
    with pytest.raises(RunError, match="The command retry works only on"):
        queue.retry(1)
    with pytest.raises(RunError, match=r"no job 7 .* Jobs there: 1\."):
        queue.find(7)
    with pytest.raises(RunError, match="Give the job to move it before"):
        queue.move(1, "before")
    queue.pause(1)
    assert queue.claim("0") is None
    queue.go_on(1)
    assert queue.claim("0").number == 1


# devices


def test_devices_are_counted_among_those_that_may_be_used():
    assert device_name(2, {}) == "2"
    assert device_name(2, {"CUDA_VISIBLE_DEVICES": ""}) == "2"
    assert device_name(1, {"CUDA_VISIBLE_DEVICES": "3, GPU-ab/c"}) == "GPU-ab/c"
    assert lock_name("GPU-ab/../c") == ".device-GPU-ab____c.lock"
    with pytest.raises(RunError, match="There is no device 2"):
        device_name(2, {"CUDA_VISIBLE_DEVICES": "3,5"})


def test_only_the_runner_that_was_asked_stops(queue, tmp_path):
    tmp_path.joinpath("queue").mkdir()
    with pytest.raises(RunError, match="No process runs the queue on device 0"):
        ask_runner_to_stop(queue.folder, "0")
    with locks.FolderLock(queue.folder, "test", lambda _: None, lock_name("0")):
        assert list(runners_of(queue.folder)) == ["0"]
        ask_runner_to_stop(queue.folder, "0")
    assert is_asked_to_stop(queue.folder, "0", current_process().token)
    assert not is_asked_to_stop(queue.folder, "0", GONE)
    assert not is_asked_to_stop(queue.folder, "1", current_process().token)
    assert runners_of(queue.folder) == {}


# running jobs, with small programs in place of training

SLEEPS = "import time; time.sleep(600)"
STOPS = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); print('up', flush=True); time.sleep(600)"  # fmt: skip # noqa: E501
TELLS = "import os; print(os.environ['IMPASTO_TASK'], os.environ['CUDA_VISIBLE_DEVICES'])"


signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")


class Programs:
    """Starts a program for each job by its name, and records them."""

    def __init__(self, **programs):
        self.programs, self.begun = programs, {}

    def __call__(self, words, log, folder, environment):
        name = log.parent.parent.joinpath("job.json").read_text(encoding="utf-8")
        name = json.loads(name)["name"]
        with log.open("ab") as output:
            self.begun[name] = subprocess.Popen(
                [sys.executable, "-c", self.programs[name]],
                cwd=folder, stdout=output, stderr=output, env={**os.environ, **environment},
            )  # fmt: skip
        return self.begun[name]

    def wait_for(self, name):
        eventually(lambda: name in self.begun)
        return self.begun[name]


@pytest.fixture
def run_queue(queue, monkeypatch):
    """Run the queue in a thread; return the started programs, the thread, and its errors."""
    programs = []

    def begin(*, wait=False, console=None, **named):
        started, errors = Programs(**named), []
        programs.append(started)
        monkeypatch.setattr("impasto.cli.queue_run.start_apart", started)

        def work():
            try:
                shown = console or SilentProgress()
                Runner(queue, "7", shown, look_every_s=0.01).work(wait=wait)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return started, thread, errors

    yield begin
    for started in programs:
        for process in started.begun.values():
            process.kill()
            process.wait()


def test_a_job_that_fails_is_named_and_the_next_one_begins(queue, run_queue, monkeypatch):
    monkeypatch.setenv("IMPASTO_TASK", "the studio's task")
    for name in ("bad", "stopped", "good"):
        add(queue, name)
    _, thread, errors = run_queue(
        bad="import sys; print('It is broken.'); sys.exit(4)",
        stopped="import sys; sys.exit(143)",
        good=TELLS,
    )
    thread.join(timeout=60)
    assert errors == []
    assert states(queue) == {"bad": "failed", "stopped": "stopped", "good": "done"}
    assert "It is broken." in queue.find(1).message
    task = queue.find(3).task
    assert task.last_lines() == [f"{task.path} 7"]  # a separate task, and the device
    queue.go_on(2)
    assert states(queue)["stopped"] == "waiting"


@signals
def test_a_job_that_is_killed_beside_its_runner_fails_and_is_tried_again(queue, run_queue):
    add(queue, "dog")
    started, thread, errors = run_queue(dog=SLEEPS)
    started.wait_for("dog").kill()
    thread.join(timeout=60)
    assert errors == []
    assert queue.find(1).state == "failed"
    assert "killed (signal 9)" in queue.find(1).message
    queue.retry(1)
    _, thread, _ = run_queue(dog="pass")
    thread.join(timeout=60)
    assert (queue.find(1).state, queue.find(1).tries) == ("done", 2)


@signals
def test_a_job_that_is_paused_stops_and_the_next_one_begins(queue, run_queue):
    add(queue, "dog")
    add(queue, "cat")
    started, thread, errors = run_queue(dog=STOPS, cat="pass")
    started.wait_for("dog")
    eventually(lambda: queue.find(1).task.last_lines() == ["up"])
    queue.pause(1)
    thread.join(timeout=60)
    assert errors == []
    assert states(queue) == {"dog": "paused", "cat": "done"}


@signals
def test_a_runner_that_is_asked_to_stop_leaves_its_job_to_be_continued(queue, run_queue):
    add(queue, "dog")
    add(queue, "cat")
    started, thread, errors = run_queue(dog=STOPS, wait=True)
    started.wait_for("dog")
    eventually(lambda: queue.find(1).task.last_lines() == ["up"])
    ask_runner_to_stop(queue.folder, "7")
    thread.join(timeout=60)
    (error,) = errors
    assert isinstance(error, Interrupted)
    assert error.exit_code == 143
    assert states(queue) == {"dog": "waiting", "cat": "waiting"}
    assert runners_of(queue.folder) == {}


def test_there_is_one_job_a_device_and_new_ones_are_waited_for(queue, run_queue):
    _, thread, errors = run_queue(dog="pass", wait=True)
    eventually(lambda: runners_of(queue.folder))
    with pytest.raises(RunError, match="already in use"):
        Runner(queue, "7", SilentProgress()).work(wait=False)
    add(queue, "dog")
    eventually(lambda: states(queue) == {"dog": "done"})
    ask_runner_to_stop(queue.folder, "7")
    thread.join(timeout=60)
    assert isinstance(errors[0], Interrupted)


def test_the_command_that_goes_on_is_for_the_same_device(queue, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    words = ["queue", "run", "--queue", str(queue.folder), "--device", "3", "--wait"]
    errors = []

    def work():
        try:
            impasto.main(words, standalone_mode=False)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    eventually(lambda: runners_of(queue.folder))
    for _ in range(300):  # a starting runner ignores earlier requests
        with contextlib.suppress(RunError):
            ask_runner_to_stop(queue.folder, "3")
        thread.join(timeout=0.2)
        if not thread.is_alive():
            break
    assert str(errors[0]).endswith(f"queue run --queue {queue.folder} --device 3 --wait")


def test_a_process_that_outlived_its_runner_is_waited_for(queue, run_queue):
    """No other job starts on a device while an earlier runner's process still uses it."""
    job, _ = add(queue, "dog"), add(queue, "cat")
    orphan = subprocess.Popen([sys.executable, "-c", SLEEPS])
    write_job(replace(job, state="working", runner=GONE, device="7", tries=1, owns_run=True))
    told(read_job(job.path), {"kind": "begin", "process": identity_of(orphan.pid).token})
    started, thread, errors = run_queue(cat="pass")
    eventually(lambda: queue.find(1).runner == current_process().token)
    assert started.begun == {}
    assert queue.find(1).state == "working"
    orphan.kill()
    orphan.wait()
    thread.join(timeout=60)
    assert errors == []
    assert states(queue) == {"dog": "failed", "cat": "done"}


TRAINS = """
import pathlib, time
from impasto.runs import RunDirectory
path = pathlib.Path("runs/dog")
path.mkdir(parents=True, exist_ok=True)
with RunDirectory(path).held() as run:
    run.write_status("training", step={step}, total_steps=30)
    while not pathlib.Path("seen").exists():
        time.sleep(0.01)
    run.write_status("finished", step=30, total_steps=30)
"""


class Counted(SilentProgress):
    """Records the length of each stage, its progress, and when it started."""

    def __init__(self, seen):
        self.seen, self.stages = seen, []

    @contextlib.contextmanager
    def stage(self, description, total, unit):
        counts = []
        self.seen.touch()
        yield counts.append
        self.stages.append((description, total, sum(counts)))


@pytest.mark.parametrize(("saved", "step", "counted"), [(None, 2, 30), (20, 23, 10)])
def test_the_steps_of_a_job_are_those_of_this_try(queue, run_queue, tmp_path, saved, step, counted):
    """Steps are counted from the start, or from the resumed state, to the last step."""
    job = add(queue, "dog")
    if saved is not None:
        run = make_run(job.run.path, phase="training", step=22, total_steps=30, process=GONE)
        (run.states / step_name(saved)).mkdir(parents=True)
        write_job(replace(job, tries=1, owns_run=True))
    shown = Counted(tmp_path / "seen")
    _, thread, errors = run_queue(console=shown, dog=TRAINS.format(step=step))
    thread.join(timeout=60)
    assert errors == []
    assert shown.stages == [("Job 1, dog", counted, counted)]


def test_a_folder_that_is_gone_fails_its_job_in_words(queue, run_queue, tmp_path):
    (tmp_path / "gone").mkdir()
    queue.add(text_of("dog"), "dog", tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    _, thread, errors = run_queue()
    thread.join(timeout=60)
    assert errors == []
    assert "does not exist any more" in queue.find(1).message


def test_a_run_of_somebody_else_is_never_taken_for_the_jobs_own(queue, run_queue):
    """Another run appeared there between the check and the start, so `train` refused."""
    job = add(queue, "dog")
    _, thread, _ = run_queue(
        dog="import pathlib, sys; p = pathlib.Path('runs/dog'); p.mkdir(parents=True)\n"
        "for n in ('config.toml', 'status.json'): (p / n).write_text('{}')\nsys.exit(5)"
    )
    thread.join(timeout=60)
    assert queue.find(1).state == "failed"
    assert not queue.find(1).owns_run
    assert job.run.is_there()


def test_a_run_begun_by_hand_after_a_job_failed_is_not_the_jobs_own(queue, run_queue):
    """Retrying a failed job must not resume a run that its settings never described."""
    job = add(queue, "dog")
    _, thread, _ = run_queue(dog="import sys; sys.exit(2)")
    thread.join(timeout=60)
    assert queue.find(1).state == "failed"
    make_run(job.run.path, phase="finished", process=GONE)
    queue.retry(1)
    assert queue.claim("0") is None
    assert "already exists and is not empty" in queue.find(1).message


def test_the_words_of_a_real_run_that_cannot_begin_are_kept(queue, tmp_path, monkeypatch):
    monkeypatch.setenv("IMPASTO_TASK", str(tmp_path / "the studio's"))
    queue.add(VALID.format(name="dog"), "dog", tmp_path)
    Runner(queue, "0", SilentProgress(), look_every_s=0.01).work(wait=False)
    job = queue.find(1)
    assert job.state == "failed"
    assert job.message.startswith("The image folder images does not exist.")
    assert job.task.state().code == 3
    assert not (tmp_path / "the studio's").exists()
    assert not job.run.path.exists()


def test_a_state_that_is_kept_is_named(queue):
    job = written_by(queue, add(queue, "dog"), GONE)
    run = make_run(job.run.path, phase="training", step=7, total_steps=9, process=GONE)
    (run.states / step_name(6)).mkdir(parents=True)
    assert outcome_of(job, None, is_left=True)[1].endswith("It continues from step 6 of 9.")


# the command line


def typed(*words, code=0):
    result = CliRunner().invoke(impasto, ["queue", *map(str, words)])
    if code is None:
        return result.exception
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_the_verbs_change_the_queue_of_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        Path(f"{name}.toml").write_text(VALID.format(name=name), encoding="utf-8")
    assert "There are no jobs" in typed("list")
    assert "queue run" in typed("add", "a.toml", "b.toml")
    assert "paused" in typed("add", "c.toml", "--paused")
    assert "3, 1, 2" in typed("move", 3, "before", 1)
    typed("pause", 1)
    typed("continue", 3)
    assert "Job 4 repeats job 2" in typed("repeat", 2)
    typed("remove", 2)
    found = [json.loads(line) for line in typed("list", "--json").splitlines()]
    assert [(job["number"], job["state"]) for job in found] == [
        (3, "waiting"), (1, "paused"), (4, "waiting"),
    ]  # fmt: skip
    assert found[0]["folder"] == str(tmp_path)
    assert found[2]["run"] == str(tmp_path / "runs" / "b-2")
    assert "a-2" not in typed("list")
    assert isinstance(typed("retry", 1, code=None), RunError)
    assert isinstance(typed("stop", code=None), RunError)
    typed("pause", 0, code=2)
    typed("move", 1, "sideways", code=2)


@pytest.mark.parametrize(
    "broken",
    ['output_dir = "x"\n[model]\npth = "y"\n', "x =", VALID.replace("= 5", "= -5"), "\udcff"],
)
def test_a_broken_file_is_refused_when_it_is_added(tmp_path, monkeypatch, broken):
    monkeypatch.chdir(tmp_path)
    Path("good.toml").write_text(VALID.format(name="a"), encoding="utf-8")
    Path("bad.toml").write_bytes(broken.encode("utf-8", "surrogateescape"))
    assert isinstance(typed("add", "good.toml", "bad.toml", code=None), ConfigError)
    assert not Path("queue").exists()
    typed("add", "missing.toml", code=2)


def test_the_queue_imports_no_torch():
    from test_architecture import loaded_modules

    loaded = loaded_modules("import impasto.runs.queue, impasto.cli.queue_run, impasto.cli.queue")
    assert not loaded & {"torch", "pydantic", "starlette"}
