"""A resumed run is the same run: what changes its numbers is named, and nothing else stops it."""

import json
import shutil

import pytest
from conftest import impasto
from runs import StopAt, exported
from safetensors.torch import load_file, save_file

from impasto.config.load import build_run_config, dump_toml
from impasto.config.validation import read_toml
from impasto.errors import RunError
from impasto.training.events import SilentEvents
from impasto.training.fingerprint import differences
from impasto.training.overrides import Overrides
from impasto.training.trainer import resume, train


class Notes(SilentEvents):
    def __init__(self):
        self.told = []

    def note(self, message):
        self.told.append(message)


def begun(train_config, tmp_path, base, **changes):
    """A run that was cut off after 2 of 6 steps, with a base model of its own."""
    own = tmp_path / "own-base"
    shutil.copytree(base, own)
    config = train_config(
        **{"saving": {"state_every_steps": 2}, **changes, "model": {"path": str(own)}}
    )
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(3))
    return config.output_dir, own


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def scale(file):
    tensors = {k: v * 1.25 for k, v in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})


def test_nothing_changed(train_config, tmp_path, nano_model):
    run, _ = begun(train_config, tmp_path, nano_model)
    assert resume(run).saved_steps()[-1] == 6


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("base model", lambda b: scale(b / "unet/diffusion_pytorch_model.safetensors")),
        (
            "text_encoder of the base model",
            lambda b: scale(b / "text_encoder/model.safetensors"),
        ),
        (
            "scheduler configuration: beta_end",
            lambda b: edit_json(b / "scheduler/scheduler_config.json", beta_end=0.013),
        ),
        (
            "text_encoder configuration: layer_norm_eps",
            lambda b: edit_json(b / "text_encoder/config.json", layer_norm_eps=1e-3),
        ),
        (
            "prediction of the base model",
            lambda b: edit_json(
                b / "scheduler/scheduler_config.json", prediction_type="v_prediction"
            ),
        ),
    ],
)
def test_a_changed_base_model_is_named(name, change, train_config, tmp_path, nano_model):
    run, base = begun(train_config, tmp_path, nano_model)
    change(base)
    with pytest.raises(RunError) as caught:
        resume(run)
    assert f"{name} (was " in str(caught.value)


def changed(run, **changes):
    """Settings changed in the run's config.toml."""
    tree = read_toml(run / "config.toml")
    for section, values in changes.items():
        tree.setdefault(section, {}).update(values)
    config = build_run_config(tree, source="test")
    (run / "config.toml").write_text(dump_toml(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("section", "values", "named"),
    [
        ("optimizer", {"lr": 2e-5}, "optimizer.lr (was "),
        ("optimizer", {"weight_decay": 0.5}, "optimizer.weight_decay (was off, is 0.5)"),
        ("loss", {"min_snr_gamma": 5.0}, "loss.min_snr_gamma (was off, is 5.0)"),
        ("model", {"clip_skip": 2}, "model.clip_skip (was off, is 2)"),
        ("dataset", {"caption_prefix": "a "}, "dataset.caption_prefix"),
        ("training", {"max_grad_norm": 2.0}, "training.max_grad_norm (was 1.0, is 2.0)"),
        ("validation", {"timesteps": 2}, "validation.timesteps (was 4, is 2)"),
        ("schedule", {"kind": "cosine"}, "schedule.kind"),
    ],
)
def test_changed_settings_are_named(section, values, named, train_config, tmp_path, nano_model):
    run, _ = begun(train_config, tmp_path, nano_model)
    changed(run, **{section: values})
    with pytest.raises(RunError) as caught:
        resume(run)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("previews", {"every_steps": 3}),
        ("logging", {"every_steps": 2}),
        ("saving", {"name": "other", "keep_states": 5, "export_dtype": "fp32"}),
        ("training", {"max_steps": 8}),
        ("dataset", {"vae_batch_size": 3}),
    ],
)
def test_what_changes_no_number_may_change(section, values, train_config, tmp_path, nano_model):
    run, _ = begun(train_config, tmp_path, nano_model)
    changed(run, **{section: values})
    assert resume(run).saved_steps()[-1] == values.get("max_steps", 6)


@pytest.mark.parametrize("name", ["gradient_checkpointing", "ema_on_cpu", "cache_text_to_disk"])
def test_what_only_takes_less_memory_may_change_and_is_told(name, train_config, tmp_path):
    """What is advised where memory runs out; on this processor, without another rounding."""
    kept = {"saving": {"state_every_steps": 2}, "training": {"ema_decay": 0.9}}
    whole = train(train_config(**kept, output_dir=str(tmp_path / "whole")))
    config = train_config(**kept)
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(3))
    changed(config.output_dir, training={name: True})
    notes = Notes()
    assert exported(resume(config.output_dir, notes)) == exported(whole)
    (told,) = [text for text in notes.told if f"training.{name} (was false, is true)" in text]
    assert "up to rounding" in told


