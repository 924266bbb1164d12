"""Training on the nano model, in this process: what it leaves, and that it resumes exactly."""

import errno
import itertools
import json
import os
import shutil
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from component_files import UNET_FILE
from diffusers import StableDiffusionPipeline
from runs import StopAt, exported
from safetensors.torch import load_file, save_file

from impasto.errors import (
    ConfigError,
    ImpastoError,
    Interrupted,
    MissingDependencyError,
    ModelError,
    NonFiniteLossError,
    RunError,
    StorageError,
)
from impasto.runs import RunDirectory
from impasto.training.events import SilentEvents
from impasto.training.monitoring.trackers import TrackedRun, Wandb
from impasto.training.trainer import resume, train

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def test_a_run_leaves_what_it_promises(train_config, nano_model):
    config = train_config(
        validation={"split": 0.25, "every_steps": 3},
        previews={"prompts": ["a red ball", "x"], "width": 64, "height": 32, "steps": 2},
    )
    run = train(config)
    status = run.read_json("status.json")
    assert (status["phase"], status["step"]) == ("finished", 6)
    dataset = run.read_json("dataset.json")
    assert (dataset["pictures"], dataset["held_out"]) == (10, 3)
    assert sum(dataset["buckets"].values()) == 10
    assert run.saved_steps() == [6]
    assert run.sampled_steps() == [0, 6]
    records = list(run.read_metrics())
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records if "validation_loss" in r] == [0, 3, 6]
    assert {"torch", "diffusers", "impasto"} <= run.read_json("environment.json")["packages"].keys()
    assert not [p for p in run.path.rglob("*") if p.name.endswith(".partial")]

    pipeline = StableDiffusionPipeline.from_pretrained(run.exported_model())
    expected = load_file(run.states / "step-00000006" / "weights.safetensors")
    for name, tensor in pipeline.unet.state_dict().items():
        assert torch.equal(tensor, expected[f"unet.{name}"])
    for part in ("vae", "text_encoder"):
        for file in (nano_model / part).glob("*.safetensors"):
            exported_file = run.exported_model() / part / file.name
            assert exported_file.read_bytes() == file.read_bytes()


def test_captions_that_are_cut_are_counted(train_config, pictures):
    (pictures / "000.txt").write_text("ball " * 80, encoding="utf-8")
    previews = {"prompts": ["ball " * 80, "a ball"], "width": 64, "height": 32, "steps": 1}
    notes = []

    class Notes(SilentEvents):
        def note(self, message):
            notes.append(message)

    run = train(train_config(training={"max_steps": 1}, previews=previews), Notes())
    assert run.read_json("dataset.json")["too_long"] == 1
    assert any("1 prompt of previews has over 75 tokens" in line for line in notes)


def test_the_same_settings_give_the_same_bits(train_config, tmp_path):
    first = exported(train(train_config()))
    assert exported(train(train_config(output_dir=str(tmp_path / "again")))) == first
    assert exported(train(train_config(output_dir=str(tmp_path / "other"), seed=8))) != first


