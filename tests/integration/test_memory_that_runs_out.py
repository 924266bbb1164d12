"""Out of memory during a run is explained, and nothing that was learned is lost."""

import threading

import pytest
import torch
from flat_models import one_level_model
from runs import FOUR, StopAt, exported, run_of_four

from impasto.data.loading.dataset import TrainingData
from impasto.diffusion.uncertainty import Uncertainty
from impasto.errors import OutOfMemoryError
from impasto.invocation import command
from impasto.runs import RunDirectory
from impasto.training import trainer
from impasto.training.monitoring.frozen_check import FrozenCheck
from impasto.training.saving import saver
from impasto.training.steps import micro_steps
from impasto.training.trainer import resume, train

nano_model = one_level_model

pytestmark = pytest.mark.usefixtures("encoded_once")


@pytest.fixture(scope="module")
def whole(shared_config):
    """The uninterrupted run. Read-only by agreement."""
    return run_of_four(shared_config)


OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def fail_at(monkeypatch, owner, name, number, error):
    """Make a function fail at its n-th call."""
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
        "What would help most and may be changed before the run is resumed: "
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
    """Memory runs out while encoding, while copying, and in the prefetching thread."""
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
    """The newest state is that of step 2, still being written, or one from before a resume."""
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
    assert "no state was saved. A resume continues from the newest state. " in str(caught.value)
    assert "may be changed before the run is resumed: " in str(caught.value)
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


UNCERTAIN = {"loss": {"uncertainty": True}, "training": {"max_steps": 2}}


@pytest.fixture(scope="module")
def uncertain(shared_config):
    """A run with learned loss weights. Read-only by agreement."""
    folder = str(shared_config().output_dir.with_name("uncertain"))
    return train(shared_config(output_dir=folder, **UNCERTAIN))


@pytest.mark.parametrize(("owner", "name"), [(Uncertainty, "step"), (FrozenCheck, "findings")])
def test_memory_that_runs_out_after_the_optimizer_leaves_no_weights_of_another_step(
    owner, name, train_config, uncertain, monkeypatch
):
    """The weights have changed by then, but the step does not count yet."""
    config = train_config(**UNCERTAIN)
    with monkeypatch.context() as patched:
        fail_at(patched, owner, name, 1, OUT)
        with pytest.raises(OutOfMemoryError, match="no state was saved"):
            train(config)
    assert not (config.output_dir / "states").exists()
    assert exported(resume(config.output_dir)) == exported(uncertain)


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
