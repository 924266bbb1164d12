"""Runs with `training.posthoc_ema`: stored files, resuming, and `impasto ema`."""

import json

import pytest
import torch
from click.testing import CliRunner
from flat_models import one_level_model
from runs import StopAt, copied, exported, trained_and_killed

from impasto.checkpoints.reading import open_tensor_file
from impasto.cli import plan
from impasto.cli.main import impasto as commands
from impasto.errors import ConfigError, ModelError, RunError
from impasto.progress import SilentProgress
from impasto.training import trainer
from impasto.training.analysis.posthoc_models import make_averages, measure
from impasto.training.assembly import session_parts
from impasto.training.events import SilentEvents
from impasto.training.saving.averages import stored_steps
from impasto.training.trainer import resume, train

nano_model = one_level_model


class Told(SilentEvents):
    """Records notes."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


USUAL = {
    "method": {"train_text_encoder": True},
    "training": {"max_steps": 10, "posthoc_ema": True},
    "validation": {
        "split": 0.3, "every_steps": 10, "timesteps": 1, "standard_error": 0, "training_images": 1,
    },
    "saving": {
        "posthoc_every_steps": 2,
        "posthoc_dtype": "fp32",
        "state_every_steps": 5,
        "keep_states": 9,
        "format": "safetensors",
    },
}  # fmt: skip
ONE_MORE = (0.05, 0.10, 0.15)
"""The lengths that a run stores, and another one, for comparison."""


@pytest.fixture
def averaged(train_config):
    return lambda **changes: train_config(**{**USUAL, **changes})


@pytest.fixture(scope="module")
def whole_and_killed(shared_config):
    """A run with averages, and its copy as if killed after seven of ten steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_parts, "TRACKED", ONE_MORE)
        newest = "averages/step-00000006.safetensors"
        return trained_and_killed(shared_config(**USUAL), step=7, saved=5, besides=[newest])


@pytest.fixture
def whole(whole_and_killed):
    """The uninterrupted run. Read-only by agreement."""
    return whole_and_killed[0]


@pytest.fixture
def killed(whole_and_killed, tmp_path):
    """A killed run with averages of steps 2, 4 and 6, and the state of step 5."""
    return copied(whole_and_killed[1], tmp_path)


def changed(run, *replacements):
    """Replace settings in the run's own file: each old value by a new one."""
    text = run.config_file.read_text(encoding="utf-8")
    for before, after in replacements:
        assert before in text
        text = text.replace(before, after)
    run.config_file.write_text(text, encoding="utf-8")


def test_an_average_that_was_not_kept_is_made_of_those_that_were(whole):
    run = whole
    names = sorted(path.name for path in run.averages.iterdir())
    assert names == [
        "start.safetensors",
        *(f"step-{step:08d}.safetensors" for step in range(2, 11, 2)),
    ]
    start = open_tensor_file(run.averages / names[0]).tensors
    kept = open_tensor_file(run.averages / names[-1]).tensors
    (made,) = make_averages(run, [0.15])
    first = open_tensor_file(run.averages / names[1]).tensors
    moved, off = 0.0, 0.0
    for name, tensor in made.tensors.items():
        direct = kept[f"0.15/{name}"].read()
        moved += float((direct - first[f"0.15/{name}"].read()).square().sum())
        off += float((tensor.read() - start[name].read() - direct).square().sum())
    assert {name.partition(".")[0] for name in made.tensors} == {"unet", "text_encoder"}
    assert 0 < made.fit.error < 0.1
    assert off**0.5 < 0.1 * moved**0.5
    (same,) = make_averages(run, [0.10])
    for name, tensor in same.tensors.items():
        direct = start[name].read() + kept[f"0.1/{name}"].read()
        torch.testing.assert_close(tensor.read(), direct, rtol=0, atol=1e-6)


def test_rounding_is_a_part_of_how_far_weights_moved(averaged, tmp_path, fresh_accelerate):
    """At a low rate, weights move by less than fp16 resolves at their size."""
    made, start = [], {}
    for dtype in ("fp16", "fp32"):
        config = averaged(
            output_dir=str(tmp_path / dtype),
            optimizer={"lr": 1e-6},
            training={"max_steps": 2, "posthoc_ema": True},
            validation={},
            saving={
                "posthoc_every_steps": 1,
                "posthoc_dtype": dtype,
                "format": "safetensors",
                "keep_final_state": False,
            },
        )
        assert dtype == "fp32" or type(config.saving)().posthoc_dtype == dtype
        run = train(config)
        (average,) = make_averages(run, [0.03])
        made.append({name: tensor.read() for name, tensor in average.tensors.items()})
        start = open_tensor_file(run.averages / "start.safetensors").tensors
    rounded, exact = made
    off = sum(float((rounded[n] - exact[n]).square().sum()) for n in exact)
    moved = sum(float((exact[n] - start[n].read()).square().sum()) for n in exact)
    assert moved > 0
    assert off**0.5 < 0.02 * moved**0.5


def test_the_start_is_that_of_the_base_model_also_where_it_was_lost(killed, fresh_accelerate):
    """A resumed run writes the base weights before it reads its state; a new run writes them
    again."""
    file = killed.averages / "start.safetensors"
    before = file.read_bytes()
    file.unlink()
    with pytest.raises(ZeroDivisionError):
        resume(killed.path, StopAt(6))
    assert file.read_bytes() == before
    file.unlink()
    with pytest.raises(ModelError, match=r"start\.safetensors does not exist"):
        make_averages(killed, [0.1])