VARIANTS = {
    "plain": {},
    "average": {"training": {"ema_decay": 0.9}},
    "average in memory": {"training": {"ema_decay": 0.9, "ema_power": 0.75, "ema_on_cpu": True}},
    "text encoder": {"method": {"train_text_encoder": True}, "model": {"clip_skip": 2}},
    "accumulation": {"training": {"gradient_accumulation_steps": 2}},
    "channels last": {"training": {"channels_last": True}},
    "fp16": {"training": {"mixed_precision": "fp16"}},
    "bf16": {"training": {"mixed_precision": "bf16"}},
    "bf16 weights": {
        "training": {"mixed_precision": "bf16", "weight_dtype": "bf16", "ema_decay": 0.9},
        "method": {"train_text_encoder": True, "text_encoder_from_step": 2},
    },
    "bf16 weights and what they lost": {
        "training": {
            "mixed_precision": "bf16",
            "weight_dtype": "bf16",
            "rounding": "kahan",
            "gradient_accumulation_steps": 2,
        },
        "optimizer": {"kind": "adamw8bit"},
    },
    "fp16 weights": {"training": {"mixed_precision": "fp16", "weight_dtype": "fp16"}},
    "checkpointing": {"training": {"gradient_checkpointing": True}},
    "steps in the backward pass": {
        "training": {"optimizer_in_backward": "last_norm", "max_grad_norm": 0.01},
        "method": {"train_text_encoder": True},
    },
    "16-bit steps in the backward pass": {
        "training": {
            "mixed_precision": "fp16",
            "weight_dtype": "fp16",
            "optimizer_in_backward": "exact",
        },
    },
    "batches by pixels": {"training": {"batch_by_pixels": True, "batch_size": 2}},
    "objective": {
        "loss": {"kind": "huber", "min_snr_gamma": 5.0},
        "noise": {
            "offset": 0.1,
            "offset_random_strength": True,
            "multires_iterations": 3,
            "input_perturbation": 0.1,
        },
        "timesteps": {"sampling": "stratified", "first": 100},
    },
    "8-bit": {"optimizer": {"kind": "adamw8bit"}},
    "prodigy": {"optimizer": {"kind": "prodigy", "lr": 1.0}},
    "schedule-free": {
        "optimizer": {"kind": "adamw_schedule_free"},
        "validation": {"split": 0.25, "every_steps": 1},
    },
    "text encoder for a while": {
        "method": {
            "train_text_encoder": True,
            "text_encoder_lr": 1e-4,
            "text_encoder_layers": 1,
            "text_encoder_from_step": 1,
            "text_encoder_until_step": 4,
        },
    },
    "cosine, dropout": {
        "schedule": {"kind": "cosine", "warmup_steps": 2},
        "dataset": {"caption_dropout_rate": 0.5, "num_repeats": 2},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_crashed_run_continues_bit_for_bit(train_config, tmp_path, variant):
    """States after steps 2 and 4; a crash after 5 loses one, which is done again."""
    changes = {**VARIANTS[variant], "saving": {"state_every_steps": 2}}
    whole = train(train_config(output_dir=str(tmp_path / "whole"), **changes))
    crashed = train_config(**changes)
    with pytest.raises(ZeroDivisionError):
        train(crashed, StopAt(5))
    with pytest.raises(ZeroDivisionError):
        resume(crashed.output_dir, StopAt(5))
    run = resume(crashed.output_dir)
    assert exported(run) == exported(whole)
    ours, theirs = (
        [(r["step"], r["loss"], r["lr"]) for r in r.read_metrics() if "loss" in r]
        for r in (run, whole)
    )
    assert ours == theirs


def test_three_resumes_in_a_row(train_config, tmp_path):
    """Crashes after 3, 6 and 8 of ten steps; numbers of steps go on from the beginning."""
    changes = {
        "training": {"max_steps": 10, "ema_decay": 0.9},
        "saving": {"state_every_steps": 2},
        "schedule": {"kind": "cosine", "warmup_steps": 2},
    }
    whole = train(train_config(output_dir=str(tmp_path / "whole"), **changes))
    config = train_config(**changes)
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(3))
    for step in (6, 8):
        with pytest.raises(ZeroDivisionError):
            resume(config.output_dir, StopAt(step))
    run = resume(config.output_dir)
    assert exported(run) == exported(whole)
    metrics = [[(r["step"], r["samples_seen"], r["loss"]) for r in x.read_metrics() if "loss" in r]
               for x in (run, whole)]  # fmt: skip
    assert metrics[0] == metrics[1]
    assert [step for step, _, _ in metrics[0]] == list(range(1, 11))


def test_a_crash_before_the_first_state_starts_over(train_config, tmp_path):
    whole = train(train_config(output_dir=str(tmp_path / "whole")))
    config = train_config()
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(3))
    assert exported(resume(config.output_dir)) == exported(whole)


def test_a_run_killed_before_its_export_only_exports(train_config):
    run = train(train_config())
    expected = exported(run)
    shutil.rmtree(run.export)
    assert exported(resume(run.path)) == expected


def test_a_finished_run_can_be_made_longer(train_config, tmp_path):
    """With a constant rate: the same bits as a run of that length from the start."""
    whole = train(train_config(output_dir=str(tmp_path / "whole"), training={"max_steps": 9}))
    config = train_config()
    run = train(config)
    file = run.config_file
    text = file.read_text(encoding="utf-8").replace("max_steps = 6", "max_steps = 9")
    file.write_text(text, encoding="utf-8")
    assert exported(resume(run.path)) == exported(whole)


def test_a_read_only_picture_folder_names_the_way_out(train_config, pictures):
    (pictures / ".impasto").write_text("in the way", encoding="utf-8")
    values = train_config().model_dump()
    values["dataset"]["cache_dir"] = None
    from impasto.config.run import RunConfig

    with pytest.raises(StorageError, match=r"dataset\.cache_dir"):
        train(RunConfig.model_validate(values))


