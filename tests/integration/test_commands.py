"""The status that a training run writes, and the commands that it accepts."""

import json
import threading
import time

import pytest
from conftest import impasto
from flat_models import one_level_model
from runs import StopAt, exported, run_in

from impasto.errors import ConfigError, Interrupted
from impasto.runs import RunDirectory
from impasto.runs.commands import send_command, waiting_commands
from impasto.runs.events import read_events
from impasto.training.events import SilentEvents
from impasto.training.lifecycle.requests import Requests
from impasto.training.monitoring import command_listener
from impasto.training.signals import StopRequest
from impasto.training.trainer import resume, train

nano_model = one_level_model

OFTEN = {
    "validation": {"split": 0.25, "every_steps": 100},
    "previews": {"prompts": ["a ball"], "width": 32, "height": 32, "steps": 1},
}


class AskAt(SilentEvents):
    """Puts commands into the run's directory after given steps, and waits until they are received.

    Args:
        folder: The run's directory.
        names: The commands by step.
    """

    def __init__(self, folder, names):
        self.folder, self.names = folder, names

    def stepped(self, step):
        if step in self.names:
            sent = [send_command(self.folder / "commands", name) for name in self.names[step]]
            until = time.monotonic() + 60
            while any(command.file.exists() for command in sent):
                assert time.monotonic() < until, "no run receives the command"
                time.sleep(0.01)
            time.sleep(0.05)


@pytest.fixture(autouse=True)
def _hears_at_once(monkeypatch):
    def eager(run, stop, log):
        return real(run, stop, log, every_s=0.01)

    real = command_listener.CommandListener
    monkeypatch.setattr("impasto.training.trainer.CommandListener", eager)


def events_of(run, kind):
    return [event for _, event in read_events(run.events_file) if event["kind"] == kind]


def answers(run):
    return {event["command"]: event["text"] for event in events_of(run, "command")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, nano_model):
    """A run that receives no commands."""
    return run_in(tmp_path_factory.mktemp("whole"), nano_model, **OFTEN)


def test_a_run_tells_its_course_in_events(whole):
    run = whole
    kinds = [event["kind"] for _, event in read_events(run.events_file)]
    assert kinds[-1] == "end"
    assert kinds.count("begin") == kinds.count("training") == 1
    assert [event["step"] for event in events_of(run, "step")] == [0, 1, 2, 3, 4, 5, 6, 6]
    stages = {event["text"] for event in events_of(run, "stage")}
    assert "Encoding latents" in stages
    for name in stages:
        told = [event for event in events_of(run, "stage") if event["text"] == name]
        assert told[0]["done"] == 0
        assert told[-1]["ended"]
    times = [event["time"] for _, event in read_events(run.events_file)]
    assert times == sorted(times)
    metrics = list(run.read_metrics())
    assert [m["time"] for m in metrics] == sorted(m["time"] for m in metrics)
    assert times[0] <= metrics[0]["time"] <= times[-1]


def test_the_status_tells_how_far_a_run_is(train_config):
    """The status reports the run's progress; commands sent while no process ran are dropped."""
    config = train_config(saving={"state_every_steps": 2})
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(5))
    status = RunDirectory(config.output_dir).status()
    assert (status["phase"], status["total_steps"]) == ("failed", 6)
    assert status["message"] == "ZeroDivisionError"
    send_command(config.output_dir / "commands", "stop")
    run = resume(config.output_dir)
    assert run.state().state == "finished"
    assert answers(run) == {}
    assert [event["step"] for event in events_of(run, "training")] == [0, 4]


