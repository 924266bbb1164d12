"""`impasto merge` and `extract-lora` as commands: complete jobs, runs, and refused options."""

import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import impasto
from loras import as_file, extracted, merge, of_a_lora, tuned
from PIL import Image
from runs import run_in
from safetensors.torch import load_file, save_file

from impasto.checkpoints.reading import open_tensor_file
from impasto.cli.main import impasto as commands
from impasto.config.load import dump_toml, load_begun_config
from impasto.errors import ConfigError, ImpastoError
from impasto.progress import SilentProgress
from impasto.training.analysis.along import walk


@pytest.fixture(scope="module")
def run(tmp_path_factory, nano_model):
    """A run of four steps that also trains the text encoder, with a model every two steps.

    Its captions are encoded in an unusual way: another layer, joined as in kohya's, up to 150
    tokens.
    """
    folder = tmp_path_factory.mktemp("merging")
    prompts = folder / "prompts.txt"
    prompts.write_text("a red ball\n", encoding="utf-8")
    return run_in(
        folder,
        nano_model,
        model={"clip_skip": 2, "token_join": "kohya", "max_tokens": 150},
        method={"train_text_encoder": True},
        training={"max_steps": 4, "ema_decay": 0.5},
        validation={"split": 0.3, "every_steps": 4, "timesteps": 3},
        saving={"format": "safetensors", "model_every_steps": 2},
        previews={"prompt_file": str(prompts), "steps": 1, "width": 32, "height": 32},
    )


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_ends_of_the_way_are_what_the_run_measured(run, tmp_path):
    """Ratio 0 gives the base model's validation loss, 1 the result's; the run is not changed."""
    lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [r["validation_loss"] for r in map(json.loads, lines) if "validation_loss" in r]
    before = {file: file.stat().st_mtime_ns for file in run.path.rglob("*")}
    way = walk(run, [0.0, 0.5, 1.0], SilentProgress(), tmp_path / "along")
    assert [point.ratio for point in way.points] == [0.0, 0.5, 1.0]
    assert way.points[0].loss == pytest.approx(losses[0], rel=1e-6)
    assert way.points[2].loss == pytest.approx(losses[-1], rel=1e-6)
    assert way.best.loss == min(point.loss for point in way.points)
    assert {file: file.stat().st_mtime_ns for file in run.path.rglob("*")} == before
    names = sorted(path.name for path in (tmp_path / "along").iterdir())
    assert names == ["00-000.png", "01-000.png", "02-000.png", "sheet.png"]
    with pytest.raises(ConfigError, match="is or contains"):
        walk(run, [0.0, 1.0], SilentProgress(), run.path, overwrite=True)


@pytest.fixture(scope="module")
def best(run, tmp_path_factory):
    """The best of the base model and a quarter of the way. Read-only by agreement."""
    AcceleratorState._reset_state(reset_partial_state=True)  # of earlier tests
    file = tmp_path_factory.mktemp("best") / "best.safetensors"
    call("merge", run.path, "--along", "0,0.25", "--out", file)
    return file


def test_a_run_is_averaged_and_walked_by_commands(run, best, tmp_path):
    """The average contains each step's plain model once; the best ratio reports its
    measurements."""
    soup = tmp_path / "soup.safetensors"
    call("merge", run.path, "--formula", "average", "--out", soup)
    record = json.loads(open_tensor_file(soup).metadata["impasto.merge"])
    names = [entry["file"] for entry in record["models"]]
    assert names == ["model-step00000002.safetensors", "model.safetensors"]
    places = ("models", "export")
    models = [load_file(run.path / folder / n) for folder, n in zip(places, names, strict=True)]
    for name, tensor in load_file(soup).items():
        wanted = (models[0][name].double() + models[1][name].double()) / 2
        torch.testing.assert_close(tensor.double(), wanted, rtol=1e-6, atol=1e-7)
    record = json.loads(open_tensor_file(best).metadata["impasto.merge"])
    measured = record["validation_loss_by_ratio"]
    assert [ratio for ratio, _ in measured] == [0, 0.25]
    assert record["ratio"] == min(measured, key=lambda pair: pair[1])[0]


@pytest.mark.usefixtures("fresh_accelerate")
def test_what_a_run_has_learned_to_be_drawn_with_stays(run, best, tmp_path):
    """At ratio 1 the result is drawn to the pixel, and halfway the metadata has the
    measurements."""
    result, base = run.exported_model(), load_begun_config(run.config_file).model.path
    whole = tmp_path / "whole.safetensors"
    call("merge", base, result, "--ratio", "1", "--out", whole)
    told = [open_tensor_file(file).metadata for file in (result, whole, best)]
    for key in ("modelspec.encoder_layer", "modelspec.resolution", "impasto.text_layout"):
        assert len({said[key] for said in told}) == 1, key
    drawn = []
    for model in (result, whole):
        words = ("--steps", 1, "--out", tmp_path / model.stem)
        call("sample", model, "a red ball", *words)
        (image,) = (tmp_path / model.stem).glob("*.png")
        drawn.append(np.asarray(Image.open(image)))
    assert np.array_equal(*drawn)


def call(*words):
    commands.main(args=[str(word) for word in words], standalone_mode=False)


