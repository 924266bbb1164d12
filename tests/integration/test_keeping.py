"""The files that a run keeps: states and checkpoints, tables of losses, full disks."""

import csv
import importlib.metadata
import json
import signal
import threading
from collections import Counter

import pytest
import torch
from component_files import UNET_FILE
from flat_models import one_level_model
from runs import FOUR, StopAt, exported, run_of_four
from safetensors.torch import load_file

from impasto import __version__, background
from impasto.checkpoints.reading import open_tensor_file
from impasto.errors import ConfigError, Interrupted, StorageError
from impasto.runs import RunDirectory
from impasto.training import trainer
from impasto.training.events import SilentEvents
from impasto.training.lifecycle import environment, output_room
from impasto.training.planning import disk
from impasto.training.saving import saver
from impasto.training.saving.export import SUMMARY_KEY
from impasto.training.trainer import resume, train

nano_model = one_level_model

SEEN = {"timesteps": 1, "standard_error": 0, "training_images": 1}


@pytest.fixture(scope="module")
def whole(shared_config):
    """The uninterrupted run. Read-only by agreement."""
    return run_of_four(shared_config)


def test_training_goes_on_while_a_state_is_written(train_config, whole, monkeypatch):
    """Writing state 1 waits until step 3 is complete, and still writes the values of state 1."""
    reached, real = threading.Event(), saver.save_state

    def slow(run, state, **options):
        assert state.step != 1 or reached.wait(60)
        return real(run, state, **options)

    class Tell(SilentEvents):
        def stepped(self, step):
            if step == 3:
                reached.set()

    monkeypatch.setattr(saver, "save_state", slow)
    saving = {"state_every_steps": 1, "keep_states": 9}
    run = train(train_config(saving=saving, **FOUR), Tell())
    assert run.saved_steps() == whole.saved_steps() == [1, 2, 3, 4]
    for step in (1, 2, 3, 4):
        for name in ("weights", "optimizer"):
            file = f"states/step-{step:08d}/{name}.safetensors"
            assert (run.path / file).read_bytes() == (whole.path / file).read_bytes()


def test_without_room_for_a_copy_training_waits(train_config, whole, monkeypatch):
    monkeypatch.setattr(background, "_is_free", lambda _: False)
    copies = []
    monkeypatch.setattr(saver.TrainingState, "copied", copies.append)
    run = train(train_config(saving={"state_every_steps": 1, "model_every_steps": 2}, **FOUR))
    assert copies == []
    assert run.saved_steps() == [3, 4]
    assert exported(run) == exported(whole)


@pytest.mark.parametrize("average", ["instead", "beside", "never"])
def test_the_average_is_exported_as_asked(train_config, average):
    run = train(
        train_config(
            training={"ema_decay": 0.5, "max_steps": 2},
            saving={"average": average, "model_every_steps": 1},
        )
    )
    state = run.states / "step-00000002"
    files = {"weights": "weights", "ema": "ema"}
    kept = {n: load_file(state / f"{f}.safetensors") for n, f in files.items()}
    expected = {
        "instead": {"model": "ema"},
        "beside": {"model": "weights", "model-ema": "ema"},
        "never": {"model": "weights"},
    }[average]
    assert {p.name for p in run.export.iterdir()} == set(expected)
    for name, source in expected.items():
        found = load_file(run.export / name / UNET_FILE)["conv_in.weight"]
        assert torch.equal(found, kept[source]["unet.conv_in.weight"])
    variants = ["", "-ema"] if average == "beside" else [""]
    on_the_way = {p.name for p in (run.path / "models").iterdir()}
    assert on_the_way == {f"model-step00000001{variant}" for variant in variants}


