"""The models, images and prompts that runs supply to an evaluation, and names of sample folders."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import draw_images
from runs_made import made_run
from safetensors.torch import load_file, save_file

from impasto.cli.evaluate_images import find_images
from impasto.cli.evaluate_prompts import Prompts
from impasto.cli.evaluate_sources import (
    Source,
    base_models_first,
    emphasis_of_captions,
    first_previews,
    image_folders,
    labels_of,
    run_config,
)
from impasto.errors import ConfigError, DatasetError
from impasto.evaluation.image_features import CaptionedImage
from impasto.evaluation.question import RealImages
from impasto.evaluation.samples import (
    Contestant,
    DrawSettings,
    _file_name,
    _folder_of,
    open_contestant,
)
from impasto.models.reading.opening import OpenOptions
from impasto.progress import SilentProgress

SAID = {"family": "sd1", "prediction_type": "v_prediction", "weights": "ema", "vae": "x/vae",
        "clip_skip": 2}  # fmt: skip


def run(folder, images, held=None, **model):
    settings = {"model": {"path": "x/base", **model}, "dataset": {"image_dir": str(images)}}
    if held is not None:
        settings["validation"] = {"image_dir": str(held)}
    return str(made_run(folder, settings=settings).path)


def sources(*models, without=False, **opened):
    return base_models_first(models, OpenOptions(**opened), without=without)


@pytest.fixture
def spoken(tmp_path):
    """A run that describes its base model completely."""
    return run(tmp_path / "spoken", tmp_path / "none", **SAID)


def test_a_run_in_a_store_is_called_by_its_name():
    """Sample folders are named by it, and Windows allows no colon in names."""
    asked = ["s3://bucket/runs/style", "gs://other/style", "owner/name"]
    assert labels_of(asked) == ["style", "style-2", "owner-name"]


def test_a_base_model_is_opened_as_its_run_opens_it(spoken):
    base, trained = sources(spoken)
    said = OpenOptions("sd1", "v_prediction", "ema", None, "x/vae")
    assert base == Source("x/base", said, 2, is_named=False)
    assert trained == Source(spoken, OpenOptions("sd1", "v_prediction"), 2)  # it has a separate VAE


def test_the_command_line_goes_before_the_run(spoken):
    asked = {"family": "sd2-v", "prediction_type": "epsilon", "weights": "plain", "vae": "y/vae",
             "variant": "fp16"}  # fmt: skip
    base, trained = sources(spoken, **asked)
    assert base.options == trained.options == OpenOptions(**asked)


def test_a_base_model_that_is_given_is_opened_as_its_run_says(spoken):
    given, trained = sources("x/base", spoken)
    assert (given.given, given.options.vae, given.clip_skip) == ("x/base", "x/vae", 2)
    assert trained.given == spoken


def test_a_base_model_is_there_once_for_each_way_in_which_runs_open_it(tmp_path, spoken):
    same = run(tmp_path / "same", tmp_path / "none", **SAID)
    plain = run(tmp_path / "plain", tmp_path / "none")
    found = sources(spoken, same, plain)
    assert [source.options.vae for source in found[:2]] == ["x/vae", None]
    assert [source.given for source in found] == ["x/base", "x/base", spoken, same, plain]
    given = sources("x/base", spoken, same, plain)
    assert [source.options.vae for source in given[:2]] == [None, "x/vae"]
    assert len(given) == 5
    assert len(sources(spoken, plain, without=True)) == 2


def test_images_of_every_run_are_looked_at(tmp_path):
    """Run b was trained on images that a held out: this is reported, and copies are found."""
    pictures, held = draw_images(tmp_path / "a", 6, seed=1), draw_images(tmp_path / "held", 4)
    a, b = run(tmp_path / "run-a", pictures, held), run(tmp_path / "run-b", held)
    for order in ((a, b), (b, a)):
        runs = {Path(path).name: run_config(path) for path in order}
        found = find_images(runs, None, None, SilentProgress())
        assert found.real.source == "the held-out images of run-a"
        assert len(found.training.entries) == 10
        assert "run-a" in found.training.source
        assert "run-b" in found.training.source
        assert set(found.trained_on["run-b"]) == {p.path for p in found.real.entries}
        assert not {p.path for p in found.real.entries} & set(found.trained_on["run-a"])


def test_a_base_model_that_is_a_run_comes_after_those_that_were_named(tmp_path):
    """A base model run's images are compared too, but may be missing: they were not requested."""
    held = draw_images(tmp_path / "held", 4)
    first = run(tmp_path / "first", tmp_path / "gone", tmp_path / "gone too")
    second = run(tmp_path / "second", draw_images(tmp_path / "a", 6, seed=1), held, path=first)
    found = sources(second)
    assert [source.is_named for source in found] == [False, True]
    both = sources(first, second)
    assert [source.given for source in both if source.is_named] == [first, second]
    named, others = ({"x": run_config(path)} for path in (second, first))
    images = find_images(named, None, None, SilentProgress(), others)
    assert images.real.source == "the held-out images of x"
    assert len(images.training.entries) == 6


def test_previews_of_a_run_that_was_named_go_before_those_of_its_base(tmp_path):
    def previews(side):
        return {"previews": {"prompts": ["a"], "width": side, "height": side}}

    base = str(made_run(tmp_path / "base", settings=previews(64)).path)
    settings = {"model": {"path": base}, **previews(72)}
    tuned = str(made_run(tmp_path / "tuned", settings=settings).path)
    found = first_previews(sources(tuned))
    assert (found.size, found.number) == ((72, 72), 1)


