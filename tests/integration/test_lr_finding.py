"""`impasto find-lr` on a small model: its measurements, and that it leaves no files behind."""

import re

import pytest
from click.testing import CliRunner
from flat_models import one_level_model

from impasto.cli.main import impasto as commands
from impasto.errors import ConfigError
from impasto.progress import SilentProgress
from impasto.training.analysis.lr_finding import Probe, find_lr, settings_of_test
from impasto.training.analysis.lr_range import LrRange
from impasto.training.steps.stepping import Stepper
from impasto.training.trainer import train

nano_model = one_level_model

pytestmark = pytest.mark.usefixtures("encoded_once")

TRIED = LrRange(1e-4, 10.0, 12)
PROBE = Probe(images=2, timesteps=2)


def test_a_range_test_needs_no_login_of_a_tracker(train_config):
    """It logs nothing, so nothing of a tracker is asked for."""
    logging = {"trackers": ["wandb"], "wandb_project": "drawings"}
    config = settings_of_test(train_config(logging=logging), TRIED, SilentProgress())
    assert config.logging.trackers == ()


def test_the_same_losses_each_time_and_no_trace(train_config, fresh_accelerate, tmp_path):
    """Average, offloaded text encoder and previews of the settings are ignored."""
    config = train_config(
        method={"train_text_encoder": True, "text_encoder_from_step": 2},
        training={"max_epochs": 2, "max_steps": None, "ema_decay": 0.9, "posthoc_ema": True},
        validation={"split": 0.3, "every_steps": 6},
        previews={
            "prompts": ["a ball"],
            "sampler": "euler",
            "steps": 1,
            "width": 32,
            "height": 32,
        },
        schedule={"kind": "cosine", "warmup_steps": 2},
        saving={"best_model": True, "average": "beside", "posthoc_every_steps": 1},
    )
    first = find_lr(config, TRIED, PROBE, SilentProgress())
    again = find_lr(config, TRIED, PROBE, SilentProgress())
    assert first == again
    assert not config.output_dir.exists()
    assert first.has_diverged
    assert len(first.losses) < TRIED.steps
    tiny = find_lr(config, LrRange(1e-12, 1e-11, 3), PROBE, SilentProgress())
    assert tiny.losses == pytest.approx([tiny.first] * 3, rel=1e-6)
    assert tiny.first == first.first


def test_its_steps_are_those_of_the_run(train_config, fresh_accelerate):
    """Five steps at nearly constant rates equal five steps of a run at that rate.

    The validation loss is measured there: nothing is encoded ahead for training.
    """
    values = {
        "dataset": {"random_crop": True},
        "training": {"max_steps": 5},
        "optimizer": {"lr": 1e-3},
        "validation": {"split": 0.3, "every_steps": 5, "timesteps": 1, "standard_error": 0},
    }
    config = train_config(**values)
    curve = find_lr(config, LrRange(1e-3, 1.0000001e-3, 5), Probe(99, 1), SilentProgress())
    run = train(config)
    losses = [m["validation_loss"] for m in run.read_metrics() if "validation_loss" in m]
    assert curve.first == pytest.approx(losses[0], rel=1e-6)
    assert curve.losses[-1] == pytest.approx(losses[-1], rel=1e-4)
    assert abs(losses[-1] - losses[0]) > 1e-2 * losses[0]


def test_the_command_writes_its_page_and_nothing_else(run_file, tmp_path, fresh_accelerate):
    file = run_file()
    find = ["find-lr", str(file), "--steps", "10", "--from", "1e-6", "--to", "1e-2"]
    find += ["--images", "1", "--timesteps", "1"]
    before = {path.name for path in tmp_path.iterdir()}
    done = CliRunner().invoke(commands, [*find, "--out", str(tmp_path / "rates.html")])
    assert done.exit_code == 0, done.output
    assert {path.name for path in tmp_path.iterdir()} - before == {"rates.html"}
    assert "Loss by learning rate" in (tmp_path / "rates.html").read_text(encoding="utf-8")


def test_an_optimizer_that_finds_its_rate_is_refused(train_config):
    config = train_config(optimizer={"kind": "prodigy", "lr": 1.0})
    with pytest.raises(ConfigError, match="finds the learning rate itself"):
        find_lr(config, TRIED, PROBE, SilentProgress())


@pytest.mark.parametrize(
    ("changes", "images"),
    [
        ({}, 3),
        ({"dataset": {"random_crop": True}, "validation": {"split": 0.3}}, None),
    ],
)
def test_a_plan_says_what_would_be_done_and_does_nothing(
    run_file, tmp_path, fresh_accelerate, monkeypatch, changes, images
):
    """The measurement matches the plan; if all training images are cropped, it uses held-out
    ones."""
    file = run_file(**changes)
    find = [
        *("find-lr", str(file), "--steps", "10", "--from", "1e-6", "--to", "1e-2"),
        *("--images", "3" if images else "99", "--timesteps", "2"),
    ]
    before = sorted(tmp_path.rglob("*"))
    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "step", None)
        planned = CliRunner().invoke(commands, [*find, "--plan"], catch_exceptions=False)
    assert planned.exit_code == 0, planned.output
    assert sorted(tmp_path.rglob("*")) == before
    told = " ".join(planned.output.split())
    assert "1e-06 to 0.01, each 2.78 times the one before" in told
    assert "10 at most, of batches of up to" in told
    assert "Total" in told
    passes = int(re.search(r"at 2 timesteps: ([0-9]+) forward passes each time", told)[1])
    assert images is None or passes == 2 * images
    done = CliRunner().invoke(commands, find, catch_exceptions=False)
    assert f"each with {passes} forward passes to measure the loss" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": {"kind": "prodigy", "lr": 1.0}}, "finds the learning rate itself"),
        ({"dataset": {"random_crop": True}}, "The loss cannot be measured on fixed images"),
    ],
)
def test_a_plan_is_refused_where_the_test_is(run_file, fresh_accelerate, changes, words):
    with pytest.raises(ConfigError, match=words):
        commands.main(["find-lr", str(run_file(**changes)), "--plan"], standalone_mode=False)


def test_a_plan_is_refused_among_several_processes(run_file, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match="Start it without a launcher"):
        commands.main(["find-lr", str(run_file()), "--plan"], standalone_mode=False)