def test_what_moves_and_what_does_not(train_config, nano_model):
    run = train(train_config(method={"train_text_encoder": True}, model={"clip_skip": 2}))
    for part, file in (("unet", UNET_FILE), ("text_encoder", "text_encoder/model.safetensors")):
        before, after = load_file(nano_model / file), load_file(run.exported_model() / file)
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        frozen = before.keys() - moved
        if part == "unet":
            assert len(moved) > 0.95 * len(before)
        else:
            assert all("encoder.layers.2." in name for name in frozen)
            assert not any("encoder.layers.2." in name for name in moved)


def test_checkpointing_changes_memory_not_numbers(train_config, tmp_path):
    plain = train(train_config(output_dir=str(tmp_path / "plain")))
    saving = train(train_config(training={"gradient_checkpointing": True}))
    first, second = (load_file(run.exported_model() / UNET_FILE) for run in (plain, saving))
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-6, rtol=1e-5)


def test_broken_weights_are_refused_before_anything_is_made(train_config, nano_model, tmp_path):
    broken = shutil.copytree(nano_model, tmp_path / "broken")
    tensors = load_file(broken / UNET_FILE)
    tensors["conv_in.bias"][0] = float("nan")
    save_file(tensors, broken / UNET_FILE)
    config = train_config(model={"path": str(broken)})
    with pytest.raises(ModelError, match=r"conv_in\.bias holds NaN"):
        train(config)
    assert not config.output_dir.exists()


def test_a_rate_that_explodes_leaves_finite_weights(train_config):
    config = train_config(
        optimizer={"lr": 1.0, "weight_decay": 0.0},
        training={"max_steps": 400, "max_grad_norm": 0.0},
    )
    with pytest.raises(NonFiniteLossError) as caught:
        train(config)
    assert "try a tenth" in str(caught.value)
    status = json.loads((config.output_dir / "status.json").read_text(encoding="utf-8"))
    assert status["phase"] == "failed"
    states = sorted((config.output_dir / "states").iterdir())
    weights = load_file(states[-1] / "weights.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


@pytest.mark.parametrize("change", ["picture", "caption", "model", "setting"])
def test_a_changed_run_is_not_resumed(train_config, nano_model, tmp_path, pictures, change):
    model = shutil.copytree(nano_model, tmp_path / "model")
    config = train_config(model={"path": str(model)}, saving={"state_every_steps": 2})
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(3))
    if change == "picture":
        shutil.copy(pictures / "000.png", pictures / "999.png")
    elif change == "caption":
        (pictures / "000.txt").write_text("something else", encoding="utf-8")
    elif change == "model":
        tensors = load_file(model / UNET_FILE)
        tensors["conv_in.bias"] += 1
        save_file(tensors, model / UNET_FILE)
    else:
        file = config.output_dir / "config.toml"
        text = file.read_text(encoding="utf-8").replace("lr = 0.001", "lr = 0.002")
        file.write_text(text, encoding="utf-8")
    named = {"picture": "dataset", "caption": "dataset", "model": "base model"}
    with pytest.raises(RunError, match=named.get(change, r"optimizer.*0\.001.*0\.002")):
        resume(config.output_dir)


def test_a_taken_directory_is_left_alone(train_config):
    config = train_config()
    config.output_dir.mkdir()
    (config.output_dir / "precious.txt").write_text("x", encoding="utf-8")
    with pytest.raises(RunError, match="already there"):
        train(config)
    assert [p.name for p in config.output_dir.iterdir()] == ["precious.txt"]


def test_an_unwritable_directory_is_explained(train_config, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(StorageError, match="could not be written"):
        train(train_config(output_dir=str(tmp_path / "file" / "run")))


def test_a_full_disk_while_saving_keeps_the_older_state(train_config, monkeypatch):
    """The third state meets a full disk; the second stays, and nothing half-written."""
    import errno

    from impasto.training.saving import state

    real, calls = state.write_safetensors, []

    def save(path, *args, **options):
        calls.append(path)
        if len(calls) >= 5:  # each state writes weights, then the optimizer
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, *args, **options)

    monkeypatch.setattr(state, "write_safetensors", save)
    config = train_config(saving={"state_every_steps": 1, "keep_states": 5})
    with pytest.raises(StorageError, match="disk is full"):
        train(config)
    names = sorted(p.name for p in (config.output_dir / "states").iterdir())
    assert names == ["step-00000001", "step-00000002"]
    monkeypatch.undo()
    assert resume(config.output_dir).export.is_dir()


