"""`impasto new --goal`: the settings for a goal can be loaded, and their values have reasons."""

import tomllib
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from impasto.cli.new import new
from impasto.config.goal_settings import (
    bucket_sides,
    prompts_of,
    settings_for,
    settings_text,
    steps_for,
)
from impasto.config.goals import GOALS
from impasto.config.load import build_run_config
from impasto.config.material import Material
from impasto.demo.recipe import BASE_MODEL, PICTURES
from impasto.errors import ConfigError, DatasetError, ModelError
from impasto.optimizer_table import USUAL_LR
from impasto.training.planning.exposure import highest_usual_lr, usual_looks

SD1 = Material(
    model="base.safetensors",
    family="SD 1.x, predicts epsilon",
    resolution=512,
    generation="SD 1.x",
    predicts_noise=True,
    takes_clip_skip=True,
    image_dir="pictures",
    images=200,
    captions=["a cat", "a dog", "a cow", "a hen"],
    output_dir="runs/it",
)
SD2_V = replace(
    SD1,
    family="SD 2.x 768-v",
    resolution=768,
    generation="SD 2.x",
    predicts_noise=False,
    takes_clip_skip=False,
)
SDXL = replace(SD1, resolution=1024, generation="SDXL", takes_clip_skip=False)
CONFIGS = Path(__file__).parents[2] / "configs"


@given(
    st.sampled_from([*GOALS]),
    st.integers(1, 10**6),
    st.integers(64, 4096),
    st.one_of(st.none(), st.integers(1, 200)),
    st.lists(st.text(max_size=400), max_size=6),
    st.sampled_from(["SD 1.x", "SD 2.x", "SDXL"]),
)
def test_every_goal_gives_settings_that_load(name, images, resolution, vram, captions, generation):
    material = replace(
        SD1,
        images=images,
        resolution=resolution,
        vram=vram,
        captions=captions,
        generation=generation,
    )
    text = settings_text(GOALS[name], material)
    tree = tomllib.loads(text)
    assert tree == settings_for(GOALS[name], material)[0]
    config = build_run_config(tree, source="it")
    assert config.training.memory == (vram or "auto")
    assert config.training.max_steps == steps_for(GOALS[name], material)


EXAMPLE_IMAGES = {"style": 200, "subject": 25, "large": 6400}
"""Numbers of images that suit the values of an example."""


def test_the_values_are_those_of_the_examples():
    for name, goal in GOALS.items():
        example = tomllib.loads((CONFIGS / f"{goal.example}.toml").read_text(encoding="utf-8"))
        if name == "scratch":
            continue  # trains parts that the example does not
        assert goal.lr == example["optimizer"]["lr"]
        training = example["training"]
        assert goal.batch == training["batch_size"] * training["gradient_accumulation_steps"]
        assert goal.noise_offset == example["noise"]["offset"]
        assert goal.text_encoder == ("method" in example)
        assert goal.held_out == round(EXAMPLE_IMAGES[name] * example["validation"]["split"])
    assert steps_for(GOALS["style"], SD1) == 2000
    assert steps_for(GOALS["subject"], replace(SD1, images=25)) == 800
    assert settings_for(GOALS["style"], SD2_V)[0]["optimizer"]["lr"] == 3e-6


def test_steps_follow_the_number_of_images_within_bounds():
    for goal in GOALS.values():
        numbers = [
            steps_for(goal, replace(SD1, images=images))
            for images in (1, 10, 100, 1000, 10**5, 10**7)
        ]
        assert numbers == sorted(numbers)
        assert (numbers[0], numbers[-1]) == goal.steps
        assert all(number % 10 == 0 for number in numbers)


@pytest.mark.parametrize(
    ("vram", "size", "waits"), [(8, 1, 1), (11, 1, 1), (12, 2, 1), (16, 1, 4), (None, 1, 4)]
)
def test_sdxl_on_a_small_card_lets_no_gradients_wait(vram, size, waits):
    """Gradients are freed one by one, or it does not fit; the number of images seen is the same."""
    tree, reasons = settings_for(GOALS["style"], replace(SDXL, vram=vram))
    training = tree["training"]
    assert (training["batch_size"], training["gradient_accumulation_steps"]) == (size, waits)
    assert training["max_steps"] * size * waits == 2000 * 4
    usual = settings_for(GOALS["style"], SDXL)[0]["optimizer"]["lr"]
    assert tree["optimizer"]["lr"] == pytest.approx(usual * (size * waits / 4) ** 0.5, rel=0.02)
    assert ("freed one by one" in reasons["training.gradient_accumulation_steps"]) == (waits == 1)


