"""Runs with `training.posthoc_ema`: what they store, resuming, and `impasto ema`."""

import json

import pytest
import torch
from click.testing import CliRunner
from runs import StopAt, exported

from impasto.checkpoints.reading import open_tensor_file
from impasto.cli.main import impasto as commands
from impasto.cli.plan import plan_as_json
from impasto.errors import ConfigError, ModelError, RunError
from impasto.progress import SilentProgress
from impasto.training import session_parts
from impasto.training.events import SilentEvents
from impasto.training.posthoc_models import make_averages, measure
from impasto.training.saving.averages import stored_steps
from impasto.training.trainer import resume, train


class Told(SilentEvents):
    """Keeps what is noted."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def averaged(train_config):
    def build(**changes):
        values = {
            "method": {"train_text_encoder": True},
            "training": {"max_steps": 12, "posthoc_ema": True},
            "validation": {"split": 0.3, "every_steps": 12, "timesteps": 2},
            "saving": {
                "posthoc_every_steps": 2,
                "posthoc_dtype": "fp32",
                "state_every_steps": 5,
                "format": "safetensors",
            },
        }
        return train_config(**{**values, **changes})

    return build


def test_an_average_that_was_not_kept_is_made_of_those_that_were(
    averaged, monkeypatch, fresh_accelerate
):
    """One of another length is kept beside them here, to compare with."""
    monkeypatch.setattr(session_parts, "TRACKED", (0.05, 0.10, 0.15))
    run = train(averaged())
    names = sorted(path.name for path in run.averages.iterdir())
    assert names == [
        "start.safetensors",
        *(f"step-{step:08d}.safetensors" for step in range(2, 13, 2)),
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
    """At a low rate, where weights move by less than fp16 tells of their size."""
    made, start = [], {}
    for dtype in ("fp16", "fp32"):
        config = averaged(
            output_dir=str(tmp_path / dtype),
            optimizer={"lr": 1e-6},
            saving={"posthoc_every_steps": 2, "posthoc_dtype": dtype, "format": "safetensors"},
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


def test_the_start_is_that_of_the_base_model_also_where_it_was_lost(
    averaged, tmp_path, fresh_accelerate
):
    """A resumed run writes it before it reads its state; what is begun anew writes it again."""
    config = averaged()
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(7))
    file = config.output_dir / "averages" / "start.safetensors"
    before = file.read_bytes()
    file.unlink()
    run = resume(config.output_dir)
    assert file.read_bytes() == before
    file.unlink()
    with pytest.raises(ModelError, match=r"start\.safetensors is not there"):
        make_averages(run, [0.1])


def test_averages_of_an_abandoned_attempt_are_not_mixed_in(averaged, tmp_path, fresh_accelerate):
    """Its states were moved away, and it is done again at another rate, with other times."""
    config = averaged()
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(7))
    (config.output_dir / "states").rename(tmp_path / "moved")
    file = config.output_dir / "config.toml"
    text = file.read_text(encoding="utf-8")
    changed = text.replace("posthoc_every_steps = 2", "posthoc_every_steps = 5")
    assert changed != text
    file.write_text(changed.replace("lr = 0.001", "lr = 0.0001"), encoding="utf-8")
    told = Told()
    run = resume(config.output_dir, told)
    assert stored_steps(run) == [5, 10, 12]
    kept = sorted(path.name for path in (run.path / "averages-abandoned").iterdir())
    assert kept == ["start.safetensors", *(f"step-{n:08d}.safetensors" for n in (2, 4, 6))]
    assert any("averages-abandoned" in note for note in told.notes)


def test_averages_of_steps_that_were_lost_are_not_kept(averaged, fresh_accelerate):
    """The state is of step 5, and from there on they are stored at other times."""
    config = averaged()
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(7))
    file = config.output_dir / "config.toml"
    text = file.read_text(encoding="utf-8")
    changed = text.replace("posthoc_every_steps = 2", "posthoc_every_steps = 5")
    file.write_text(changed, encoding="utf-8")
    assert stored_steps(resume(config.output_dir)) == [2, 4, 10, 12]


def test_the_plan_of_the_disk_is_what_averages_take(averaged, fresh_accelerate):
    config = averaged(saving={"posthoc_every_steps": 5, "format": "safetensors"})
    found, error = plan_as_json(config)
    assert error is None
    disk = found["disk"]
    run = train(config)
    sizes = {file.name: file.stat().st_size for file in run.averages.iterdir()}
    assert disk["averages"] == len(sizes) - 1 == 3
    assert disk["start_bytes"] == pytest.approx(sizes.pop("start.safetensors"), rel=0.2)
    for size in sizes.values():
        assert disk["averages_bytes"] == pytest.approx(size, rel=0.4)  # names are long here


def test_averages_are_resumed_exactly_and_change_nothing(averaged, tmp_path, fresh_accelerate):
    run = train(averaged(output_dir=str(tmp_path / "whole")))
    config = averaged(output_dir=str(tmp_path / "stopped"))
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(7))
    stopped = resume(config.output_dir)
    for file in run.averages.iterdir():
        assert file.read_bytes() == (stopped.averages / file.name).read_bytes()
    plain = train(
        averaged(
            output_dir=str(tmp_path / "plain"),
            training={"max_steps": 12},
            saving={"format": "safetensors"},
        )
    )
    files = [open_tensor_file(r.exported_model()).tensors for r in (plain, run)]
    for name, tensor in files[0].items():
        assert torch.equal(tensor.read(), files[1][name].read())
    assert exported(run).keys() == exported(stopped).keys()


def test_the_command_measures_lengths_and_writes_the_best(averaged, tmp_path, fresh_accelerate):
    run = train(averaged())
    target = tmp_path / "best.safetensors"
    words = ["ema", str(run.path), "--sigma-rel", "0.05,0.1,0.2", "--out", str(target)]
    done = CliRunner().invoke(commands, words)
    assert done.exit_code == 0, done.output
    record = json.loads(open_tensor_file(target).metadata["impasto.average"])
    losses = dict(record["validation_loss_by_sigma_rel"])
    assert record["sigma_rel"] == min(losses, key=losses.get)
    assert record["step"] == 12
    (average,) = make_averages(run, [record["sigma_rel"]])
    written = open_tensor_file(target).tensors
    name = "model.diffusion_model.input_blocks.0.0.weight"
    expected = average.tensors["unet.conv_in.weight"].read()
    torch.testing.assert_close(written[name].read().float(), expected)
    (again,) = measure(run, [average], SilentProgress())
    assert again.loss == pytest.approx(min(losses.values()), abs=1e-5)


def test_what_cannot_be_made_is_named(averaged, train_config, tmp_path, fresh_accelerate):
    run = train(averaged(training={"max_steps": 2, "posthoc_ema": True}))
    with pytest.raises(ConfigError, match=r"expected 0\.01 to 0\.28"):
        make_averages(run, [0.3])
    with pytest.raises(RunError, match="has them after 2"):
        make_averages(run, [0.1], step=1)
    (run.averages / "step-00000002.safetensors").unlink()
    with pytest.raises(RunError, match="posthoc_ema = true"):
        make_averages(run, [0.1])
    with pytest.raises(ConfigError, match=r"no effect without training\.posthoc_ema"):
        train(train_config(saving={"posthoc_every_steps": 2}))


def test_an_average_is_of_the_last_step_that_it_took_in(averaged, fresh_accelerate):
    """Of 11 steps every third is taken in: what is stored at the end is of the ninth."""
    training = {"max_steps": 11, "posthoc_ema": True, "ema_every": 3}
    run = train(averaged(training=training, saving={"format": "safetensors"}))
    assert stored_steps(run) == [3, 6, 9]
    (average,) = make_averages(run, [0.1])
    assert average.profile.step == 9
