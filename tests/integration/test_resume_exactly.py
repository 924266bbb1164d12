"""A resumed run is the same run: settings that change results are reported, and only those."""

import json
import re
import shutil

import pytest
from click.testing import CliRunner
from flat_models import one_level_model
from runs import KillAt, StopAt, copied, exported
from safetensors.torch import load_file, save_file

from impasto.cli.main import impasto as commands
from impasto.config.load import build_run_config, dump_toml
from impasto.config.setting_files import read_toml
from impasto.diffusion.loss import squared
from impasto.errors import Interrupted, RunError
from impasto.runs import RunDirectory
from impasto.training.builders.overrides import Overrides
from impasto.training.events import SilentEvents
from impasto.training.fingerprints.fingerprint import differences
from impasto.training.trainer import resume, train

nano_model = one_level_model


class Notes(SilentEvents):
    def __init__(self):
        self.told = []

    def note(self, message):
        self.told.append(message)


SHORT = {"saving": {"state_every_steps": 2}, "training": {"max_steps": 4}}


@pytest.fixture(scope="module")
def cut_off(shared_config, nano_model):
    """A run that was cut off after three of four steps. Read-only: copy it."""
    base = shared_config().output_dir.with_name("own-base")
    shutil.copytree(nano_model, base)
    return begin(shared_config(model={"path": str(base)}, **SHORT))


def begin(config, **options):
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(3), **options)
    return RunDirectory(config.output_dir)


@pytest.fixture
def begun(cut_off, tmp_path):
    """A copy of that run, with its images and its base model beside it."""
    return copied(cut_off, tmp_path).path


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def scale(file):
    tensors = {k: v * 1.25 for k, v in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})


def test_nothing_changed(begun):
    assert resume(begun).saved_steps() == [2, 4]


@pytest.mark.parametrize("change", ["picture", "caption"])
def test_a_changed_data_set_is_named(begun, change):
    pictures = begun.with_name("pictures")
    if change == "picture":
        shutil.copy(pictures / "000.png", pictures / "999.png")
    else:
        (pictures / "000.txt").write_text("something else", encoding="utf-8")
    with pytest.raises(RunError, match="dataset"):
        resume(begun)


def test_a_changed_base_model_is_named(begun):
    base = begun.with_name("own-base")
    scale(base / "unet/diffusion_pytorch_model.safetensors")
    scale(base / "text_encoder/model.safetensors")
    scheduler = {"beta_end": 0.013, "prediction_type": "v_prediction"}
    edit_json(base / "scheduler/scheduler_config.json", **scheduler)
    edit_json(base / "text_encoder/config.json", layer_norm_eps=1e-3)
    with pytest.raises(RunError) as caught:
        resume(begun)
    for name in (
        "base model",
        "text_encoder of the base model",
        "scheduler configuration: beta_end",
        "text_encoder configuration: layer_norm_eps",
        "prediction of the base model",
    ):
        assert re.search(rf"(: |; ){name} \(was ", str(caught.value)), name


def changed(run, **changes):
    """Change settings in the run's config.toml."""
    tree = read_toml(run / "config.toml")
    for section, values in changes.items():
        tree.setdefault(section, {}).update(values)
    config = build_run_config(tree, source="test")
    (run / "config.toml").write_text(dump_toml(config), encoding="utf-8")


def test_changed_settings_are_named(begun):
    changed(
        begun,
        optimizer={"lr": 2e-5, "weight_decay": 0.5},
        loss={"min_snr_gamma": 5.0},
        model={"clip_skip": 2},
        dataset={"caption_prefix": "a "},
        training={"max_grad_norm": 2.0},
        validation={"timesteps": 2},
        schedule={"kind": "cosine"},
    )
    with pytest.raises(RunError) as caught:
        resume(begun)
    for named in (
        "optimizer.lr (was ",
        "optimizer.weight_decay (was off, is 0.5)",
        "loss.min_snr_gamma (was off, is 5.0)",
        "model.clip_skip (was off, is 2)",
        "dataset.caption_prefix",
        "training.max_grad_norm (was 1.0, is 2.0)",
        "validation.timesteps (was 4, is 2)",
        "schedule.kind",
    ):
        assert named in str(caught.value)


