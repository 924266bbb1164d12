"""After an early end, the terminal, `impasto show` and the report give the same message."""

import html
import re
import signal

import pytest
from click.testing import CliRunner

from impasto.cli.main import impasto as commands
from impasto.errors import Interrupted
from impasto.report.page import write_report
from impasto.runs import RunDirectory
from impasto.training.events import SilentEvents
from impasto.training.trainer import resume, train


class Press(SilentEvents):
    """Presses Ctrl-C after a step, twice to stop at once; records the terminal's messages."""

    def __init__(self, after, times=1):
        self.after, self.times, self.notes = after, times, []

    def note(self, message):
        self.notes.append(message)

    def stepped(self, step):
        if step == self.after:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)


class PressWhilePreparing(SilentEvents):
    def stage(self, description, total, unit):
        if description.startswith("Scanning"):
            signal.raise_signal(signal.SIGINT)
        return super().stage(description, total, unit)


def told_everywhere(run):
    """Return the message of a run, after finding it in `impasto show` and in the report."""
    sentence = run.state().sentence(run.address)
    plain = re.sub(r"\s+", " ", sentence)
    shown = CliRunner().invoke(commands, ["show", str(run.path)])
    assert plain in re.sub(r"\s+", " ", shown.output)
    write_report(run)
    report = re.sub(r"\s+", " ", html.unescape(run.report.read_text(encoding="utf-8")))
    assert plain.partition("impasto")[0].replace(str(run.path), "")[:80] in report
    return sentence


def lengthened(run, steps):
    file = run.config_file
    text = re.sub(r"max_steps = \d+", f"max_steps = {steps}", file.read_text(encoding="utf-8"))
    file.write_text(text, encoding="utf-8")


def test_a_run_that_was_made_longer_and_stopped_says_that_it_had_finished(train_config):
    run = train(train_config(training={"max_steps": 1}))
    model = run.exported_model()
    lengthened(run, 3)
    with pytest.raises(Interrupted, match="Stopped at once"):
        resume(run.path, PressWhilePreparing())
    sentence = told_everywhere(run)
    assert sentence.startswith(
        "This run is finished: 1 of 1 step. It was resumed later, which was stopped before a step."
    )
    assert "The state of step 1 is kept, and nothing after it. Continue with: " in sentence
    assert run.exported_model() == model
    events = Press(after=2)
    with pytest.raises(Interrupted, match="2 of 3 steps are done"):
        resume(run.path, events)
    assert any("The run had finished at step 1. Its model of that step" in n for n in events.notes)
    sentence = told_everywhere(run)
    assert sentence.startswith("This run was stopped. It had finished at step 1 and was resumed")
    assert run.exported_model() == model
    resume(run.path)
    assert told_everywhere(run) == "This run is finished: 3 of 3 steps."


def test_a_run_that_was_stopped_before_its_first_state_has_one_hint(train_config):
    config = train_config(training={"max_steps": 3})
    with pytest.raises(Interrupted) as caught:
        train(config, Press(after=1, times=2))
    hint = "No state was saved yet. Begin again from the start with: "
    assert hint in str(caught.value)
    assert "Continue" not in str(caught.value)
    run = RunDirectory(config.output_dir)
    sentence = told_everywhere(run)
    assert sentence.count(hint) == 1
    assert resume(run.path).exported_model() is not None
