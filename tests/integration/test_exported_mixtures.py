"""Runs that export a mixture of the trained model with its base model."""

import shutil
from pathlib import Path

import pytest
import torch
from component_files import TEXT_ENCODER_FILE, UNET_FILE
from flat_models import one_level_model
from runs import exported
from safetensors.torch import load_file

from impasto.errors import StorageError
from impasto.models.trainable import FullFineTune
from impasto.progress import SilentProgress
from impasto.report.model_card import License, make_card
from impasto.report.page import write_report
from impasto.runs.mixture import mixture_of
from impasto.training import trainer
from impasto.training.analysis import merged_loss
from impasto.training.analysis.along import walk
from impasto.training.events import SilentEvents
from impasto.training.planning import disk
from impasto.training.trainer import resume, train

nano_model = one_level_model

HELD_OUT = {"split": 0.4, "every_steps": 3, "standard_error": 0, "training_images": 1}
MIXED = {"merge_ratio": 0.75, "export_dtype": "fp32"}


@pytest.fixture(scope="module")
def mixture(shared_config):
    """A run of two steps that exports a mixture with its base model. Read-only by agreement."""
    folder = str(shared_config().output_dir.with_name("mixture"))
    return train(shared_config(output_dir=folder, saving=MIXED, training={"max_steps": 2}))


def test_models_are_exported_between_the_base_model_and_the_result(train_config, run_values):
    """All exported models are mixtures, the average too; the state contains the trained weights."""
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
    """The mixture's loss equals that of merging and measuring afterwards."""
    run = train(
        train_config(
            saving=MIXED,
            validation={**HELD_OUT, "timesteps": 2},
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


def test_a_run_is_finished_before_its_mixture_is_measured(train_config, monkeypatch):
    """Stopping the measurement loses nothing, and a loss that was not measured is not reported."""

    def stopped(*_):
        raise KeyboardInterrupt

    held_out = {
        "validation": {**HELD_OUT, "timesteps": 1},
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
    """A longer run may use another ratio; earlier models keep theirs in their metadata."""
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
    monkeypatch.setattr(disk, "free_bytes", lambda _: 0)
    with pytest.raises(StorageError):
        train(config)
    plan = planned[0]
    assert plan.base_bytes > 0
    needed = plan.run_bytes + plan.models_bytes
    monkeypatch.setattr(disk, "free_bytes", lambda _: needed - plan.base_bytes + 4096)
    train(config.model_copy(update={"output_dir": config.output_dir.with_name("b")}))
    monkeypatch.setattr(disk, "free_bytes", lambda _: needed - 2 * plan.base_bytes)
    with pytest.raises(StorageError, match="of the base model while it trains"):
        train(config.model_copy(update={"output_dir": config.output_dir.with_name("c")}))


def test_nothing_happens_to_a_mixture_when_its_base_model_does(
    train_config, mixture, nano_model, tmp_path
):
    """The base model is replaced after it was read, and removed before the end."""
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