def test_averages_of_an_abandoned_attempt_are_not_mixed_in(killed, tmp_path, fresh_accelerate):
    """A new attempt with another rate and other times ignores the averages of an abandoned one."""
    killed.states.rename(tmp_path / "moved")
    changed(
        killed,
        ("max_steps = 10", "max_steps = 4"),
        ("posthoc_every_steps = 2", "posthoc_every_steps = 3"),
        ("lr = 0.001", "lr = 0.0001"),
    )
    told = Told()
    run = resume(killed.path, told)
    assert stored_steps(run) == [3, 4]
    kept = sorted(path.name for path in (run.path / "averages-abandoned").iterdir())
    assert kept == ["start.safetensors", *(f"step-{n:08d}.safetensors" for n in (2, 4, 6))]
    assert any("averages-abandoned" in note for note in told.notes)


def test_averages_of_steps_that_were_lost_are_not_kept(killed, fresh_accelerate):
    """The state is of step 5; averages of later steps are discarded, and stored at other times."""
    changed(
        killed,
        ("max_steps = 10", "max_steps = 7"),
        ("posthoc_every_steps = 2", "posthoc_every_steps = 5"),
    )
    assert stored_steps(resume(killed.path)) == [2, 4, 7]


def test_the_plan_of_the_disk_is_what_averages_take(averaged, monkeypatch, fresh_accelerate):
    config = averaged(
        training={"max_steps": 3, "posthoc_ema": True},
        validation={},
        saving={"posthoc_every_steps": 2, "format": "safetensors"},
    )
    plans, real = [], trainer.plan_disk
    monkeypatch.setattr(trainer, "plan_disk", lambda *args: plans.append(real(*args)) or plans[-1])
    run = train(config)
    disk = plan._disk_of(config, *plans)
    sizes = {file.name: file.stat().st_size for file in run.averages.iterdir()}
    assert disk.averages == len(sizes) - 1 == 2
    assert disk.start_bytes == pytest.approx(sizes.pop("start.safetensors"), rel=0.2)
    for size in sizes.values():
        assert disk.averages_bytes == pytest.approx(size, rel=0.4)  # names are long here


def test_averages_are_resumed_exactly_and_change_nothing(
    whole, killed, averaged, monkeypatch, fresh_accelerate
):
    monkeypatch.setattr(session_parts, "TRACKED", ONE_MORE)
    stopped = resume(killed.path)
    for file in whole.averages.iterdir():
        assert file.read_bytes() == (stopped.averages / file.name).read_bytes()
    training, saving = {"max_steps": 10}, {"format": "safetensors"}
    plain = train(averaged(
        output_dir=str(killed.path.with_name("plain")), training=training, saving=saving
    ))  # fmt: skip
    files = [open_tensor_file(run.exported_model()).tensors for run in (plain, whole)]
    for name, tensor in files[0].items():
        assert torch.equal(tensor.read(), files[1][name].read())
    assert exported(whole).keys() == exported(stopped).keys()


def test_the_command_measures_lengths_and_writes_the_best(whole, tmp_path, fresh_accelerate):
    run = whole
    target = tmp_path / "best.safetensors"
    words = ["ema", str(run.path), "--sigma-rel", "0.05,0.1,0.2", "--out", str(target)]
    done = CliRunner().invoke(commands, words)
    assert done.exit_code == 0, done.output
    record = json.loads(open_tensor_file(target).metadata["impasto.average"])
    losses = dict(record["validation_loss_by_sigma_rel"])
    assert record["sigma_rel"] == min(losses, key=losses.get)
    assert record["step"] == 10
    (average,) = make_averages(run, [record["sigma_rel"]])
    written = open_tensor_file(target).tensors
    name = "model.diffusion_model.input_blocks.0.0.weight"
    expected = average.tensors["unet.conv_in.weight"].read()
    torch.testing.assert_close(written[name].read().float(), expected)
    (again,) = measure(run, [average], SilentProgress())
    assert again.loss == pytest.approx(min(losses.values()), abs=1e-5)


def test_what_cannot_be_made_is_named(killed, train_config, fresh_accelerate):
    run = killed
    with pytest.raises(ConfigError, match=r"expected 0\.01 to 0\.28"):
        make_averages(run, [0.3])
    with pytest.raises(RunError, match="has them after 2"):
        make_averages(run, [0.1], step=1)
    for file in run.averages.glob("step-*"):
        file.unlink()
    with pytest.raises(RunError, match="posthoc_ema = true"):
        make_averages(run, [0.1])
    with pytest.raises(ConfigError, match=r"no effect without training\.posthoc_ema"):
        train(train_config(saving={"posthoc_every_steps": 2}))


def test_an_average_is_of_the_last_step_that_it_took_in(averaged, fresh_accelerate):
    """With every second of 3 steps averaged, the final average is that of step 2."""
    training = {"max_steps": 3, "posthoc_ema": True, "ema_every": 2}
    run = train(averaged(training=training, validation={}, saving={"format": "safetensors"}))
    assert stored_steps(run) == [2]
    (average,) = make_averages(run, [0.1])
    assert average.profile.step == 2