def test_a_run_that_is_finished_stays_so_when_it_is_stopped_then(train_config, monkeypatch):
    """A stop after the end, such as while large states are removed, changes nothing."""

    def stopped(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(saver.Saver, "drop_states", stopped)
    config = train_config(training={"max_steps": 1})
    with pytest.raises(Interrupted, match="The run is finished, and its model is exported"):
        train(config)
    assert RunDirectory(config.output_dir).state().state == "finished"


@pytest.mark.parametrize(
    ("limit", "at_once"),
    [
        ({}, 4 + 2 + 1),
        ({"keep_step_models": 1}, 2 + 2 + 1),  # one more than are kept, while it is written
        ({"keep_epoch_models": 1}, 4 + 2 + 1),
        ({"keep_models": 1}, 2 + 2 + 1),
        ({"keep_models": 1, "keep_step_models": 3}, 4 + 2 + 1),
    ],
)
def test_room_is_planned_for_the_models_of_each_kind(train_config, limit, at_once):
    saving = {"model_every_steps": 2, "model_every_epochs": 1, **limit}
    assert disk._models_at_once(train_config(saving=saving), 10, 4) == at_once


def test_states_may_be_left_out(train_config, tmp_path):
    saving = {"state_every_steps": 0, "keep_final_state": False}
    run = train(train_config(saving=saving, training={"max_steps": 2}))
    assert not run.states.exists()
    assert run.exported_model() is not None
    stopped = train_config(
        output_dir=str(tmp_path / "b"), saving={"state_every_steps": 0}, training={"max_steps": 2}
    )
    with pytest.raises(ZeroDivisionError):
        train(stopped, StopAt(1))
    assert exported(resume(stopped.output_dir)) == exported(run)


def test_losses_are_told_apart_by_timesteps_and_by_pictures(train_config):
    """The table's means, computed by hand, are the metrics'; after a crash each row appears
    once."""
    config = train_config(
        logging={"image_losses": True, "every_steps": 2},
        training={"gradient_accumulation_steps": 2, "max_steps": 4},
        saving={"state_every_steps": 2},
    )
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(3))
    run = resume(config.output_dir)
    with run.image_losses_file.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    epoch = [r["image"] for r in rows if int(r["step"]) <= 2]
    assert set(Counter(epoch).values()) == {1}
    records = [r for r in run.read_metrics() if "loss" in r]
    assert [r["step"] for r in records] == [2, 4]
    assert len(rows) == records[-1]["samples_seen"]
    for record in records:
        window = [r for r in rows if record["step"] - 2 < int(r["step"]) <= record["step"]]
        for low in (0, 250, 500, 750):
            mine = [float(r["loss"]) for r in window if low <= int(r["timestep"]) < low + 250]
            name = f"loss_t{low}_{low + 249}"
            assert (name in record) == bool(mine)
            if mine:
                assert record[name] == pytest.approx(sum(mine) / len(mine), rel=1e-4)


def test_a_disk_too_small_is_found_before_training(train_config, monkeypatch):
    config = train_config(
        saving={"model_every_steps": 1, "state_every_steps": 1, "format": "safetensors"}
    )
    monkeypatch.setattr(disk, "free_bytes", lambda _: 10 << 20)
    with pytest.raises(
        StorageError, match=r"3 states of .*, 6 models of .*The run was not started"
    ):
        train(config)
    assert not config.output_dir.exists()


def test_models_in_a_folder_of_their_own_are_room_for_a_resumed_run(
    train_config, tmp_path, monkeypatch
):
    """A resumed run needs no further space for models that it wrote before: it overwrites them."""
    saving = {"model_every_steps": 1, "format": "safetensors", "model_dir": str(tmp_path / "m")}
    plans, real = [], disk.plan_disk
    monkeypatch.setattr(trainer, "plan_disk", lambda *args: plans.append(real(*args)) or plans[-1])
    saving["state_every_steps"] = 1
    config = train_config(saving=saving, training={"max_steps": 3})
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(3))
    (plan,) = plans
    there = [*(tmp_path / "m").iterdir(), *(config.output_dir / "states").rglob("*")]
    written = sum(file.stat().st_size for file in there if file.is_file())
    left = plan.run_bytes + plan.models_bytes - written
    monkeypatch.setattr(disk, "free_bytes", lambda _: left - (1 << 20))
    with pytest.raises(StorageError, match="The run was not started"):
        resume(config.output_dir)
    monkeypatch.setattr(disk, "free_bytes", lambda _: left)
    assert resume(config.output_dir).exported_model() is not None


