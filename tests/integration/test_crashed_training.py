"""Runs that crash, are killed, stopped or hit by a full disk continue bit for bit."""

import errno
import json
import shutil
import signal

import pytest
import torch
from flat_models import one_level_model
from runs import FOUR, KillAt, StopAt, copied, exported, trained_and_killed
from safetensors.torch import load_file

from impasto.errors import ImpastoError, Interrupted, StorageError
from impasto.runs import step_name
from impasto.training.events import SilentEvents
from impasto.training.trainer import resume, train

nano_model = one_level_model

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

SEEN = {"split": 0.25, "timesteps": 1, "standard_error": 0, "training_images": 1}

ADAFACTOR = {
    "kind": "adafactor",
    "arguments": {"scale_parameter": False, "relative_step": False, "warmup_init": False},
}

VARIANTS = {
    "losses, noise, average in memory, cosine, text encoder for a while, 8-bit, channels last": {
        "training": {
            "ema_decay": 0.9,
            "ema_power": 0.75,
            "ema_on_cpu": True,
            "gradient_accumulation_steps": 2,
            "gradient_checkpointing": True,
            "channels_last": True,
        },
        "loss": {"kind": "huber", "min_snr_gamma": 5.0},
        "noise": {
            "offset": 0.1,
            "offset_random_strength": True,
            "multires_iterations": 3,
            "input_perturbation": 0.1,
        },
        "timesteps": {"sampling": "stratified", "first": 100},
        "schedule": {"kind": "cosine", "warmup_steps": 2},
        "dataset": {"caption_dropout_rate": 0.5, "num_repeats": 2},
        "optimizer": {"kind": "adamw8bit"},
        "method": {
            "train_text_encoder": True,
            "text_encoder_lr": 1e-4,
            "text_encoder_layers": 1,
            "text_encoder_from_step": 1,
            "text_encoder_until_step": 3,
        },
    },
    "fp16, schedule-free, batches by pixels": {
        "training": {"mixed_precision": "fp16", "batch_by_pixels": True, "batch_size": 2},
        "optimizer": {"kind": "adamw_schedule_free"},
        "validation": {**SEEN, "every_steps": 2},
    },
    "bf16, prodigy": {
        "training": {"mixed_precision": "bf16"},
        "optimizer": {"kind": "prodigy", "lr": 1.0},
    },
    "bf16 weights and what they lost, 8-bit, average": {
        "training": {
            "mixed_precision": "bf16",
            "weight_dtype": "bf16",
            "rounding": "kahan",
            "gradient_accumulation_steps": 2,
            "ema_decay": 0.9,
        },
        "method": {"train_text_encoder": True, "text_encoder_from_step": 2},
        "optimizer": {"kind": "adamw8bit"},
    },
    "steps in the backward pass, text encoder": {
        "training": {"optimizer_in_backward": "last_norm", "max_grad_norm": 0.01},
        "method": {"train_text_encoder": True},
        "model": {"clip_skip": 2},
    },
    "16-bit steps of Adafactor in the backward pass": {
        "optimizer": ADAFACTOR,
        "training": {
            "mixed_precision": "fp16",
            "weight_dtype": "fp16",
            "optimizer_in_backward": "exact",
        },
    },
}


def losses_of(run):
    return [
        (r["step"], r["samples_seen"], r["loss"], r["lr"])
        for r in run.read_metrics()
        if "loss" in r
    ]


