"""Training a hypernetwork, drawing with it, and its files on the command line."""

import shutil
from functools import partial

import numpy as np
import pytest
import torch
from conftest import impasto
from demo_images import every_fourth
from PIL import Image
from runs import exported, trained_and_killed
from safetensors.torch import load_file

from impasto.checkpoints.hypernetworks import read_hypernetwork
from impasto.checkpoints.reading import open_tensor_file
from impasto.cli.main import impasto as commands
from impasto.demo.recipe import demo_config
from impasto.errors import ConfigError, ModelError
from impasto.models.networks.loading import load_base_model
from impasto.training.events import SilentEvents
from impasto.training.planning.advice import advice_on
from impasto.training.planning.exposure import Exposure
from impasto.training.trainer import resume, train


class Noted(SilentEvents):
    """Records notes."""

    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


SHARED = {
    "method": {"kind": "hypernetwork"},
    "saving": {"format": None, "export_dtype": None, "name": "model"},
}


def of_a_hypernetwork(build, **changes):
    merged = {key: {**value, **changes.get(key, {})} for key, value in SHARED.items()}
    return build(**{**changes, **merged})


@pytest.fixture
def hypernetwork_config(train_config):
    return partial(of_a_hypernetwork, train_config)


METADATA = {"title": "Blue", "author": "Ada", "license": "mit"}


@pytest.fixture(scope="module")
def trained(shared_config):
    """A run of two steps with a model after the first, and its notes. Read-only by agreement."""
    told = Noted()
    saving = {"model_every_steps": 1, "metadata": METADATA}
    config = of_a_hypernetwork(shared_config, saving=saving, training={"max_steps": 2})
    return train(config, told), told.notes