@pytest.mark.parametrize(
    "changes",
    [
        {
            "training": {"ema_decay": 0.9},
            "saving": {"average": "beside", "keep_models": 2},
            "validation": {"split": 0.2, **SEEN},
        },
        {
            "training": {"mixed_precision": "bf16", "weight_dtype": "bf16", "rounding": "kahan"},
            "optimizer": {"kind": "lion"},
            "saving": {"format": "diffusers", "export_dtype": "bf16"},
        },
    ],
    ids=["average, best", "bf16"],
)
def test_the_disk_is_used_as_planned(train_config, monkeypatch, changes):
    """The final disk usage is the planned one, less one state and the temporary models."""
    plans = []
    real = output_room.require_room
    monkeypatch.setattr(
        output_room, "require_room", lambda plan, *more: (plans.append(plan), real(plan, *more))
    )
    saving = {"state_every_steps": 1, "model_every_steps": 1, **changes.get("saving", {})}
    training = {**changes.get("training", {}), "max_steps": 3}
    saving = {"format": "safetensors", **saving}
    run = train(train_config(**{**changes, "saving": saving, "training": training}))
    (plan,) = plans
    states = [tensor_bytes(state) for state in run.states.iterdir()]
    assert len(states) == plan.states - 1
    assert max(states) == pytest.approx(plan.state_bytes, rel=0.01)
    models = [*(run.path / "models").iterdir(), *run.export.iterdir()]
    passing = 2 if "validation" in changes else 0  # the earlier best model, and its average
    assert len(models) == plan.models - passing
    for model in models:
        assert tensor_bytes(model) == pytest.approx(plan.model_bytes, rel=0.01)


def test_the_state_that_a_stop_leaves_is_planned(train_config, monkeypatch):
    """A stop's state is planned beside the final one, unless a state is due on the way."""
    plans, real = [], disk.plan_disk
    monkeypatch.setattr(trainer, "plan_disk", lambda *args: plans.append(real(*args)) or plans[-1])
    config = train_config(
        saving={"state_every_steps": 0, "keep_states": 2}, training={"max_steps": 2}
    )

    class Stopping(SilentEvents):
        def stepped(self, step):
            if step == 1:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(config, Stopping())
    run = resume(config.output_dir)
    assert run.saved_steps() == [1, 2]
    assert [plan.states for plan in plans] == [2, 2]


def tensor_bytes(path):
    """Count the bytes of tensors without headers, which are large beside such small models."""
    files = [path] if path.is_file() else path.rglob("*.safetensors")
    return sum(tensor.nbytes for file in files for tensor in load_file(file).values())


def test_settings_of_saving_that_would_do_nothing_are_refused(train_config):
    with pytest.raises(ConfigError, match="average has no effect"):
        train_config(saving={"average": "beside"})
    with pytest.raises(ConfigError, match="merge_ratio has no effect on a hypernetwork"):
        train_config(
            method={"kind": "hypernetwork"}, saving={"format": "a1111", "merge_ratio": 0.9}
        )


def test_each_model_says_the_step_that_it_is_of(train_config):
    saving = {"format": "safetensors", "model_every_steps": 2}
    validation = {"split": 0.4, "every_steps": 3, **SEEN}
    run = train(train_config(saving=saving, validation=validation, training={"max_steps": 5}))
    files = {file.stem: file for file in run.path.rglob("*.safetensors") if "model" in file.name}
    said = {
        name: json.loads(open_tensor_file(files[name]).metadata[SUMMARY_KEY])
        for name in ("model-step00000002", "model-step00000004", "model-best", "model")
    }
    best = run.read_json("models.json")["best"]
    (measured,) = best.values()
    steps = {name: summary["steps"] for name, summary in said.items()}
    assert steps == {
        "model-step00000002": 2,
        "model-step00000004": 4,
        "model-best": measured["step"],
        "model": 5,
    }
    whole = said["model"]["samples_seen"]
    for name, step in steps.items():
        assert 0 < said[name]["samples_seen"] <= whole
        assert (said[name]["samples_seen"] < whole) == (step < 5)


def test_a_run_from_a_checkout_that_was_never_installed_is_exported(train_config, monkeypatch):
    """A run from sources on `PYTHONPATH`, without an installed package, exports its model too."""

    def lacking(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", lacking)
    monkeypatch.setattr(environment, "_version", environment._version.__wrapped__)
    run = train(train_config(training={"max_steps": 1}, saving={"format": "safetensors"}))
    (model,) = run.path.rglob("model.safetensors")
    summary = json.loads(open_tensor_file(model).metadata[SUMMARY_KEY])
    assert summary["impasto_version"] == __version__