def test_ctrl_c_saves_and_says_how_to_go_on(train_config, tmp_path):
    import signal

    class Press(SilentEvents):
        def stepped(self, step):
            if step == 3:
                signal.raise_signal(signal.SIGINT)

    whole = train(train_config(output_dir=str(tmp_path / "whole")))
    config = train_config()
    with pytest.raises(Interrupted, match="impasto resume") as caught:
        train(config, Press())
    assert caught.value.exit_code == 130
    run = resume(config.output_dir)
    assert exported(run) == exported(whole)
    assert isinstance(caught.value, ImpastoError)


def test_training_lowers_the_loss(train_config):
    """Sixty steps on thirteen images: the held-out loss falls by a clear margin."""
    run = train(
        train_config(
            training={"max_steps": 60, "batch_size": 8},
            optimizer={"lr": 5e-3},
            validation={"split": 0.25, "timesteps": 8},
            logging={"every_steps": 20},
        )
    )
    losses = [r["validation_loss"] for r in run.read_metrics() if "validation_loss" in r]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("form", ["safetensors", "diffusers"])
def test_a_zero_terminal_snr_is_trained_with_and_told_to_samplers(train_config, form):
    from impasto.models.networks.loading import load_base_model

    run = train(
        train_config(
            model={"prediction_type": "v_prediction"},
            noise={"zero_terminal_snr": True},
            saving={"format": form},
            previews={"prompts": ["a ball"], "width": 32, "height": 32, "steps": 2},
        )
    )
    model = load_base_model(str(run.exported_model()))
    assert model.schedule.alphas_cumprod[-1] == 0
    assert model.scheduler_config["rescale_betas_zero_snr"] is True
    assert model.identity.prediction.name == "v_prediction"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": {"v_loss_as_noise_loss": True}}, "is for velocity models"),
        (
            {
                "model": {"prediction_type": "v_prediction"},
                "loss": {"noise_loss_like_v": 0.1},
            },
            "is for models that predict noise",
        ),
        ({"loss": {"debiased": True}, "noise": {"zero_terminal_snr": True}}, "infinite"),
    ],
)
def test_a_loss_for_another_kind_of_model_is_refused(train_config, changes, words):
    config = train_config(**changes)
    with pytest.raises(ConfigError, match=words):
        train(config)
    assert not config.output_dir.exists()


def weights_of(run, step):
    return load_file(run.states / f"step-{step:08d}" / "weights.safetensors")


def test_the_text_encoder_learns_in_its_time_and_only_its_last_layers(train_config, nano_model):
    run = train(
        train_config(
            method={
                "train_text_encoder": True,
                "text_encoder_layers": 1,
                "text_encoder_from_step": 2,
                "text_encoder_until_step": 4,
            },
            saving={"state_every_steps": 1, "keep_states": 9},
            logging={"every_steps": 1},
        )
    )
    rates = [r["lr_text_encoder"] for r in run.read_metrics() if "lr_text_encoder" in r]
    assert [rate > 0 for rate in rates] == [False, False, True, True, False, False]
    states = [
        {k: v for k, v in weights_of(run, step).items() if k.startswith("text_encoder.")}
        for step in range(1, 7)
    ]
    names = set(states[0])
    assert all(".layers.2." in name or "final_layer_norm" in name for name in names)

    def changed(before, after):
        return any(not torch.equal(before[name], after[name]) for name in names)

    pairs = itertools.pairwise(states)
    assert [changed(*pair) for pair in pairs] == [False, True, True, False, False]


def test_blocks_move_by_their_own_rates(train_config, nano_model):
    run = train(
        train_config(
            method={"block_lrs": {"mid_block": 1e-9, "down_blocks.0": 1e-1}},
            optimizer={"lr": 1e-4, "weight_decay": 0.0},
            training={"max_steps": 1},
        )
    )
    base = load_file(nano_model / UNET_FILE)
    moved = {
        name: float((weights_of(run, 1)[f"unet.{name}"] - tensor).abs().max())
        for name, tensor in base.items()
    }
    assert max(v for n, v in moved.items() if n.startswith("mid_block.")) < 1e-7
    assert max(v for n, v in moved.items() if n.startswith("down_blocks.0.")) > 0.05
    rest = [v for n, v in moved.items() if not n.startswith(("mid_block.", "down_blocks.0."))]
    assert 5e-5 < max(rest) < 2e-4