VARIANTS = {
    "deep, bf16 weights, with dropout, average, accumulation and templates": {
        "training": {
            "ema_decay": 0.9,
            "gradient_accumulation_steps": 2,
            "mixed_precision": "bf16",
            "weight_dtype": "bf16",
        },
        "hypernetwork": {
            "templates": ["a [filewords] by [name]", "[filewords]"],
            "layers": [1, 2, 2, 1],
            "activation": "swish",
            "dropout": [0, 0.3, 0.3, 0],
            "layer_norm": True,
            "initialization": "KaimingNormal",
        },
    },
    "SDXL, bf16, checkpointing, 8-bit": {
        "training": {"mixed_precision": "bf16", "gradient_checkpointing": True},
        "optimizer": {"kind": "adamw8bit"},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_run_continues_bit_for_bit(
    hypernetwork_config, nano_model, nano_sdxl_model, variant
):
    base = nano_sdxl_model if variant.startswith("SDXL") else nano_model
    changes = {**VARIANTS[variant], "saving": {"state_every_steps": 2}}
    changes["training"] = {"max_steps": 4, **changes["training"]}
    config = hypernetwork_config(model={"path": str(base)}, **changes)
    whole, run = trained_and_killed(config, step=3, saved=2)
    resume(run.path)
    assert exported(run).keys() == exported(whole).keys() == {"model.pt"}
    ours, theirs = (read_hypernetwork(r.exported_model()) for r in (run, whole))
    assert ours.structure == theirs.structure
    assert (ours.step, ours.name, ours.base_name) == (4, "model", base.name)
    for name, tensor in ours.tensors().items():
        assert torch.equal(tensor, theirs.tensors()[name])
    losses = [[r["loss"] for r in x.read_metrics() if "loss" in r] for x in (run, whole)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("model", ["nano_model", "nano_sd2_model"])
def test_it_learns_beside_either_family(hypernetwork_config, request, model):
    """A hypernetwork is trained on either family; the nano models draw noise, so it learns
    little."""
    folder = request.getfixturevalue(model)
    validation = {"split": 0.25, "every_steps": 10, "standard_error": 0, "training_images": 0}
    run = train(
        hypernetwork_config(
            model={"path": str(folder)},
            training={"max_steps": 10},
            optimizer={"lr": 1e-2},
            validation=validation,
            logging={"every_steps": 5},
            saving={"state_every_steps": 0, "model_every_steps": 5},
        )
    )
    losses = [r["validation_loss"] for r in run.read_metrics() if "validation_loss" in r]
    assert losses[-1] < losses[0]
    state = load_file(run.states / "step-00000010" / "weights.safetensors")
    assert all(name.startswith("hypernetwork.pairs.") for name in state)
    models = {p.name for p in (run.path / "models").iterdir()}
    assert models == {"model-step00000005.pt", "model-best.pt"}
    names = {n for r in run.read_metrics() if "loss" in r for n in r if n.startswith("lr")}
    assert names == {"lr"}


def test_it_carries_a_style(tmp_path):
    """On the demo's images and base model the held-out loss falls far."""
    config = demo_config(
        tmp_path / "run",
        [
            "method.kind=hypernetwork",
            f"dataset.image_dir={every_fourth(tmp_path / 'images')}",
            "optimizer.lr=4e-3",
            "schedule.warmup_steps=1",
            "training.batch_size=4",
            "training.max_steps=10",
            "training.ema_decay=none",
            "training.fit_check=false",
            "validation.timesteps=2",
            "previews.prompts=[]",
            "validation.every_steps=10",
            "validation.standard_error=0",
            "validation.training_images=0",
        ],
    )
    run = train(config)
    losses = [r["validation_loss"] for r in run.read_metrics() if "validation_loss" in r]
    assert losses[-1] < 0.75 * losses[0]
    assert read_hypernetwork(run.exported_model()).widths == (96, 128)


def test_training_goes_on_from_a_file(hypernetwork_config, tmp_path):
    begun, once = {"initialization": "XavierNormal"}, {"max_steps": 1}
    folder = str(tmp_path / "first")
    first = train(hypernetwork_config(output_dir=folder, hypernetwork=begun, training=once))
    file = first.exported_model()
    second = train(
        hypernetwork_config(
            training=once,
            hypernetwork={"start_from": str(file), "info": "second"},
            optimizer={"lr": 1e-9},
            saving={"format": "safetensors"},
        )
    )
    after = read_hypernetwork(second.exported_model())
    assert (after.form, after.info) == ("safetensors", "second")
    assert after.initialization == "XavierNormal"
    for name, tensor in read_hypernetwork(file).tensors().items():
        torch.testing.assert_close(tensor, after.tensors()[name], atol=1e-6, rtol=0)


def test_previews_are_drawn_at_the_strength_of_the_prompt(hypernetwork_config, trained, tmp_path):
    """At strength 0 the image equals the base model's to the pixel, before and after training."""
    other = shutil.copy(trained[0].exported_model(), tmp_path / "other.pt")
    previews = {
        "prompts": ["a cat", "a cat <hypernet:model:0>", "a cat <hypernet:other:0.9>"],
        "hypernetworks": [f"{other}:0"],
        "width": 32,
        "height": 32,
        "steps": 2,
        "seed": 5,
    }
    changes = {"optimizer": {"lr": 3e-2}, "hypernetwork": {"initialization": "ZeroOutput"}}
    run = train(hypernetwork_config(previews=previews, training={"max_steps": 2}, **changes))

    def picture(step, number):
        with Image.open(run.samples / f"step-{step:08d}" / f"{number:03d}.png") as image:
            return np.asarray(image).astype(int)

    assert np.array_equal(picture(0, 1), picture(2, 1))
    assert not np.array_equal(picture(0, 0), picture(2, 0))
    with pytest.raises(ConfigError, match="'modle', which is not loaded; known: model, other"):
        train(
            hypernetwork_config(
                output_dir=str(tmp_path / "c"),
                previews={**previews, "prompts": ["a cat <hypernet:modle:1>"]},
            )
        )
    assert not (tmp_path / "c").exists()


def test_widths_that_the_model_does_not_have_are_named_as_the_setting(hypernetwork_config):
    with pytest.raises(
        ConfigError, match=r"method\.widths has 17, but the attention contexts of this model"
    ):
        train(hypernetwork_config(hypernetwork={"widths": [17]}))


def test_one_for_another_family_is_refused(hypernetwork_config, trained, tmp_path):
    """A hypernetwork with this model's widths, but SD 2's text width, is refused."""
    tensors = torch.load(trained[0].exported_model(), weights_only=True)
    tensors[1024] = tuple(
        {
            "linear.0.weight": torch.zeros(2048, 1024),
            "linear.0.bias": torch.zeros(2048),
            "linear.1.weight": torch.zeros(1024, 2048),
            "linear.1.bias": torch.zeros(1024),
        }
        for _ in range(2)
    )
    torch.save(tensors, tmp_path / "sd2.pt")
    with pytest.raises(ModelError, match=r"sd2 is for SD 2\.x: .* width 1024"):
        train(
            hypernetwork_config(
                output_dir=str(tmp_path / "b"),
                previews={"hypernetworks": [str(tmp_path / "sd2.pt")], "prompts": ["a cat"]},
            )
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": {"train_text_encoder": True}}, "belongs to the kind full"),
        ({"method": {"block_lrs": {"mid_block": 1e-5}}}, "belongs to the kind full"),
        ({"saving": {"format": "diffusers"}}, "is not one of method.kind hypernetwork"),
        ({"saving": {"export_dtype": "bf16"}}, "is fp32 or fp16"),
        ({"saving": {"vae_dtype": "fp16"}}, "no effect on a hypernetwork"),
        ({"method": {"kind": "full"}, "hypernetwork": {"layers": [1, 1, 1]}}, "has no effect"),
        (
            {"method": {"kind": "full"}, "saving": {"format": "a1111"}},
            "not one of method.kind full",
        ),
    ],
)
def test_settings_that_do_not_belong_are_refused(hypernetwork_config, changes, words):
    with pytest.raises(ConfigError, match=words):
        hypernetwork_config(**changes)


def test_its_rate_is_a1111s_unless_given(run_values, nano_model):
    from impasto.config.load import build_run_config

    values = {**run_values, **SHARED, "saving": {}}
    values.pop("optimizer")
    assert build_run_config(values, source="test").optimizer.lr == 1e-5
    values["optimizer"] = {"weight_decay": 0.1}
    assert build_run_config(values, source="test").optimizer.lr == 1e-5
    values["optimizer"] = {"lr": 2e-6}
    assert build_run_config(values, source="test").optimizer.lr == 2e-6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": {"lr": 1e-4}}, ["above the usual range for adamw and a hypernetwork"]),
        ({"hypernetwork": {"activation": "relu", "activate_output": True}}, ["block learning"]),
        ({"hypernetwork": {"layer_norm": True}}, ["make training unstable"]),
        (
            {"hypernetwork": {"layers": [1, 2, 4, 1], "dropout": [0, 0.1, 0.1, 0]}},
            ["learn nothing"],
        ),
        (
            {"hypernetwork": {"layers": [1, 2, 4, 1], "activation": "relu"}},
            ["reported as unstable"],
        ),
        ({}, []),
    ],
)
def test_what_is_reported_to_fail_is_said(hypernetwork_config, nano_model, changes, words):
    config = hypernetwork_config(**{"optimizer": {"lr": 1e-5}, **changes})
    identity, usual = load_base_model(str(nano_model)).identity, Exposure(200, 1.0, 40.0, (10, 120))
    found = advice_on(config, identity, torch.device("cpu"), usual, weights=1000)
    assert [word in line for word, line in zip(words, found, strict=True)] == [True] * len(words)