def test_a_run_that_keeps_its_best_model_is_resumed_with_the_same_validations(
    train_config, tmp_path, nano_model
):
    """Which steps are measured decides what is best, so `validation.every_steps` counts there."""
    run, _ = begun(
        train_config, tmp_path, nano_model,
        saving={"state_every_steps": 2, "best_model": True},
        validation={"split": 0.25, "every_steps": 2, "timesteps": 1},
    )  # fmt: skip
    changed(run, validation={"every_steps": 3})
    with pytest.raises(RunError, match=r"validation\.every_steps \(was 2, is 3\)"):
        resume(run)
    changed(run, validation={"every_steps": 2})
    assert resume(run).saved_steps()[-1] == 6


def constant(factor):
    return lambda step, total: factor


def test_parts_given_in_code_are_named(train_config, tmp_path, nano_model):
    config = train_config(saving={"state_every_steps": 2})
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(3), Overrides(lr_schedule=constant(0.5)))
    for other in (None, Overrides(lr_schedule=constant(0.25))):
        with pytest.raises(RunError, match=r"lr_schedule \(given in code\)"):
            resume(config.output_dir, overrides=other)
    assert resume(
        config.output_dir, overrides=Overrides(lr_schedule=constant(0.5))
    ).saved_steps() == [4, 6]


def test_states_of_earlier_versions_are_compared_by_what_they_say():
    old = {
        "seed": "42",
        "base model": "abc",
        "data set": "def",
        "optimizer": '{"kind":"adamw","lr":1e-05,"betas":null,"eps":null,"weight_decay":null,'
        '"arguments":{}}',
        "schedule": '{"kind":"linear","warmup_steps":0} over 6 steps',
    }
    now = {
        "seed": "42",
        "base model": "abc",
        "data set": "def",
        "text_encoder of the base model": "new",
        "optimizer.kind": '"adamw"',
        "optimizer.lr": "1e-05",
        "optimizer.betas": "null",
        "optimizer.arguments": "{}",
        "schedule.kind": '"linear"',
        "schedule.warmup_steps": "0",
        "steps in all (the learning rate follows them)": "6",
        "validation.timesteps": "2",
    }
    assert differences(old, now) == []
    assert differences(old, {**now, "optimizer.lr": "2e-05"}) == [
        "optimizer.lr (was 1e-05, is 2e-05)"
    ]
    assert len(differences(old, {**now, "steps in all (the learning rate follows them)": "8"})) == 1


@pytest.mark.parametrize(
    ("was", "now", "goes_on"),
    [("5", "9", True), ("null", "4", True), ("4", "null", True), ("3", "9", False),
     ("9", "3", False), ("null", "3", False)],
)  # fmt: skip
def test_where_a_part_stops_may_change_as_long_as_it_lies_ahead(was, now, goes_on):
    name = "method.text_encoder_until_step"
    saved, current = ({"seed": "42", name: value} for value in (was, now))
    assert (differences(saved, current, done=4) == []) is goes_on
    assert differences(saved, current), "where it is not known what is done, all is compared"


def test_a_setting_that_a_state_did_not_have_was_as_it_is_by_default():
    now = {"seed": "42", "loss.debiased": "false"}
    assert differences({"seed": "42"}, now) == []
    assert differences({"seed": "42"}, {**now, "loss.debiased": "true"}) == [
        "loss.debiased (was false, is true)"
    ]


@pytest.mark.parametrize("length", ["max_steps", "max_epochs"])
def test_a_finished_run_is_made_longer(length, train_config, tmp_path):
    lengths = ({"max_steps": 4}, {"max_steps": 8})
    if length == "max_epochs":
        lengths = ({"max_steps": None, "max_epochs": 1}, {"max_steps": None, "max_epochs": 2})
    whole = train(train_config(output_dir=str(tmp_path / "whole"), training=lengths[1]))
    run = train(train_config(training=lengths[0]))
    done = run.saved_steps()[-1]
    words = impasto("resume", run.path)
    assert "is finished; its model is" in words.stdout
    changed(run.path, training=lengths[1])
    words = impasto("resume", run.path)
    assert words.returncode == 0, words.stderr
    assert run.saved_steps()[-1] == 2 * done
    assert exported(run) == exported(whole)


@pytest.mark.parametrize("share", [0.5, 3.0])
def test_tags_that_are_shown_by_a_share_of_the_run_hold_its_length(train_config, share):
    """A longer run would go back to fewer tags; a number of steps is the same in it."""
    dataset = {"token_warmup_step": share, "shuffle_caption": True}
    run = train(train_config(dataset=dataset, training={"max_steps": 4}))
    changed(run.path, training={"max_steps": 8})
    words = impasto("resume", run.path)
    if share < 1:
        assert "token_warmup_step is a share of them) (was 4, is 8)" in " ".join(
            words.stderr.split()
        )
    else:
        assert words.returncode == 0, words.stderr


def test_a_finished_run_is_not_made_shorter(train_config):
    run = train(train_config())
    changed(run.path, training={"max_steps": 3})
    with pytest.raises(RunError, match=r"has done 6 steps, and its settings say 3 in all"):
        resume(run.path)


def test_a_finished_run_without_states_is_not_begun_anew(train_config):
    run = train(train_config(saving={"keep_final_state": False}))
    metrics = run.metrics_file.read_bytes()
    changed(run.path, training={"max_steps": 8})
    with pytest.raises(RunError, match=r"its states are gone"):
        resume(run.path)
    assert run.metrics_file.read_bytes() == metrics
