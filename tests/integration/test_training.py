"""Training on the nano model, in this process: the files of a run, and exact resuming."""

import itertools
import json
import shutil
import threading

import pytest
import torch
from component_files import UNET_FILE
from diffusers import StableDiffusionPipeline
from PIL import Image
from runs import exported
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from impasto.errors import (
    ConfigError,
    ModelError,
    NonFiniteLossError,
    RunError,
    StorageError,
)
from impasto.training.events import SilentEvents
from impasto.training.trainer import train

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "encoded_once")


class Notes(SilentEvents):
    def __init__(self):
        self.told = []

    def note(self, message):
        self.told.append(message)


def test_a_run_leaves_what_it_promises(train_config, nano_model, pictures):
    """A run writes all promised files, and counts truncated captions."""
    (pictures / "001.txt").write_text("ball " * 80, encoding="utf-8")
    notes = Notes()
    config = train_config(
        training={"max_steps": 4},
        validation={"split": 0.25, "every_steps": 2, "timesteps": 1},
        previews={"prompts": ["a red ball", "ball " * 80], "width": 64, "height": 32, "steps": 1},
    )
    run = train(config, notes)
    assert any("1 prompt of previews has over 75 tokens" in line for line in notes.told)
    status = run.read_json("status.json")
    assert (status["phase"], status["step"]) == ("finished", 4)
    dataset = run.read_json("dataset.json")
    assert (dataset["images"], dataset["held_out"], dataset["too_long"]) == (10, 3, 1)
    assert sum(dataset["buckets"].values()) == 10
    assert run.saved_steps() == [4]
    assert run.sampled_steps() == [0, 4]
    records = list(run.read_metrics())
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4]
    assert [r["step"] for r in records if "validation_loss" in r] == [0, 2, 4]
    assert {"torch", "diffusers", "impasto"} <= run.read_json("environment.json")["packages"].keys()
    assert not [p for p in run.path.rglob("*") if p.name.endswith(".partial")]

    pipeline = StableDiffusionPipeline.from_pretrained(run.exported_model())
    expected = load_file(run.states / "step-00000004" / "weights.safetensors")
    for name, tensor in pipeline.unet.state_dict().items():
        assert torch.equal(tensor, expected[f"unet.{name}"])
    for part in ("vae", "text_encoder"):
        for file in (nano_model / part).glob("*.safetensors"):
            exported_file = run.exported_model() / part / file.name
            assert exported_file.read_bytes() == file.read_bytes()


def test_the_same_settings_give_the_same_bits(train_config, tmp_path):
    def bits(name, seed):
        folder = str(tmp_path / name)
        return exported(
            train(train_config(output_dir=folder, seed=seed, training={"max_steps": 2}))
        )

    first = bits("first", 7)
    assert bits("again", 7) == first
    assert bits("other", 8) != first


def test_a_read_only_picture_folder_names_the_way_out(train_config, pictures):
    (pictures / ".impasto").write_text("in the way", encoding="utf-8")
    values = train_config().model_dump()
    values["dataset"]["cache_dir"] = None
    from impasto.config.run import RunConfig

    with pytest.raises(StorageError, match=r"dataset\.cache_dir"):
        train(RunConfig.model_validate(values))