def test_a_difference_goes_into_a_file_and_back(nano_model, ldm_file, tmp_path, capsys):
    base, tuned = ldm_file(nano_model), tmp_path / "tuned.safetensors"
    tensors = load_file(base)
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    tensors[name] += 0.1 * torch.randn(tensors[name].shape)
    save_file(tensors, tuned, dict(open_tensor_file(base).metadata))
    lora, back = tmp_path / "lora.safetensors", tmp_path / "back.safetensors"
    call("extract-lora", base, tuned, "--full-rank", "--out", lora)
    assert "Layers   1, " in capsys.readouterr().out
    call("merge", base, "--lora", lora, "--out", back)
    torch.testing.assert_close(load_file(back)[name], tensors[name], rtol=1e-3, atol=1e-4)
    wrong = impasto("merge", lora, tuned, "--out", tmp_path / "no.safetensors")
    assert wrong.returncode == 4
    assert "is a LoRA or LyCORIS" in wrong.stderr
    assert not (tmp_path / "no.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["merge", "A", "B"], "Give the file to write the mixture to"),
        (["merge", "A", "--out", "o"], "there is nothing to merge"),
        (["merge", "A", "B", "C", "--out", "o"], "Choose how to mix them"),
        (["merge", "A", "B", "--out", "o.pt"], r"ends in \.pt"),
        (["merge", "A", "B", "--out", "o", "--block", "IN04"], "expected NAME=RATIO"),
        (["merge", "A", "B", "--out", "o", "--block", "IN04=nan"], "expected NAME=RATIO"),
        (["merge", "A", "B", "--out", "o", "--blocks", "1,x"], "expected numbers such as"),
        (["merge", "A", "B", "--out", "o", "--blocks", "1,11"], "expected numbers from -10 to 10"),
        (["merge", "A", "B", "--out", "o", "--block", "IN04=1e9"], "from -10 to 10"),
        (["merge", "A", "--lora", "l", "--ratio", "1", "--out", "o"], "--ratio has no effect here"),
        (["merge", "A", "B", "--shares", "1,2", "--out", "o"], "--shares works only with"),
        (["merge", "A", "B", "--last", "2", "--out", "o"], "--last works only for one run"),
        (
            ["merge", "A", "B", "--formula", "average", "--shares", "1,-1", "--out", "o"],
            "expected 2 numbers",
        ),
        (
            ["merge", "A", "B", "--previews", "p", "--out", "o"],
            "--previews works only with --along",
        ),
        (["merge", "A", "--along", "0"], "expected two or more ratios"),
        (["merge", "A", "--along", "0,9"], "expected two or more ratios"),
        (["merge", "A", "B", "--along", "0,1"], "--along takes one run"),
        (["merge", "A", "--along", "0,1", "--ratio", "1"], "--ratio has no effect with --along"),
        (["merge", "A", "--along", "0,1", "--title", "t"], "--title has no effect without --out"),
        (["merge", "A", "--along", "0,1", "--weights", "ema"], "--weights has no effect with"),
        (["merge", "A", "--along", "0,1"], "is not a run directory"),
        (["merge", "A", "B", "--out", "o"], "The model A does not exist"),
        (["extract-lora", "A", "B", "--out", "o.ckpt"], "a LoRA is written as"),
        (
            ["extract-lora", "A", "B", "--rank", "4", "--full-rank", "--out", "o.safetensors"],
            "--full-rank keeps everything",
        ),
        (
            ["extract-lora", "A", "B", "--full-rank", "--conv-rank", "0", "--out", "o.safetensors"],
            "--full-rank keeps everything",
        ),
    ],
)
def test_options_that_do_not_go_together(words, message, tmp_path, monkeypatch):
    """Each is reported before a model is opened; the models A and B do not exist."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImpastoError, match=message):
        call(*words)
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_one_model_has_no_average(train_config, tmp_path):
    text = dump_toml(train_config(output_dir=str(tmp_path)))
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="has 0 models on disk, but at least 2 are needed"):
        call("merge", tmp_path, "--formula", "average", "--out", tmp_path / "o")


def test_a_lora_is_drawn_with_as_if_it_were_merged(nano_model, tmp_path, capsys):
    """Two LoRAs with their strengths give the same pixels; the model's own file is not changed."""
    base = as_file(nano_model, tmp_path / "base.safetensors")
    given = []
    for number, strength in ((1, 0.7), (2, -0.4)):
        model = tuned(base, tmp_path / f"{number}.safetensors", number, of_a_lora, size=0.1)
        extracted(base, model, tmp_path / f"lora{number}.safetensors")
        given.append(f"{tmp_path / f'lora{number}.safetensors'}:{strength}")
    merge(base, given, tmp_path / "merged.safetensors")
    before = base.read_bytes()
    size = ("--width", 32, "--height", 32, "--steps", 2)
    asked = [word for spec in given for word in ("--lora", spec)]
    pictures = {}
    for name, words in {
        "plain": (base,), "added": (base, *asked), "merged": (tmp_path / "merged.safetensors",)
    }.items():  # fmt: skip
        call("sample", words[0], "a red ball", *words[1:], *size, "--out", tmp_path / name)
        with Image.open(tmp_path / name / "0000-1.png") as image:
            pictures[name] = np.asarray(image)
            told = image.info["parameters"].splitlines()[0]
        assert told == (
            "a red ball <lora:lora1:0.7> <lora:lora2:-0.4>" if name == "added" else "a red ball"
        )
        said = capsys.readouterr().out
        assert ("lora2.safetensors at -0.4 (" in said) == (name == "added")
    assert np.array_equal(pictures["added"], pictures["merged"])
    assert not np.array_equal(pictures["added"], pictures["plain"])
    assert base.read_bytes() == before


def test_what_is_no_lora_is_not_drawn_with(nano_model, tmp_path):
    base = as_file(nano_model, tmp_path / "base.safetensors")
    with pytest.raises(ImpastoError, match=r"not a LoRA\. A model is named without --lora"):
        call("sample", base, "a cat", "--lora", base, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