@pytest.mark.parametrize(
    ("vram", "free_gib", "half", "size", "waits"),
    [
        (8, None, None, 2, 1), (8, None, "bf16", 1, 4), (6, None, "fp16", 2, 1),
        (4, None, "bf16", 2, 1), (12, None, None, 1, 4), (None, 7.6, "fp16", 2, 1),
        (None, 7.6, "bf16", 1, 4), (None, 11.6, "fp16", 1, 4), (None, None, None, 1, 4),
    ],
)  # fmt: skip
def test_sd_on_a_small_card_lets_no_gradients_wait(vram, free_gib, half, size, waits):
    """Without bf16, weights are float32; the free memory of this machine's GPU counts too."""
    material = replace(SD1, vram=vram, free_gib=free_gib, half=half)
    training = settings_for(GOALS["style"], material)[0]["training"]
    assert (training["batch_size"], training["gradient_accumulation_steps"]) == (size, waits)
    assert training["max_steps"] * size * waits == 2000 * 4


def test_a_resolution_that_the_model_was_not_trained_at_is_told():
    asked = settings_text(GOALS["style"], replace(SD1, resolution=640, native=512))
    assert "resolution = 640  # as asked for; the model was trained at 512" in asked
    usual = settings_text(GOALS["style"], replace(SD1, native=512))
    assert "resolution = 512  # what the model was trained at" in usual


def test_the_resolution_brings_its_buckets_and_previews():
    assert bucket_sides(512) == (256, 1024, 64)
    tree, _ = settings_for(GOALS["style"], SD2_V)
    assert (tree["dataset"]["resolution"], tree["dataset"]["max_bucket_reso"]) == (768, 1280)
    assert (tree["previews"]["width"], tree["previews"]["height"]) == (768, 768)
    assert "min_bucket_reso" not in settings_for(GOALS["style"], SD1)[0]["dataset"]


def test_clip_skip_is_set_only_where_asked_for_and_meant():
    assert "clip_skip" not in settings_for(GOALS["style"], SD1)[0]["model"]
    asked = replace(SD1, clip_skip=2)
    assert settings_for(GOALS["style"], asked)[0]["model"]["clip_skip"] == 2
    with pytest.raises(ConfigError, match="leave --clip-skip out"):
        settings_for(GOALS["style"], replace(SD2_V, clip_skip=2))


def test_a_subjects_name_is_learnt_by_the_text_encoder_for_a_while():
    """The rate is half of the U-Net's for SD 1, a third with two layers for SD 2; SDXL does not
    train it."""
    subject = GOALS["subject"]
    few = replace(SD1, images=25)
    example = tomllib.loads((CONFIGS / "subject-12gb.toml").read_text(encoding="utf-8"))
    assert settings_for(subject, few)[0]["method"] == example["method"]
    of_sd2 = settings_for(subject, replace(few, generation="SD 2.x"))[0]
    rate = of_sd2["optimizer"]["lr"]
    assert of_sd2["method"]["text_encoder_lr"] == pytest.approx(0.3 * rate, rel=0.05)
    assert of_sd2["method"]["text_encoder_layers"] == 2
    assert "method" not in settings_for(subject, SDXL)[0]
    assert "method" not in settings_for(GOALS["style"], SD1)[0]


def test_a_slight_noise_offset_is_for_models_that_predict_noise():
    assert settings_for(GOALS["style"], SD1)[0]["noise"]["offset"] == 0.02
    assert settings_for(GOALS["style"], SDXL)[0]["noise"]["offset"] == 0.05
    assert "noise" not in settings_for(GOALS["style"], SD2_V)[0]
    assert "noise" not in settings_for(GOALS["scratch"], SD1)[0]