def test_a_gradient_that_overflows_is_passed_over_and_the_scale_lowered(train_config, monkeypatch):
    """The scale begins at 65,536; from far above, the first steps overflow."""
    from impasto.training.optim.mixed_precision import Precision

    real = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device: real(device, init_scale=2.0**100))
    scales = []
    real_step = Precision.step

    def step(self, *args):
        real_step(self, *args)
        scales.append(self.state()["scale"])

    monkeypatch.setattr(Precision, "step", step)
    run = train(train_config(training={"mixed_precision": "fp16", "max_steps": 4}))
    assert scales == [2.0**99, 2.0**98, 2.0**97, 2.0**96]
    assert run.read_json("status.json")["phase"] == "finished"
    assert all(torch.isfinite(t).all() for t in weights_of(run, 4).values())


def test_a_gradient_that_overflows_at_any_scale_ends_the_run(train_config, monkeypatch):
    real = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device: real(device, init_scale=2.0**-9))
    config = train_config(training={"mixed_precision": "fp16"})
    with pytest.raises(NonFiniteLossError, match="overflows in every step"):
        train(config)
    assert len(list((config.output_dir / "states").iterdir())) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": {"lr": 1e-4}}, "optimizer.lr 0.0001 is above what is usual for adamw"),
        ({"optimizer": {"kind": "prodigy", "lr": 1e-5}}, "is below what is usual for prodigy"),
        ({"optimizer": {"lr": 5e-6}, "noise": {"zero_terminal_snr": True}}, "predicts noise"),
        (
            {
                "optimizer": {"lr": 5e-6},
                "method": {"train_text_encoder": True, "text_encoder_lr": 1e-5},
            },
            "text encoder forgets fast",
        ),
        ({"optimizer": {"lr": 5e-6}}, None),
    ],
)
def test_what_is_unusual_is_said_before_training(train_config, nano_model, changes, words):
    from impasto.models.networks.loading import load_base_model
    from impasto.training.planning.advice import advice_on
    from impasto.training.planning.exposure import Exposure

    config = train_config(**changes)
    identity, one = load_base_model(str(nano_model)).identity, Exposure(200, 1.0, 40.0, (10, 120))
    found = advice_on(config, identity, torch.device("cpu"), one, weights=860_000_000)
    assert [words in line for line in found] == ([] if words is None else [True])


def test_the_thread_that_trains_draws_no_noise(train_config, monkeypatch):
    """It launches a GPU's kernels; noise is drawn where data is read."""
    from impasto.diffusion.randomness import PerSampleRandomness

    drawn = []
    real = PerSampleRandomness._generators

    def watched(self, purpose):
        drawn.append((threading.current_thread() is threading.main_thread(), purpose))
        return real(self, purpose)

    monkeypatch.setattr(PerSampleRandomness, "_generators", watched)
    noise = {"offset": 0.05, "multires_iterations": 3, "input_perturbation": 0.1}
    train(train_config(training={"max_steps": 2}, noise=noise))
    here = {purpose for is_here, purpose in drawn if is_here}
    there = {purpose for is_here, purpose in drawn if not is_here}
    assert here == {"timestep"}
    assert {"posterior", "noise", "noise_offset", "multires 0", "input_perturbation"} <= there


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"channels_last": True}, "training.channels_last without training.compile"),
        ({"ema_decay": 0.9, "ema_on_cpu": True}, "training.ema_every = 10"),
        ({"ema_decay": 0.9, "ema_on_cpu": True, "ema_every": 10, "max_steps": 20}, None),
        ({"channels_last": True, "compile": "full"}, None),
    ],
)
def test_what_makes_a_gpu_wait_is_said_of_gpus(train_config, nano_model, training, words):
    from impasto.models.networks.loading import load_base_model
    from impasto.training.planning.advice import advice_on
    from impasto.training.planning.exposure import Exposure

    config = train_config(training=training, optimizer={"lr": 5e-6})
    identity, one = load_base_model(str(nano_model)).identity, Exposure(200, 1.0, 40.0, (10, 120))
    found = advice_on(config, identity, torch.device("cuda"), one, weights=860_000_000)
    assert [words in line for line in found] == ([] if words is None else [True])
    assert advice_on(config, identity, torch.device("cpu"), one, weights=860_000_000) == []