def test_what_moves_and_what_does_not(train_config, nano_model):
    run = train(
        train_config(
            method={"train_text_encoder": True},
            model={"clip_skip": 2},
            training={"max_steps": 2},
        )
    )
    for part, file in (("unet", UNET_FILE), ("text_encoder", "text_encoder/model.safetensors")):
        before, after = load_file(nano_model / file), load_file(run.exported_model() / file)
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        frozen = before.keys() - moved
        if part == "unet":
            assert len(moved) > 0.95 * len(before)
        else:
            assert all("encoder.layers.2." in name for name in frozen)
            assert not any("encoder.layers.2." in name for name in moved)


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
        optimizer={"lr": 3.0, "weight_decay": 0.0},
        training={"max_steps": 40, "max_grad_norm": 0.0},
    )
    with pytest.raises(NonFiniteLossError) as caught:
        train(config)
    assert "try a tenth" in str(caught.value)
    status = json.loads((config.output_dir / "status.json").read_text(encoding="utf-8"))
    assert status["phase"] == "failed"
    states = sorted((config.output_dir / "states").iterdir())
    weights = load_file(states[-1] / "weights.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_a_taken_directory_is_left_alone(train_config):
    config = train_config()
    config.output_dir.mkdir()
    (config.output_dir / "precious.txt").write_text("x", encoding="utf-8")
    with pytest.raises(RunError, match="already exists and is not empty"):
        train(config)
    assert [p.name for p in config.output_dir.iterdir()] == ["precious.txt"]


def test_an_unwritable_directory_is_explained(train_config, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(RunError, match=r"cannot be a run directory: .*file is a file"):
        train(train_config(output_dir=str(tmp_path / "file" / "run")))


def test_training_lowers_the_loss(train_config):
    """After eight steps on thirteen images the held-out loss has clearly fallen."""
    run = train(
        train_config(
            training={"max_steps": 8},
            optimizer={"lr": 1e-2},
            validation={"split": 0.25, "timesteps": 4},
            logging={"every_steps": 8},
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
            training={"max_steps": 1},
            previews={
                "prompts": ["a ball"],
                "width": 32,
                "height": 32,
                "steps": 2,
                "at_first": False,
            },
        )
    )
    model = load_base_model(str(run.exported_model()))
    assert model.schedule.alphas_cumprod[-1] == 0
    assert model.scheduler_config["rescale_betas_zero_snr"] is True
    assert model.identity.prediction.name == "v_prediction"


def test_a_model_that_predicts_noise_is_drawn_with_as_before(train_config, deeper_model):
    """A sampler that starts from pure noise gives only black images with such a model."""
    from impasto.models.networks.loading import load_base_model

    run = train(
        train_config(
            model={"path": str(deeper_model)},
            noise={"zero_terminal_snr": True},
            saving={"format": "safetensors"},
            training={"max_steps": 1},
            previews={"prompts": ["a ball"], "width": 32, "height": 32, "steps": 2},
        )
    )
    for file in run.path.rglob("samples/*/*.png"):
        with Image.open(file) as image:
            assert any(low < high for low, high in image.getextrema())
    of_sd_scripts = run.path / "of-sd-scripts.safetensors"
    with safe_open(run.exported_model(), "pt") as opened:
        said = {**opened.metadata(), "ss_zero_terminal_snr": "True"}
    save_file(load_file(run.exported_model()), of_sd_scripts, said)
    for file in (run.exported_model(), of_sd_scripts):
        model = load_base_model(str(file))
        assert "rescale_betas_zero_snr" not in model.scheduler_config
        assert model.schedule.alphas_cumprod[-1] > 0


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
                "text_encoder_until_step": 3,
            },
            training={"max_steps": 4},
            saving={"state_every_steps": 1, "keep_states": 9},
            logging={"every_steps": 1},
        )
    )
    rates = [r["lr_text_encoder"] for r in run.read_metrics() if "lr_text_encoder" in r]
    assert [rate > 0 for rate in rates] == [False, False, True, False]
    states = [
        {k: v for k, v in weights_of(run, step).items() if k.startswith("text_encoder.")}
        for step in range(1, 5)
    ]
    names = set(states[0])
    assert all(".layers.2." in name or "final_layer_norm" in name for name in names)

    def changed(before, after):
        return any(not torch.equal(before[name], after[name]) for name in names)

    pairs = itertools.pairwise(states)
    assert [changed(*pair) for pair in pairs] == [False, True, False]


def test_blocks_move_by_their_own_rates(train_config, nano_model):
    run = train(
        train_config(
            method={"block_lrs": {"mid_block": 1e-9, "down_blocks.0": 1e-1}},
            optimizer={"lr": 1e-4, "weight_decay": 0.0},
            training={"max_steps": 1},
        )
    )
    base, learned = load_file(nano_model / UNET_FILE), weights_of(run, 1)
    moved = {
        name: float((learned[f"unet.{name}"] - tensor).abs().max()) for name, tensor in base.items()
    }
    assert max(v for n, v in moved.items() if n.startswith("mid_block.")) < 1e-7
    assert max(v for n, v in moved.items() if n.startswith("down_blocks.0.")) > 0.05
    rest = [v for n, v in moved.items() if not n.startswith(("mid_block.", "down_blocks.0."))]
    assert 5e-5 < max(rest) < 2e-4


def test_a_gradient_that_overflows_is_passed_over_and_the_scale_lowered(train_config, monkeypatch):
    """The scale starts at 65,536; from far above, the first steps overflow."""
    from impasto.training.optim.mixed_precision import Precision

    real = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device: real(device, init_scale=2.0**100))
    scales = []
    real_step = Precision.step

    def step(self, *args):
        real_step(self, *args)
        scales.append(self.state()["scale"])

    monkeypatch.setattr(Precision, "step", step)
    run = train(train_config(training={"mixed_precision": "fp16", "max_steps": 2}))
    assert scales == [2.0**99, 2.0**98]
    assert run.read_json("status.json")["phase"] == "finished"
    assert all(torch.isfinite(t).all() for t in weights_of(run, 2).values())


def test_a_gradient_that_overflows_at_any_scale_ends_the_run(train_config, monkeypatch):
    real = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device: real(device, init_scale=2.0**-9))
    config = train_config(training={"mixed_precision": "fp16"})
    with pytest.raises(NonFiniteLossError, match="overflows in every step"):
        train(config)
    assert len(list((config.output_dir / "states").iterdir())) == 1


def test_the_thread_that_trains_draws_no_noise(train_config, monkeypatch):
    """The training thread launches the GPU's kernels; noise is drawn where data is read."""
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


def test_states_are_saved_by_the_clock(train_config):
    run = train(
        train_config(
            saving={"state_every_minutes": 1e-6, "keep_states": 9}, training={"max_steps": 3}
        )
    )
    assert run.saved_steps() == [1, 2, 3]
    assert not list((run.path / "models").glob("*"))  # without held-out images no model is the best
