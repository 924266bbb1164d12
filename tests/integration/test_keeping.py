"""What a run keeps and writes down: states and models meanwhile, losses, full disks, memory."""

import csv
import importlib.metadata
import json
import shutil
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from component_files import TEXT_ENCODER_FILE, UNET_FILE
from runs import StopAt, exported
from safetensors.torch import load_file

from impasto import __version__, background
from impasto.checkpoints.reading import open_tensor_file
from impasto.data.loading.dataset import TrainingData
from impasto.diffusion.uncertainty import Uncertainty
from impasto.errors import ConfigError, Interrupted, OutOfMemoryError, StorageError
from impasto.invocation import command
from impasto.models.trainable import FullFineTune
from impasto.progress import SilentProgress
from impasto.report.model_card import License, make_card
from impasto.report.page import write_report
from impasto.runs import RunDirectory
from impasto.runs.mixture import mixture_of
from impasto.training import merged_loss, micro_steps, trainer
from impasto.training.along import walk
from impasto.training.events import SilentEvents
from impasto.training.monitoring.frozen_check import FrozenCheck
from impasto.training.planning import disk
from impasto.training.saving import saver
from impasto.training.saving.export import SUMMARY_KEY
from impasto.training.trainer import resume, train

FOUR = {"training": {"max_steps": 4}}


@pytest.fixture(scope="module")
def whole(shared_config):
    """A run of four steps that nothing happened to, with all states. Read-only by agreement."""
    folder = str(shared_config().output_dir.with_name("whole"))
    return train(
        shared_config(output_dir=folder, saving={"state_every_steps": 1, "keep_states": 9}, **FOUR)
    )


@pytest.fixture(scope="module")
def mixture(shared_config):
    """A run of two steps that exports a mixture with its base model. Read-only by agreement."""
    folder = str(shared_config().output_dir.with_name("mixture"))
    return train(shared_config(output_dir=folder, saving=MIXED, training={"max_steps": 2}))


def test_training_goes_on_while_a_state_is_written(train_config, whole, monkeypatch):
    """The writing of state 1 waits until step 3 is done; what it then writes is state 1."""
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


MIXED = {"merge_ratio": 0.75, "export_dtype": "fp32"}


def test_models_are_exported_between_the_base_model_and_the_result(train_config, run_values):
    """All of them, the average too; the state has what was trained."""
    run = train(
        train_config(
            method={"train_text_encoder": True},
            training={"ema_decay": 0.5, "max_steps": 2},
            saving={"average": "beside", **MIXED},
        )
    )
    state = run.states / "step-00000002"
    for export, file in {"model": "weights", "model-ema": "ema"}.items():
        trained = load_file(state / f"{file}.safetensors")
        for part, path in {"unet": UNET_FILE, "text_encoder": TEXT_ENCODER_FILE}.items():
            base = load_file(Path(run_values["model"]["path"]) / path)
            for name, found in load_file(run.export / export / path).items():
                own = trained[f"{part}.{name.removeprefix('text_model.')}"]
                expected = 0.25 * base[name].double() + 0.75 * own.double()
                assert (found.double() - expected).abs().max() < 1e-6
                assert not torch.equal(own, base[name])
    assert list(run.path.glob("waiting-*")) == []


def test_a_mixture_is_measured_and_said_to_be_one(train_config, run_values):
    """Its loss is that which merging and measuring afterwards find."""
    run = train(
        train_config(
            saving=MIXED,
            validation={"split": 0.4, "every_steps": 3, "timesteps": 2},
            training={"ema_decay": 0.5, "max_steps": 3},
        )
    )
    mixture = mixture_of(run)
    assert mixture.ratio == 0.75
    way = walk(run, [0.0, 1.0], SilentProgress())
    assert mixture.loss == pytest.approx(way.points[1].loss, rel=1e-5)
    trained = [m["validation_loss"] for m in run.read_metrics() if "validation_loss" in m][-1]
    assert mixture.loss != pytest.approx(trained, rel=1e-4)
    said = f"0.25 of the base model, with a validation loss of {mixture.loss:.4f}"
    assert said in write_report(run).read_text("utf-8")
    card = make_card(run.exported_model(), run, License("mit")).text.replace("\\", "")
    assert said in card
    assert "This is the model" not in card