def test_images_that_are_gone_are_told(tmp_path):
    held = draw_images(tmp_path / "held", 4)
    runs = {"b": run_config(run(tmp_path / "run", tmp_path / "gone"))}
    with pytest.raises(DatasetError, match=r"run b cannot be read.*give both --images"):
        find_images(runs, held, None, SilentProgress())
    found = find_images(runs, held, held, SilentProgress())
    assert "training images of b cannot be read" in found.notes[0]
    assert found.training is found.real
    with pytest.raises(ConfigError, match="no run among the models has held-out images"):
        find_images({"c": run_config(run(tmp_path / "c", held))}, None, None, SilentProgress())


def test_the_folders_of_runs_are_known(tmp_path, spoken):
    held = tmp_path / "held"
    found = image_folders(sources(spoken, run(tmp_path / "a", tmp_path / "images", held)))
    assert found == [tmp_path / "none", held, tmp_path / "images"]


def real(count):
    names = [f"{n}.png" for n in range(count)]
    pictures = [CaptionedImage(Path(name), f"a (cat) {name}") for name in names]
    return RealImages("images", pictures, str)


def prompts(usual=None, of_captions="off", **options):
    given = {
        "prompts": None, "emphasis": None, "limit": None, "count": 1, "negative": "", "seed": 1,
        "steps": 2, "guidance": 1.0, "sampler": "ddim", "guidance_rescale": 0.0, "width": None,
        "height": None, **options,
    }  # fmt: skip
    return Prompts.of(real(8), given, usual, of_captions)


def contestant(side=512, label="a", **fields):
    return Contestant(label, label, "0" * 64, "SD", (side, side), OpenOptions(), side, **fields)


def test_previews_give_the_size_to_models_of_their_own_family_alone(tmp_path):
    settings = {"previews": {"prompts": ["a"], "width": 640, "height": 576}}
    path = str(made_run(tmp_path / "a", settings=settings).path)
    found = first_previews(sources("other.safetensors", path))
    assert (found.size, found.number) == ((640, 576), 2)
    usual = ((640, 576), 512)
    for side, size in ((512, (640, 576)), (1024, (1024, 1024))):
        drawn = prompts(usual=usual).of_model(contestant(side))
        assert {(p.width, p.height) for p in drawn} == {size}
    drawn = prompts(usual=usual, width=64).of_model(contestant(512))
    assert {(p.width, p.height) for p in drawn} == {(64, 576)}


def test_a_limit_changes_no_image():
    """Samples of `--limit 2` are reused when twice as many are requested, and without a limit."""
    few, more = (prompts(limit=limit, count=2).of_model(contestant()) for limit in (2, 4))
    whole = prompts(count=3).of_model(contestant())
    names = [{_file_name(prompt) for prompt in drawn} for drawn in (few, more, whole)]
    assert [len(some) for some in names] == [4, 8, 24]
    assert names[0] < names[1] < names[2]
    assert len({prompt.seed for prompt in whole}) == 24
    others = prompts(count=3, steps=3).of_model(contestant())
    assert not names[2] & {_file_name(prompt) for prompt in others}


def test_brackets_in_captions_are_words_unless_somebody_says_otherwise(tmp_path):
    assert prompts().emphasis == "off"
    assert prompts(of_captions="no_norm").emphasis == "no_norm"
    assert prompts(of_captions="no_norm", emphasis="mean").emphasis == "mean"
    file = tmp_path / "prompts.txt"
    file.write_text("a ((cat))\n", encoding="utf-8")
    assert prompts(prompts=file).emphasis == "mean"
    assert prompts(prompts=file, emphasis="off").emphasis == "off"
    weighted = run(tmp_path / "a", tmp_path / "none", caption_emphasis="mean")
    assert emphasis_of_captions(sources(weighted)) == "mean"
    assert emphasis_of_captions(sources("x/base")) == "off"


@pytest.fixture
def settings(tmp_path):
    return DrawSettings(tmp_path / "samples", None, torch.device("cpu"))


def test_samples_belong_to_what_they_were_drawn_with(tmp_path, settings, nano_model):
    """Another VAE in the same file, another prediction type or clip skip get other folders."""
    vae = tmp_path / "vae"
    shutil.copytree(nano_model / "vae", vae)

    def folder(clip_skip=None, **options):
        opened = open_contestant(
            str(nano_model), "nano", OpenOptions(**options), SilentProgress(), clip_skip
        )
        return _folder_of(opened, settings).name

    before = folder(vae=str(vae))
    assert folder(vae=str(vae)) == before
    [file] = vae.glob("*.safetensors")
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + 1
    save_file(tensors, file, metadata={"format": "pt"})
    found = {before, folder(vae=str(vae)), folder(), folder(prediction_type="v_prediction"),
             folder(clip_skip=2)}  # fmt: skip
    assert len(found) == 5


def test_samples_are_found_under_whatever_label_they_were_drawn(settings):
    first = _folder_of(contestant(label="a"), settings)
    first.mkdir(parents=True)
    assert _folder_of(contestant(label="a-2"), settings) == first
    other = contestant(label="a", made_of={"prediction_type": "v_prediction"})
    assert _folder_of(other, settings) != first
    weighted = DrawSettings(settings.folder, None, settings.device, "mean")
    assert _folder_of(contestant(label="a"), weighted) != first
    skipped = DrawSettings(settings.folder, 2, settings.device)
    assert _folder_of(contestant(clip_skip=2), settings) == _folder_of(contestant(), skipped)
    assert _folder_of(contestant(), skipped) != first