def last_state(run):
    folder = run.states / step_name(run.saved_steps()[-1])
    tensors = {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}
    return tensors, json.loads((folder / "state.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole_and_killed(shared_config):
    """An uninterrupted run, and its copy as if killed after two steps."""
    folder = shared_config().output_dir.with_name("whole")
    saving = {"state_every_steps": 1, "keep_states": 9}
    config = shared_config(output_dir=str(folder), saving=saving, **FOUR)
    return trained_and_killed(config, step=2, saved=1)


@pytest.fixture
def whole(whole_and_killed):
    """The uninterrupted run. Read-only by agreement."""
    return whole_and_killed[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_run_continues_bit_for_bit(train_config, variant):
    """States are saved every two of four steps; after a kill in step 3 that step is repeated."""
    changes = {k: dict(v) for k, v in VARIANTS[variant].items()}
    changes["training"] = {**changes.get("training", {}), "max_steps": 4}
    config = train_config(**changes, saving={"state_every_steps": 2, "keep_states": 9})
    kill = KillAt(config.output_dir, step=3, saved=2)
    whole = train(config, kill)
    bits, state, losses = exported(whole), last_state(whole), losses_of(whole)
    killed = kill.put_back()
    assert (killed.saved_steps(), killed.export.exists()) == ([2], False)
    run = resume(config.output_dir)
    assert exported(run) == bits
    assert last_state(run) == state
    assert losses_of(run) == losses


def test_two_resumes_in_a_row(whole_and_killed, tmp_path):
    """Killed after step 2 and crashed after step 3 of four; sample counts continue."""
    whole, killed = whole_and_killed
    copy = copied(killed, tmp_path)
    assert copy.saved_steps() == [1]
    with pytest.raises(ZeroDivisionError):
        resume(copy.path, StopAt(3))
    assert copy.saved_steps() == [1, 2]
    run = resume(copy.path)
    assert exported(run) == exported(whole)
    assert losses_of(run) == losses_of(whole)
    assert [step for step, *_ in losses_of(run)] == [1, 2, 3, 4]


def test_a_crash_before_the_first_state_starts_over(shared_config, whole, tmp_path):
    config = shared_config(output_dir=str(tmp_path / "run"), **FOUR)
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(1))
    assert exported(resume(config.output_dir)) == exported(whole)


def test_a_run_killed_before_its_export_only_exports(whole, tmp_path):
    run = copied(whole, tmp_path)
    shutil.rmtree(run.export)
    before = run.metrics_file.read_bytes()
    assert exported(resume(run.path)) == exported(whole)
    assert run.metrics_file.read_bytes() == before


def test_a_full_disk_while_saving_keeps_the_older_state(train_config, monkeypatch):
    """The third state meets a full disk; the second stays, and nothing is left half-written."""
    from impasto.training.saving import state

    real, calls = state.write_safetensors, []

    def save(path, *args, **options):
        calls.append(path)
        if len(calls) >= 5:  # each state writes weights, then the optimizer
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, *args, **options)

    monkeypatch.setattr(state, "write_safetensors", save)
    config = train_config(
        training={"max_steps": 3}, saving={"state_every_steps": 1, "keep_states": 5}
    )
    with pytest.raises(StorageError, match="disk is full"):
        train(config)
    names = sorted(p.name for p in (config.output_dir / "states").iterdir())
    assert names == ["step-00000001", "step-00000002"]
    monkeypatch.undo()
    assert resume(config.output_dir).export.is_dir()


def test_ctrl_c_saves_and_says_how_to_go_on(shared_config, whole, tmp_path):
    class Press(SilentEvents):
        def stepped(self, step):
            if step == 3:
                signal.raise_signal(signal.SIGINT)

    config = shared_config(output_dir=str(tmp_path / "run"), **FOUR)
    with pytest.raises(Interrupted, match="impasto resume") as caught:
        train(config, Press())
    assert caught.value.exit_code == 130
    run = resume(config.output_dir)
    assert exported(run) == exported(whole)
    assert isinstance(caught.value, ImpastoError)


def test_the_best_model_is_kept_also_over_a_resume(train_config, monkeypatch):
    """With fixed validation losses the second model is best, and after the resume none is
    better."""
    from impasto.training.monitoring.validation import ValidationLoss, Validator

    losses = iter([9.0, 3.0, 1.0, 2.0, 1.5])
    monkeypatch.setattr(Validator, "measure", lambda *_: ValidationLoss(next(losses), {}))
    config = train_config(
        training={"max_steps": 4},
        validation={"split": 0.25, "every_steps": 1},
        saving={
            "best_model": True,
            "state_every_steps": 1,
            "keep_states": 9,
            "format": "safetensors",
        },
    )
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(3))
    best = config.output_dir / "models" / "model-best.safetensors"
    content = best.read_bytes()
    run = resume(config.output_dir)
    assert best.read_bytes() == content
    assert run.read_json("status.json")["phase"] == "finished"
    told = run.read_json("models.json")["best"]
    assert told == {"models/model-best.safetensors": {"step": 2, "loss": 1.0}}
    kept, second = load_file(best), load_file(run.states / "step-00000002" / "weights.safetensors")
    name = "conv_in.weight"
    assert torch.equal(
        kept["model.diffusion_model.input_blocks.0.0.weight"], second[f"unet.{name}"]
    )