def test_a_run_that_is_finished_stays_so_when_it_is_stopped_then(train_config, monkeypatch):
    """As while large states are removed."""

    def stopped(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(saver.Saver, "drop_states", stopped)
    config = train_config(training={"max_steps": 1})
    with pytest.raises(Interrupted, match="The run is finished, and its model is exported"):
        train(config)
    assert RunDirectory(config.output_dir).state().state == "finished"


def test_a_run_is_finished_before_its_mixture_is_measured(train_config, monkeypatch):
    """Whoever stops the measurement loses nothing, and what cannot be measured is not claimed."""

    def stopped(*_):
        raise KeyboardInterrupt

    held_out = {
        "validation": {"split": 0.4, "every_steps": 3, "timesteps": 1},
        "training": {"max_steps": 1},
    }
    monkeypatch.setattr(merged_loss, "_mix", stopped)
    run = train(train_config(saving=MIXED, **held_out))
    assert run.state().state == "finished"
    assert run.exported_model() is not None
    assert mixture_of(run).loss is None
    monkeypatch.setattr(merged_loss, "_mix", lambda *_: pytest.fail("it is no network's tensor"))
    copies = FullFineTune.export
    monkeypatch.setattr(
        FullFineTune,
        "export",
        lambda self: {p: {n: t.clone() for n, t in of.items()} for p, of in copies(self).items()},
    )
    again = train(
        train_config(output_dir=str(run.path.with_name("again")), saving=MIXED, **held_out)
    )
    assert mixture_of(again).loss is None


def test_what_a_model_is_a_mixture_of_is_known_of_each(train_config):
    """A run may be made longer with another ratio; models of before stay what they are."""
    saving = {**MIXED, "model_every_steps": 1, "format": "safetensors"}
    run = train(train_config(saving=saving, training={"max_steps": 2}))
    (early,) = (run.path / "models").iterdir()
    assert mixture_of(run, early).ratio == mixture_of(run).ratio == 0.75
    text = run.config_file.read_text("utf-8")
    text = text.replace("max_steps = 2", "max_steps = 3").replace("merge_ratio = 0.75\n", "")
    run.config_file.write_text(text, encoding="utf-8")
    assert "max_steps = 3" in text
    run = resume(run.path)
    assert mixture_of(run) is None
    assert mixture_of(run, early).ratio == 0.75
    assert mixture_of(run, run.path / "another.safetensors") is None


def test_a_base_model_that_is_kept_is_counted_once(train_config, monkeypatch):
    config = train_config(saving=MIXED, training={"max_steps": 1})
    planned = []
    real = disk.plan_disk
    monkeypatch.setattr(
        trainer, "plan_disk", lambda *args: planned.append(real(*args)) or planned[-1]
    )
    train(config)
    plan = planned[0]
    assert plan.base_bytes > 0
    needed = plan.run_bytes + plan.models_bytes
    monkeypatch.setattr(disk, "free_bytes", lambda _: needed - plan.base_bytes + 4096)
    train(config.model_copy(update={"output_dir": config.output_dir.with_name("b")}))
    monkeypatch.setattr(disk, "free_bytes", lambda _: needed - 2 * plan.base_bytes)
    with pytest.raises(StorageError, match="of the base model while it trains"):
        train(config.model_copy(update={"output_dir": config.output_dir.with_name("c")}))


@pytest.mark.parametrize(
    ("limit", "at_once"),
    [
        ({}, 4 + 2 + 1),
        ({"keep_step_models": 1}, 2 + 2 + 1),  # one more than is kept, while it is written
        ({"keep_epoch_models": 1}, 4 + 2 + 1),
        ({"keep_models": 1}, 2 + 2 + 1),
        ({"keep_models": 1, "keep_step_models": 3}, 4 + 2 + 1),
    ],
)
def test_room_is_planned_for_the_models_of_each_kind(train_config, limit, at_once):
    saving = {"model_every_steps": 2, "model_every_epochs": 1, **limit}
    assert disk._models_at_once(train_config(saving=saving), 10, 4) == at_once


def test_nothing_happens_to_a_mixture_when_its_base_model_does(
    train_config, mixture, nano_model, tmp_path
):
    """Replaced after it was read, and removed before the end."""
    base = shutil.copytree(nano_model, tmp_path / "base")

    class Replaced(SilentEvents):
        def stepped(self, step):
            shutil.rmtree(base, ignore_errors=True)

    config = train_config(model={"path": str(base)}, saving=MIXED, training={"max_steps": 2})
    run = train(config, Replaced())
    assert not base.exists()
    assert exported(run) == exported(mixture)


def test_a_run_may_export_a_mixture_over_its_own_base_model(
    train_config, mixture, nano_model, tmp_path
):
    base = shutil.copytree(nano_model, tmp_path / "models" / "mine")
    saving = {**MIXED, "model_dir": str(base.parent), "name": "mine", "overwrite": True}
    train(train_config(model={"path": str(base)}, saving=saving, training={"max_steps": 2}))
    assert (base / UNET_FILE).read_bytes() == (mixture.exported_model() / UNET_FILE).read_bytes()


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
    """The table's means, taken by hand, are the metrics'; over a crash each row comes once."""
    config = train_config(
        logging={"image_losses": True, "every_steps": 2},
        training={"gradient_accumulation_steps": 2, "max_steps": 8},
        saving={"state_every_steps": 2},
    )
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(5))
    run = resume(config.output_dir)
    with run.image_losses_file.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    epoch = [r["image"] for r in rows if int(r["step"]) <= 2]
    assert set(Counter(epoch).values()) == {1}
    records = [r for r in run.read_metrics() if "loss" in r]
    assert [r["step"] for r in records] == [2, 4, 6, 8]
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
    with pytest.raises(StorageError, match=r"3 states of .*, 6 models of .*Nothing was begun"):
        train(config)
    assert not config.output_dir.exists()