def test_what_changes_no_number_may_change(begun):
    changed(
        begun,
        previews={"every_steps": 3},
        logging={"every_steps": 2},
        saving={"name": "other", "keep_states": 5, "export_dtype": "fp32"},
        training={"max_steps": 5},
        dataset={"vae_batch_size": 3},
    )
    assert resume(begun).saved_steps() == [2, 4, 5]


def test_what_only_takes_less_memory_may_change_and_is_told(train_config):
    """Memory options that out-of-memory advice names may change, and are reported."""
    config = train_config(
        saving={"state_every_steps": 2, "keep_states": 9},
        training={"max_steps": 4, "ema_decay": 0.9},
    )
    kill = KillAt(config.output_dir, step=3, saved=2)
    expected = exported(train(config, kill))
    run = kill.put_back()
    names = ("gradient_checkpointing", "ema_on_cpu", "cache_text_to_disk")
    changed(run.path, training=dict.fromkeys(names, True))
    notes = Notes()
    assert exported(resume(run.path, notes)) == expected
    for name in names:
        (told,) = [text for text in notes.told if f"training.{name} (was false, is true)" in text]
        assert "up to rounding" in told


def test_a_run_that_keeps_its_best_model_is_resumed_with_the_same_validations(train_config):
    """`validation.every_steps` decides which model is best, so it may not change there."""
    run = begin(
        train_config(
            saving={"state_every_steps": 2, "best_model": True},
            training={"max_steps": 4},
            validation={
                "split": 0.25,
                "every_steps": 2,
                "timesteps": 1,
                "standard_error": 0,
                "training_images": 1,
            },
        )
    )
    changed(run.path, validation={"every_steps": 3})
    with pytest.raises(RunError, match=r"validation\.every_steps \(was 2, is 3\)"):
        resume(run.path)
    changed(run.path, validation={"every_steps": 2})
    assert resume(run.path).saved_steps()[-1] == 4


def constant(factor):
    return lambda step, total: factor


def test_parts_given_in_code_are_named(train_config):
    config = train_config(**SHORT)
    begin(config, overrides=Overrides(lr_schedule=constant(0.5)))
    for other in (None, Overrides(lr_schedule=constant(0.25))):
        with pytest.raises(RunError, match=r"lr_schedule \(given in code\)"):
            resume(config.output_dir, overrides=other)
    assert resume(
        config.output_dir, overrides=Overrides(lr_schedule=constant(0.5))
    ).saved_steps() == [2, 4]


def nothing_counts(t, schedule, prediction):
    return 0.0 * t


def all_counts(t, schedule, prediction):
    return 1.0 + 0.0 * t


def misspelt(t, schedule, prediction):
    return t.floaty()


def test_a_run_with_code_that_ended_before_its_first_state_needs_the_same_code(train_config):
    """No command can supply the code, so every hint explains resuming in Python."""
    config = train_config(**SHORT)
    path, given = config.output_dir, Overrides(loss_weight=nothing_counts)
    in_python = f"impasto.resume({str(path)!r}, overrides=...) in Python, with the same parts"
    with pytest.raises(Interrupted) as stopped:
        train(config, StopAt(1, KeyboardInterrupt), overrides=given)
    assert f"Begin again from the start with: {in_python}" in str(stopped.value)
    run = RunDirectory(path)
    before = sorted(path.iterdir()), run.status_file.read_bytes()
    for other, said in (
        ({}, "nothing_counts, is absent"),
        ({"loss_weight": all_counts}, r"nothing_counts, is [\w.]+\.all_counts"),
        (
            {"loss_weight": nothing_counts, "error": squared},
            r"error \(given in code\) \(was absent",
        ),
    ):
        with pytest.raises(RunError, match=f"cannot be resumed exactly, because .*{said}"):
            resume(path, overrides=Overrides(**other))
    assert (sorted(path.iterdir()), run.status_file.read_bytes()) == before
    file = path / "changed-settings.json"
    identities = json.loads(file.read_text()).pop("code_identities")
    assert list(identities) == ["loss_weight"]
    earlier = {"paths": [], "code": ["loss_weight"]}
    file.write_text(json.dumps(earlier))  # as in earlier versions: names only
    for other in ({}, {"error": squared}):
        with pytest.raises(RunError, match=r"loss_weight \(given in code\) \(was given, is absent"):
            resume(path, overrides=Overrides(**other))
    run.write_status("training", process="gone")
    assert f"{in_python} in code as before (loss_weight)" in run.state().sentence(path)
    file.write_text(json.dumps(earlier | {"code_identities": identities}))
    assert all(record["loss"] == 0 for record in resume(path, overrides=given).read_metrics())