def test_each_model_says_the_step_that_it_is_of(trained):
    run, _ = trained
    (on_the_way,) = (run.path / "models").iterdir()
    assert on_the_way.name == "model-step00000001.pt"
    assert read_hypernetwork(on_the_way).step == 1
    assert read_hypernetwork(run.export / "model.pt").step == 2


def test_what_it_says_of_itself_is_written_or_told(hypernetwork_config, trained):
    of_models = [note for note in trained[1] if "saving.metadata" in note]
    for name, note in zip(("model-step00000001.pt", "model.pt"), of_models, strict=True):
        assert note.startswith(f"{name}: saving.metadata (title, author, license) is left out")
    told, saving = Noted(), {"format": "safetensors", "metadata": METADATA}
    run = train(hypernetwork_config(saving=saving, training={"max_steps": 1}), told)
    found = open_tensor_file(run.export / "model.safetensors").metadata
    assert {key: found[f"modelspec.{key}"] for key in METADATA} == METADATA
    assert [note for note in told.notes if "saving.metadata" in note] == []


def test_the_command_line(run_file, nano_model, tmp_path, capsys):
    """Training, inspection, conversion to each form, and drawing at several strengths work."""
    done = impasto(
        "train",
        run_file(**SHARED | {"saving": {"name": "style"}}),
        *("--set", "saving.format=none", "--set", "saving.export_dtype=none"),
        *("--set", "training.max_steps=1"),
    )
    assert done.returncode == 0, done.stderr
    assert "Trains  hypernetwork" in done.stdout
    file = tmp_path / "run" / "export" / "style.pt"
    call("inspect", file)
    told = capsys.readouterr().out
    assert "A1111 .pt" in told
    assert "1, 2, 1" in told
    for form, ending in (("portable", "pt"), ("novelai", "pt"), ("safetensors", "safetensors")):
        target = tmp_path / f"{form}.{ending}"
        call("convert", file, target, "--to", form)
        assert read_hypernetwork(target).widths == read_hypernetwork(file).widths
    with pytest.raises(ConfigError, match="is a hypernetwork, which cannot be written as ckpt"):
        call("convert", file, tmp_path / "x.ckpt", "--to", "ckpt")
    size = ("--width", "64", "--height", "64", "--steps", "2")
    call(
        *("sample", nano_model, "a cat", "a dog", "--hypernetwork", f"{file}:0.5", "--grid"),
        *("--strengths", "0,0.5,1", *size, "--out", tmp_path / "sweep"),
    )
    with Image.open(tmp_path / "sweep" / "grid.png") as grid:
        assert grid.size == (3 * 68 - 4, 2 * 68 - 4)
        assert "<hypernet:style:0>" in grid.info["parameters"]
    call("sample", nano_model, "a cat", *size, "--out", tmp_path / "plain")
    pictures = [
        np.asarray(Image.open(path))
        for path in (tmp_path / "plain" / "0000-1.png", tmp_path / "sweep" / "0000-1.png")
    ]
    assert np.array_equal(*pictures)
    with pytest.raises(ConfigError, match="'nobody', which is not loaded"):
        call("sample", nano_model, "a cat <hypernet:nobody:1>", "--out", tmp_path / "y")


def call(*words):
    commands.main(args=[str(word) for word in words], standalone_mode=False)
