"""Metrics of a run that was stopped or failed and resumed equal those of an uninterrupted one."""

import json
import signal
from dataclasses import replace

import pytest
from flat_models import one_level_model

from impasto import files
from impasto.data.loading.dataset import TrainingData
from impasto.errors import (
    DatasetError,
    Interrupted,
    NonFiniteLossError,
    OutOfMemoryError,
    StorageError,
)
from impasto.runs import step_name
from impasto.training.events import SilentEvents
from impasto.training.steps import micro_steps
from impasto.training.trainer import resume, train

nano_model = one_level_model

OPTIONS = {
    "logging": {"every_steps": 3, "image_losses": True},
    "saving": {"state_every_steps": 0, "format": "safetensors"},
    "training": {"max_steps": 7},
}


@pytest.fixture(scope="module")
def whole(shared_config):
    """The uninterrupted run. Read-only by agreement."""
    return train(shared_config(**OPTIONS))


class Press(SilentEvents):
    """Presses Ctrl-C in a step."""

    def __init__(self, step):
        self.step = step

    def stepped(self, step):
        if step == self.step:
            signal.raise_signal(signal.SIGINT)


class Unplug(Press):
    """Makes a disk unavailable in a step."""

    def stepped(self, step):
        if step == self.step:
            raise StorageError("models/my-step.safetensors cannot be written.")


def lines(run):
    records = [json.loads(line) for line in run.metrics_file.read_text("utf-8").splitlines()]
    of_time = {"images_per_s", "data_wait", "memory_mib", "time"}
    return [{k: v for k, v in record.items() if k not in of_time} for record in records]


def test_stopping_splits_no_line(shared_config, whole, tmp_path):
    """Stopped twice within the steps of one line, and once within those of the next."""
    config = shared_config(output_dir=str(tmp_path / "run"), **OPTIONS)
    for step in (1, 2, 4):
        with pytest.raises(Interrupted, match=f"{step} of 7 steps are done"):
            train(config, Press(step)) if step == 1 else resume(config.output_dir, Press(step))
    assert_same_numbers(resume(config.output_dir), whole)


def assert_same_numbers(run, whole):
    assert [line["step"] for line in lines(run)] == [3, 6, 7]
    assert lines(run) == lines(whole)
    assert run.image_losses_file.read_text("utf-8") == whole.image_losses_file.read_text("utf-8")


def fail_once(monkeypatch, owner, name, number, fault):
    """Pass the result of a function's n-th call through a fault."""
    real, calls = getattr(owner, name), []

    def faulty(*args, **options):
        calls.append(name)
        found = real(*args, **options)
        return fault(found) if len(calls) == number else found

    monkeypatch.setattr(owner, name, faulty)


def raising(error):
    def fault(_):
        raise error

    return fault


def of_no_number(output):
    return replace(output, losses=output.losses * float("nan"))


FAULTS = {
    "memory": (micro_steps, "training_step", raising(MemoryError()), OutOfMemoryError),
    "batch": (TrainingData, "batch", raising(DatasetError("a.png is gone.")), DatasetError),
    "loss": (micro_steps, "training_step", of_no_number, NonFiniteLossError),
}


@pytest.mark.parametrize("order", [("memory", "batch", "loss"), ("loss", "memory", "batch")])
def test_an_error_loses_no_number(order, shared_config, whole, tmp_path, monkeypatch):
    """The saved state contains the values that no metrics line has yet, of both lines.

    The failures come with one step of the first line done, then one and two of the second.
    """
    config = shared_config(output_dir=str(tmp_path / "run"), **OPTIONS)
    for name, number, done in zip(order, (2, 4, 2), (1, 4, 5), strict=True):
        owner, function, fault, error = FAULTS[name]
        with monkeypatch.context() as patched:
            fail_once(patched, owner, function, number, fault)
            with pytest.raises(error, match="saved"):
                train(config) if done == 1 else resume(config.output_dir)
        assert (tmp_path / "run" / "states" / step_name(done)).is_dir()
    assert_same_numbers(resume(config.output_dir), whole)


def full_at(monkeypatch, name, number):
    """Fill the disk when a file gets its n-th lines."""
    real, calls = files.append_text, []

    def full(path, text):
        if path.name == name:
            calls.append(path)
        if path.name == name and len(calls) == number:
            raise StorageError(f"{path}: the disk is full.")
        real(path, text)

    monkeypatch.setattr(files, "append_text", full)


FULL = "metrics.jsonl", "image_losses.csv"


@pytest.mark.parametrize("names", [FULL, FULL[::-1]], ids=["metrics first", "images first"])
def test_a_disk_that_is_full_or_goes_away_loses_no_number(
    shared_config, whole, tmp_path, monkeypatch, names
):
    """The disk is full at one file's first line and the other's last, and missing in between."""
    config = shared_config(output_dir=str(tmp_path / "run"), **OPTIONS)
    with monkeypatch.context() as patched:
        full_at(patched, names[0], 1)
        with pytest.raises(StorageError, match="state after 3 steps is saved"):
            train(config)
    with pytest.raises(StorageError, match="state after 4 steps is saved"):
        resume(config.output_dir, Unplug(4))
    with monkeypatch.context() as patched:
        full_at(patched, names[1], 2)
        with pytest.raises(StorageError, match="state after 7 steps is saved"):
            resume(config.output_dir)
    assert_same_numbers(resume(config.output_dir), whole)