def test_what_to_do_about_a_mistake_in_code_is_said_when_it_is_mended(train_config):
    config = train_config(**SHORT)
    with pytest.raises(AttributeError, match="floaty"):
        train(config, overrides=Overrides(loss_weight=misspelt))
    with pytest.raises(RunError) as refused:
        train(config, overrides=Overrides(loss_weight=all_counts))
    assert "ended before its first state was saved: deleting it loses no training" in str(
        refused.value
    )
    assert f"continue it with: impasto.resume({str(config.output_dir)!r}" in str(refused.value)
    shutil.rmtree(config.output_dir)
    train(config, overrides=Overrides(loss_weight=all_counts))
    with pytest.raises(RunError) as refused:
        train(config)
    assert "loses no training" not in str(refused.value)


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
    assert differences(saved, current), "with unknown code, all settings are compared"


def test_a_setting_that_a_state_did_not_have_was_as_it_is_by_default():
    now = {"seed": "42", "loss.debiased": "false"}
    assert differences({"seed": "42"}, now) == []
    assert differences({"seed": "42"}, {**now, "loss.debiased": "true"}) == [
        "loss.debiased (was false, is true)"
    ]


@pytest.fixture(scope="module")
def finished(shared_config):
    """A run of three steps, which are an epoch. Read-only: copy it."""
    folder = shared_config().output_dir.with_name("finished")
    return train(shared_config(output_dir=str(folder), training=an_epoch(max_steps=3)))


@pytest.fixture(scope="module")
def longer(shared_config):
    """Return the exported model after six steps, which are two epochs."""
    folder = shared_config().output_dir.with_name("longer")
    config = shared_config(output_dir=str(folder), training=an_epoch(max_steps=6))
    return exported(train(config))


def an_epoch(**length):
    """Write images for three buckets, which form separate batches."""
    return {"batch_size": 8, **length}


@pytest.mark.parametrize("length", ["max_steps", "max_epochs"])
def test_a_finished_run_is_made_longer(length, finished, longer, tmp_path):
    run = copied(finished, tmp_path)
    more = {"max_steps": 6}
    if length == "max_epochs":  # the run has these too
        changed(run.path, training={"max_steps": None, "max_epochs": 1})
        more = {"max_epochs": 2}
    assert run.saved_steps()[-1] == 3
    assert "is finished; its model is" in resumed_by_command(run)
    changed(run.path, training=more)
    resumed_by_command(run)
    assert run.saved_steps()[-1] == 6
    assert exported(run) == longer


def resumed_by_command(run):
    done = CliRunner().invoke(commands, ["resume", str(run.path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


@pytest.mark.parametrize("share", [0.5, 3.0])
def test_tags_that_are_shown_by_a_share_of_the_run_hold_its_length(train_config, share):
    """A longer run would return to fewer tags; a number of steps is the same in both."""
    dataset = {"token_warmup_step": share, "shuffle_caption": True}
    run = train(train_config(dataset=dataset, training={"max_steps": 2}))
    changed(run.path, training={"max_steps": 3})
    if share < 1:
        words = r"token_warmup_step is a share of them\) \(was 2, is 3\)"
        with pytest.raises(RunError, match=words):
            resume(run.path)
    else:
        assert resume(run.path).saved_steps()[-1] == 3


def test_a_finished_run_is_not_made_shorter(finished, tmp_path):
    run = copied(finished, tmp_path)
    changed(run.path, training={"max_steps": 2})
    with pytest.raises(RunError, match=r"has completed 3 steps, but its settings end at 2"):
        resume(run.path)


def test_a_finished_run_without_states_is_not_begun_anew(train_config):
    run = train(train_config(saving={"keep_final_state": False}, training={"max_steps": 1}))
    metrics = run.metrics_file.read_bytes()
    changed(run.path, training={"max_steps": 8})
    with pytest.raises(RunError, match=r"its states are gone"):
        resume(run.path)
    assert run.metrics_file.read_bytes() == metrics
