"""Trackers of runs: TensorBoard across resumes, W&B without a network."""

import errno
import os
import sys
import time
from types import SimpleNamespace

import pytest
from flat_models import one_level_model
from runs import StopAt

from impasto.errors import MissingDependencyError, StorageError
from impasto.runs import RunDirectory
from impasto.training.monitoring.trackers import TrackedRun, Wandb
from impasto.training.trainer import resume, train

nano_model = one_level_model

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def test_metrics_go_to_tensorboard_also_over_resumes(train_config):
    """Each metric is written once, also for repeated steps, from the start or from a state."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = train_config(
        training={"max_steps": 4},
        logging={"trackers": ["tensorboard"], "every_steps": 1},
        method={"train_text_encoder": True, "text_encoder_lr": 1e-4},
        saving={"state_every_steps": 2},
        validation={
            "split": 0.4, "every_steps": 2, "timesteps": 1, "standard_error": 0,
            "training_images": 1,
        },
    )  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(2))  # step 1 is logged and lost
    with pytest.raises(ZeroDivisionError):
        resume(config.output_dir, StopAt(4))  # step 3 is logged and lost, the state is of step 2
    run = resume(config.output_dir)
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    losses = {event.step: event.value for event in events.Scalars("loss")}
    expected = {r["step"]: r["loss"] for r in run.read_metrics() if "loss" in r}
    assert losses == pytest.approx(expected, rel=1e-6)
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("validation_loss")] == [0, 2, 4]
    assert {"lr", "lr_text_encoder", "grad_norm", "images_per_s", "data_wait", "memory_mib"} <= set(
        events.Tags()["scalars"]
    )


def test_a_disk_that_is_full_under_a_tracker_is_named_and_costs_no_step(train_config, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    add = SummaryWriter.add_scalar

    def full(writer, name, value, step):
        if step >= 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(writer, name, value, step)

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    config = train_config(
        logging={"trackers": ["tensorboard"], "every_steps": 1}, training={"max_steps": 3}
    )
    with pytest.raises(StorageError, match=r"The disk is full: .*tensorboard could not"):
        train(config)
    assert RunDirectory(config.output_dir).saved_steps()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_metrics_go_to_wandb_without_a_network(train_config, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(sys, "argv", ["fine_tune.py", "--wandb_api_key=0123-secret"])
    run = train(train_config(logging={"trackers": ["wandb"]}, training={"max_steps": 1}))
    (folder,) = (run.path / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    until = time.monotonic() + 30
    while file.stat().st_size <= 500:  # a separate process writes it
        assert time.monotonic() < until
        time.sleep(0.05)
    assert (run.path / "wandb-id.txt").read_text() in file.name
    assert not any(b"0123-secret" in f.read_bytes() for f in folder.rglob("*") if f.is_file())


@pytest.mark.parametrize(("step", "identity"), [(3, "abc"), (0, None)])
def test_a_run_that_begins_anew_is_another_one_of_wandb(step, identity, tmp_path, monkeypatch):
    """W&B drops step numbers that it has already received, so a restarted run gets a new id."""
    asked = {}

    def init(**options):
        asked.update(options)
        return SimpleNamespace(id="def")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=dict))
    (tmp_path / "wandb-id.txt").write_text("abc\n", encoding="utf-8")
    Wandb(TrackedRun(RunDirectory(tmp_path), "cats", "impasto", {}, step))
    assert asked["id"] == identity
    assert (tmp_path / "wandb-id.txt").read_text(encoding="utf-8") == "def"


def test_a_missing_tracker_is_named_before_anything_is_made(train_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    config = train_config(logging={"trackers": ["tensorboard"]})
    with pytest.raises(MissingDependencyError, match=r"logging\.trackers has tensorboard"):
        train(config)
    assert not config.output_dir.exists()