def test_what_is_asked_for_is_done_after_the_step(train_config, whole):
    """A command is executed after the step, and changes nothing that is learned, even by a stop."""
    config = train_config(**OFTEN, saving={"keep_states": 9})
    asked = {2: ("preview", "validate", "save"), 4: ("stop",)}
    with pytest.raises(Interrupted, match="4 of 6 steps"):
        train(config, AskAt(config.output_dir, asked))
    run = RunDirectory(config.output_dir)
    assert run.saved_steps() == [2, 4]
    assert run.state().state == "stopped"
    done = "done after step 2"
    assert answers(run) == {"preview": done, "validate": done, "save": done, "stop": "stopping"}
    assert run.sampled_steps() == [0, 2]
    assert [m["step"] for m in run.read_metrics() if "validation_loss" in m] == [0, 2]
    assert waiting_commands(run.commands) == []
    assert exported(resume(config.output_dir)) == exported(whole)
    assert run.sampled_steps() == [0, 2, 6]


def test_prompts_of_a_file_are_drawn_when_asked(train_config, tmp_path):
    """Prompts are read from the file on each request; missing held-out images are reported."""
    file = tmp_path / "prompts.txt"
    file.write_text("a red ball\n", encoding="utf-8")
    previews = {"prompt_file": str(file), "steps": 1, "width": 32, "height": 32}
    config = train_config(previews={**previews, "every_steps": 1000}, training={"max_steps": 3})
    run = train(config, AskAt(config.output_dir, {2: ("preview", "validate")}))
    assert answers(run)["preview"] == "done after step 2"
    assert "no held-out images" in answers(run)["validate"]
    assert 2 in run.sampled_steps()


def test_a_run_that_is_asked_to_stop_now_saves_nothing(train_config):
    """A run that stops at once saves nothing, and reports that it has no previews to draw."""
    config = train_config()
    asked = {2: ("preview",), 3: ("stop-now",)}
    with pytest.raises(Interrupted, match="No state was saved yet"):
        train(config, AskAt(config.output_dir, asked))
    run = RunDirectory(config.output_dir)
    assert "no prompts" in answers(run)["preview"]
    assert run.saved_steps() == []


def test_a_run_that_does_not_begin_leaves_nothing(train_config):
    config = train_config(previews={"hypernetworks": ["missing.pt"], "prompts": ["a"]})
    with pytest.raises(Exception, match="missing"):
        train(config)
    assert not config.output_dir.exists()
    with pytest.raises(ConfigError):
        train(train_config(training={"cuda_graphs": True, "compile": "full"}))
    assert not config.output_dir.exists()


class Processes:
    """Two processes, of which the second contributes another number."""

    num_processes, device = 2, "cpu"

    def __init__(self, other):
        self.other = other

    def gather(self, number):
        return number.new_tensor([int(number), self.other])


def test_several_processes_agree_where_metrics_are_due():
    """The second process receives no commands itself, and follows the first one's."""
    stop = StopRequest()
    second = Requests(stop, None, Processes(0b101), lambda done: done == 10, lambda _: "")
    assert second.asked(9) == set()
    assert second.asked(10) == {"preview", "save"}
    assert second.stop_signal(9) is None
    assert second.stop_signal(10) == 0b101
    second.answer(10)


def test_the_command_line_asks_and_hears_the_answer(run_file, tmp_path):
    """`impasto ask` sends a command to a real run in a separate process and prints the answer."""
    file = run_file(training={"max_steps": 100_000}, saving={"state_every_steps": 0})
    folder = tmp_path / "run"
    started = threading.Thread(target=impasto, args=("train", file), daemon=True)
    started.start()
    pause = threading.Event()
    while RunDirectory(folder).state().state != "training":
        assert started.is_alive()
        pause.wait(0.02)
    saved = impasto("ask", folder, "save")
    assert saved.returncode == 0, saved.stderr
    assert "Answer: done after step" in saved.stdout
    assert len(RunDirectory(folder).saved_steps()) == 1
    listed = impasto("runs", tmp_path, "--json")
    assert json.loads(listed.stdout)["state"] == "training"
    assert "Answer: stopping" in impasto("ask", folder, "stop").stdout
    started.join(timeout=120)
    assert not started.is_alive()
    assert RunDirectory(folder).state().state == "stopped"