def test_the_best_model_is_kept_also_over_a_resume(train_config, tmp_path, monkeypatch):
    """By validation losses as given: the second is best, and after the resume none is better."""
    from impasto.training.monitoring.validation import ValidationLoss, Validator

    losses = iter([9.0, 3.0, 1.0, 2.0, 1.5, 1.2, 1.1])
    monkeypatch.setattr(Validator, "measure", lambda *_: ValidationLoss(next(losses), {}))
    config = train_config(
        validation={"split": 0.25, "every_steps": 1},
        saving={
            "best_model": True,
            "state_every_steps": 1,
            "keep_states": 9,
            "format": "safetensors",
        },
    )
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(4))
    best = config.output_dir / "models" / "model-best.safetensors"
    content = best.read_bytes()
    run = resume(config.output_dir)
    assert best.read_bytes() == content
    assert run.read_json("status.json")["phase"] == "finished"
    told = run.read_json("models.json")["best"]
    assert told == {"models/model-best.safetensors": {"step": 2, "loss": 1.0}}
    kept, second = load_file(best), weights_of(run, 2)
    name = "conv_in.weight"
    assert torch.equal(
        kept["model.diffusion_model.input_blocks.0.0.weight"], second[f"unet.{name}"]
    )


def test_states_are_saved_by_the_clock(train_config):
    run = train(
        train_config(
            saving={"state_every_minutes": 1e-6, "keep_states": 9}, training={"max_steps": 3}
        )
    )
    assert run.saved_steps() == [1, 2, 3]


def test_without_held_out_pictures_there_is_no_best_model(train_config):
    run = train(train_config(training={"max_steps": 2}))
    assert not list((run.path / "models").glob("*"))


@pytest.mark.parametrize("saved", [2, 3, 5])
def test_metrics_go_to_tensorboard_also_over_a_resume(train_config, saved):
    """Once each, also those of steps that are done again, from a state or from the start."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = train_config(
        logging={"trackers": ["tensorboard"], "every_steps": 1},
        method={"train_text_encoder": True, "text_encoder_lr": 1e-4},
        saving={"state_every_steps": saved},
        validation={"split": 0.4, "every_steps": 2},
    )
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(4))
    run = resume(config.output_dir)
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    losses = {event.step: event.value for event in events.Scalars("loss")}
    expected = {r["step"]: r["loss"] for r in run.read_metrics() if "loss" in r}
    assert losses == pytest.approx(expected, rel=1e-6)
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("validation_loss")] == [0, 2, 4, 6]
    assert {"lr", "lr_text_encoder", "grad_norm", "images_per_s", "data_wait", "memory_mib"} <= set(
        events.Tags()["scalars"]
    )


def test_a_disk_that_is_full_under_a_tracker_is_named_and_costs_no_step(train_config, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    add = SummaryWriter.add_scalar

    def full(writer, name, value, step):
        if step >= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(writer, name, value, step)

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    config = train_config(logging={"trackers": ["tensorboard"], "every_steps": 1})
    with pytest.raises(StorageError, match=r"The disk is full: .*tensorboard could not"):
        train(config)
    assert RunDirectory(config.output_dir).saved_steps()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_metrics_go_to_wandb_without_a_network(train_config, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(sys, "argv", ["fine_tune.py", "--wandb_api_key=0123-secret"])
    run = train(train_config(logging={"trackers": ["wandb"]}, training={"max_steps": 2}))
    (folder,) = (run.path / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    until = time.monotonic() + 30
    while file.stat().st_size <= 500:  # a process of its own writes it
        assert time.monotonic() < until
        time.sleep(0.05)
    assert (run.path / "wandb-id.txt").read_text() in file.name
    assert not any(b"0123-secret" in f.read_bytes() for f in folder.rglob("*") if f.is_file())


@pytest.mark.parametrize(("step", "identity"), [(3, "abc"), (0, None)])
def test_a_run_that_begins_anew_is_another_one_of_wandb(step, identity, tmp_path, monkeypatch):
    """W&B drops the numbers of steps that it has had."""
    asked = {}

    def init(**options):
        asked.update(options)
        return SimpleNamespace(id="def")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=dict))
    (tmp_path / "wandb-id.txt").write_text("abc\n", encoding="utf-8")
    Wandb(TrackedRun(RunDirectory(tmp_path), "cats", "impasto", {}, step))
    assert asked["id"] == identity
    assert (tmp_path / "wandb-id.txt").read_text(encoding="utf-8") == "def"


def test_a_missing_tracker_is_named_before_anything_is_made(train_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    config = train_config(logging={"trackers": ["tensorboard"]})
    with pytest.raises(MissingDependencyError, match=r"logging\.trackers asks for tensorboard"):
        train(config)
    assert not config.output_dir.exists()