@pytest.mark.parametrize("name", ["style", "subject", "large"])
@pytest.mark.parametrize("generation", ["SD 1.x", "SD 2.x", "SDXL"])
def test_what_a_goal_sets_is_what_is_called_usual(name, generation):
    """Presets and advice have separate tables, which must not contradict each other."""
    goal = GOALS[name]
    for images in {"subject": (15, 25, 50), "style": (50, 200, 1000), "large": (5000, 10**5)}[name]:
        tree, _ = settings_for(goal, replace(SD1, generation=generation, images=images))
        looks = tree["training"]["max_steps"] * goal.batch / images
        low, high = usual_looks(images)
        assert low <= looks <= high
        assert USUAL_LR[0] <= tree["optimizer"]["lr"]
        assert tree["optimizer"]["lr"] <= highest_usual_lr(USUAL_LR[1], goal.batch)


def test_images_are_held_out_by_number():
    """A fraction of few images is none, and of many images more than a loss needs."""
    assert "validation" not in settings_for(GOALS["style"], replace(SD1, images=4))[0]
    for images, number in ((5, 1), (20, 4), (50, 10), (5000, 10)):
        tree, reasons = settings_for(GOALS["style"], replace(SD1, images=images))
        assert round(tree["validation"]["split"] * images) == number
        assert str(number) in reasons["validation.split"]
        assert tree["saving"]["best_model"]


def test_previews_are_captions_from_all_over():
    captions = [f"image {n}" for n in range(9)]
    assert prompts_of(captions) == ["image 0", "image 3", "image 6"]
    assert prompts_of(["", "  ", "a\nb", "x" * 301, "\udcff", "a", "a"]) == ["a"]
    assert "previews" not in settings_for(GOALS["style"], replace(SD1, captions=[]))[0]


def test_reasons_stand_in_the_file():
    text = settings_text(GOALS["style"], SD1)
    assert "max_steps = 2000  # each image about 42 times at 4 a step\n" in text
    assert "# A style:" in text.splitlines()[0]
    few = settings_text(GOALS["subject"], replace(SD1, images=3))
    told = "max_steps = 300  # each image about 200 times at 2 a step; 300 to 1,600 steps are usual"
    assert told in few


def run_new(*words):
    result = CliRunner().invoke(new, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("goal", GOALS)
def test_the_demos_model_and_images_get_a_file(goal, here):
    """The small model's own resolution is found; `impasto train --plan` takes it (integration)."""
    words = ("--goal", goal, "--data", PICTURES, "--model", BASE_MODEL, "--out", "it.toml")
    assert "Wrote it.toml" in run_new(*words).output
    tree = tomllib.loads((here / "it.toml").read_text(encoding="utf-8"))
    assert tree["dataset"]["resolution"] == 128
    assert tree["dataset"]["min_bucket_reso"] <= 128
    assert tree["previews"]["prompts"][0] == "a sun"
    assert Path(tree["output_dir"]) == Path("runs") / "it"
    build_run_config(tree, source="it")
    run_new(*words[:-2])
    usual = tomllib.loads((here / f"pictures-{goal}.toml").read_text(encoding="utf-8"))
    assert Path(usual["output_dir"]) == Path("runs") / f"pictures-{goal}"


def test_nothing_is_replaced(here):
    (here / "pictures-style.toml").write_text("mine")
    with pytest.raises(ConfigError, match="already exists and was not changed"):
        run_new("--goal", "style", "--data", PICTURES, "--model", BASE_MODEL)
    assert (here / "pictures-style.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["--data", "gone", "--model", BASE_MODEL], DatasetError, "gone"),
        (["--data", PICTURES, "--model", "gone.safetensors"], ModelError, "gone.safetensors"),
    ],
)
def test_what_is_not_there_is_named(words, error, said, here):
    with pytest.raises(error, match=said):
        run_new("--goal", "style", *words)
    assert not [*here.glob("*.toml")]


@pytest.mark.parametrize(
    "words",
    [
        ["--goal", "style"],
        ["--goal", "style", "--data", "x"],
        ["--goal", "other", "--data", "x", "--model", "y"],
        ["--vram", "8"],
        ["style-12gb", "--data", "x"],
        ["style-12gb", "--goal", "style"],
    ],
)
def test_options_that_do_not_go_together_are_refused(words, here):
    assert run_new(*words).exit_code == click.UsageError.exit_code
    assert not [*here.glob("*.toml")]