def test_models_in_a_folder_of_their_own_are_room_for_a_resumed_run(
    train_config, tmp_path, monkeypatch
):
    """It needs as much as before it was stopped, and has that: what it wrote, it writes over."""
    saving = {"model_every_steps": 1, "format": "safetensors", "model_dir": str(tmp_path / "m")}
    plans, real = [], disk.plan_disk
    monkeypatch.setattr(trainer, "plan_disk", lambda *args: plans.append(real(*args)) or plans[-1])
    config = train_config(saving={**saving, "state_every_steps": 1}, **FOUR)
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(4))
    (plan,) = plans
    there = [*(tmp_path / "m").iterdir(), *(config.output_dir / "states").rglob("*")]
    written = sum(file.stat().st_size for file in there if file.is_file())
    left = plan.run_bytes + plan.models_bytes - written
    monkeypatch.setattr(disk, "free_bytes", lambda _: left - (1 << 20))
    with pytest.raises(StorageError, match="Nothing was begun"):
        resume(config.output_dir)
    monkeypatch.setattr(disk, "free_bytes", lambda _: left)
    assert resume(config.output_dir).exported_model() is not None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training": {"ema_decay": 0.9}, "saving": {"average": "beside"}},
        {"saving": {"keep_models": 2}, "validation": {"split": 0.2, "timesteps": 1}},
        {
            "training": {"mixed_precision": "bf16", "weight_dtype": "bf16", "rounding": "kahan"},
            "optimizer": {"kind": "lion"},
            "saving": {"format": "diffusers", "export_dtype": "bf16"},
        },
    ],
    ids=["plain", "average", "best", "bf16"],
)
def test_the_disk_is_used_as_planned(train_config, monkeypatch, changes):
    """What is there at the end is what was planned, less one state and the models in passing."""
    plans = []
    real = trainer.require_room
    monkeypatch.setattr(
        trainer, "require_room", lambda plan, *more: (plans.append(plan), real(plan, *more))
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
    passing = 1 if "validation" in changes else 0
    assert len(models) == plan.models - passing
    for model in models:
        assert tensor_bytes(model) == pytest.approx(plan.model_bytes, rel=0.01)


def test_the_state_that_a_stop_leaves_is_planned(train_config, monkeypatch):
    """Beside the one at the end, where no other is due on the way."""
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
    """Without headers, which are large beside models as small as these."""
    files = [path] if path.is_file() else path.rglob("*.safetensors")
    return sum(tensor.nbytes for file in files for tensor in load_file(file).values())


OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def fail_at(monkeypatch, owner, name, number, error):
    """Have a function fail the n-th time."""
    real, calls = getattr(owner, name), []

    def failing(*args, **options):
        calls.append(name)
        if len(calls) == number:
            raise error
        return real(*args, **options)

    monkeypatch.setattr(owner, name, failing)


def test_memory_that_runs_out_in_the_step_is_explained_and_nothing_lost(
    train_config, whole, monkeypatch
):
    config = train_config(**FOUR)
    with monkeypatch.context() as patched:
        fail_at(patched, micro_steps, "training_step", 4, OUT)
        with pytest.raises(OutOfMemoryError) as caught:
            train(config)
    message = str(caught.value)
    assert "while training on 64x" in message
    assert "The state after 3 steps is saved" in message
    later, _, now = message.partition(
        "What would help most and may be changed before it is resumed: "
    )
    now, _, resumed = now.partition(". ")
    later = later.partition("is saved. ")[2].removesuffix(". ")
    assert now.startswith("training.gradient_checkpointing = true (")
    assert "batch_size" not in now
    assert later.startswith("What would help in a new run: training.batch_size = 2, ")
    assert "training.gradient_accumulation_steps = 2" in later
    assert 'optimizer.kind = "adamw8bit"' in later
    assert later.count("; ") == 2
    go_on = command("resume", config.output_dir)
    assert resumed == f"Set it in the run's config.toml, and continue with: {go_on}"
    assert caught.value.exit_code == 9
    assert exported(resume(config.output_dir)) == exported(whole)


def test_memory_that_runs_out_in_the_first_step_ties_the_run_to_no_settings(
    train_config, tmp_path, monkeypatch
):
    training = {"batch_size": 2, "max_steps": 2}
    whole = train(train_config(output_dir=str(tmp_path / "whole"), training=training))
    config = train_config(training={"max_steps": 2})
    with monkeypatch.context() as patched:
        fail_at(patched, micro_steps, "training_step", 1, OUT)
        with pytest.raises(OutOfMemoryError) as caught:
            train(config)
    message = str(caught.value)
    assert "Nothing was trained yet. What would help most: " in message
    assert "new run" not in message
    assert message.endswith(f", and begin again with: {command('resume', config.output_dir)}")
    assert not (config.output_dir / "states").exists()
    settings = config.output_dir / "config.toml"
    settings.write_text(settings.read_text().replace("\nbatch_size = 4", "\nbatch_size = 2"))
    assert exported(resume(config.output_dir)) == exported(whole)


@pytest.mark.parametrize(("name", "error"), [("batch", OUT), ("load", MemoryError())])
def test_memory_that_runs_out_while_a_batch_is_fetched_is_explained_and_nothing_lost(
    name, error, train_config, whole, monkeypatch
):
    """Where it is encoded or copied, and in the thread that reads it ahead."""
    config = train_config(**FOUR)
    with monkeypatch.context() as patched:
        fail_at(patched, TrainingData, name, 4, error)
        with pytest.raises(OutOfMemoryError, match=r"while preparing the next batch") as caught:
            train(config)
    (step,) = RunDirectory(config.output_dir).saved_steps()
    assert f"The state after {step} step" in str(caught.value)
    assert exported(resume(config.output_dir)) == exported(whole)


def test_memory_that_runs_out_in_the_optimizer_leaves_no_half_state(train_config, monkeypatch):
    config = train_config(training={"gradient_checkpointing": True, "batch_size": 1})
    error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 5 bytes")
    fail_at(monkeypatch, torch.optim.AdamW, "step", 3, error)
    with pytest.raises(OutOfMemoryError) as caught:
        train(config)
    assert "no state was saved. What would help most: " in str(caught.value)
    assert str(caught.value).endswith(f"begin again with: {command('resume', config.output_dir)}")
    assert "gradient_checkpointing" not in str(caught.value)
    assert not (config.output_dir / "states").exists()


@pytest.mark.parametrize("resumes", [False, True])
def test_memory_that_runs_out_in_the_optimizer_names_what_goes_with_the_state_there_is(
    resumes, train_config, monkeypatch
):
    """That of step 2, which is being written just then; or one from before a resume."""
    config = train_config(saving={"state_every_steps": 2, "keep_states": 1}, **FOUR)
    if resumes:
        with pytest.raises(ZeroDivisionError):
            train(config, StopAt(3))
    ending, real = threading.Event(), saver.save_state
    newest = saver.Saver.newest_saved

    def slow(run, state, **options):
        assert ending.wait(60)
        return real(run, state, **options)

    def asked(self):
        ending.set()
        return newest(self)

    monkeypatch.setattr(saver.Saver, "newest_saved", asked)

    monkeypatch.setattr(saver, "save_state", slow)
    fail_at(monkeypatch, torch.optim.AdamW, "step", 1 if resumes else 3, MemoryError())
    with pytest.raises(OutOfMemoryError) as caught:
        resume(config.output_dir) if resumes else train(config)
    assert "no state was saved. The newest state is what it goes on from. " in str(caught.value)
    assert "may be changed before it is resumed: " in str(caught.value)
    assert RunDirectory(config.output_dir).saved_steps() == [2]


def test_memory_that_runs_out_again_while_a_state_is_saved_is_one_message(
    train_config, monkeypatch
):
    config = train_config()
    monkeypatch.setattr(saver.Saver, "save_last", lambda *_: torch.empty(1 << 60))
    fail_at(monkeypatch, micro_steps, "training_step", 3, MemoryError())
    with pytest.raises(OutOfMemoryError) as caught:
        train(config)
    assert "while training on" in str(caught.value)
    assert "No state was saved yet. What would help most: " in str(caught.value)


@pytest.mark.parametrize(("owner", "name"), [(Uncertainty, "step"), (FrozenCheck, "findings")])
def test_memory_that_runs_out_after_the_optimizer_leaves_no_weights_of_another_step(
    owner, name, train_config, tmp_path, monkeypatch
):
    """The weights have moved by then, and the step does not count yet."""
    changes = {"loss": {"uncertainty": True}, "training": {"max_steps": 2}}
    whole = train(train_config(output_dir=str(tmp_path / "whole"), **changes))
    config = train_config(**changes)
    with monkeypatch.context() as patched:
        fail_at(patched, owner, name, 1, OUT)
        with pytest.raises(OutOfMemoryError, match="no state was saved"):
            train(config)
    assert not (config.output_dir / "states").exists()
    assert exported(resume(config.output_dir)) == exported(whole)


def test_memory_that_runs_out_elsewhere_is_explained(train_config, monkeypatch):
    from impasto.training.monitoring.previews import Sampler

    previews = {"prompts": ["a cat"], "every_steps": 2, "steps": 1, "width": 32, "height": 32}
    config = train_config(previews=previews, training={"max_steps": 3})
    with monkeypatch.context() as patched:
        fail_at(patched, Sampler, "generate_all", 2, OUT)
        with pytest.raises(OutOfMemoryError, match=r"drawing previews.*smaller previews\.width"):
            train(config)
    assert resume(config.output_dir).saved_steps()[-1] == 3
    other = train_config(output_dir=str(config.output_dir.parent / "other"))
    fail_at(monkeypatch, trainer, "build_session", 1, MemoryError())
    with pytest.raises(OutOfMemoryError, match=r"encoding the images.*vae_batch_size = 1"):
        train(other)
    assert not other.output_dir.exists()


def test_other_faults_are_not_called_memory(train_config, monkeypatch):
    fail_at(monkeypatch, micro_steps, "training_step", 2, RuntimeError("mat1 and mat2 do not fit"))
    with pytest.raises(RuntimeError, match="mat1"):
        train(train_config())


def test_settings_of_saving_that_would_do_nothing_are_refused(train_config):
    with pytest.raises(ConfigError, match="average has no effect"):
        train_config(saving={"average": "beside"})
    with pytest.raises(ConfigError, match="merge_ratio has no effect on a hypernetwork"):
        train_config(
            method={"kind": "hypernetwork"}, saving={"format": "a1111", "merge_ratio": 0.9}
        )


def test_each_model_says_the_step_that_it_is_of(train_config):
    saving = {"format": "safetensors", "model_every_steps": 2}
    validation = {"split": 0.4, "every_steps": 3, "timesteps": 1}
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
    """As with the sources on `PYTHONPATH` alone: a run must not end without its model for that."""

    def lacking(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", lacking)
    run = train(train_config(training={"max_steps": 1}, saving={"format": "safetensors"}))
    (model,) = run.path.rglob("model.safetensors")
    summary = json.loads(open_tensor_file(model).metadata[SUMMARY_KEY])
    assert summary["impasto_version"] == __version__
