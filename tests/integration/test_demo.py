"""The embedded default: its size, its captions, and the demo from the command line."""

import json
import re
import tarfile

import numpy as np
import pytest
import torch
from conftest import impasto
from demo_images import every_fourth
from PIL import Image

from impasto.data.scanning.scan import scan_folder
from impasto.demo.evidence import look_at_drawings
from impasto.demo.recipe import (
    BASE_MODEL,
    CAPTIONER,
    FOLDER,
    HELD_OUT,
    PICTURES,
    TAGGER,
    demo_config,
    held_out_captions,
)
from impasto.models.networks.loading import load_base_model
from impasto.presence import free_path
from impasto.progress import SilentProgress
from impasto.sampling.prompts import Prompt
from impasto.sampling.sampler import Sampler


@pytest.mark.parametrize(
    ("own", "others", "most_mib"),
    [(FOLDER, (TAGGER, CAPTIONER), 16), (TAGGER, (), 4), (CAPTIONER, (), 4)],
    ids=["base model and images", "tagger", "captioner"],
)
def test_it_is_small_enough_for_git_and_the_wheel(tmp_path, own, others, most_mib):
    names = {path.name for path in others}
    with tarfile.open(tmp_path / "demo.tar.gz", "w:gz", compresslevel=1) as archive:
        for path in own.iterdir():
            if path.name not in names:
                archive.add(path)
    assert (tmp_path / "demo.tar.gz").stat().st_size <= most_mib * 2**20


def test_the_pictures_have_words_and_many_shapes():
    scan = scan_folder(PICTURES)
    assert len(scan.records) == 100
    assert scan.uncaptioned_count == 0
    assert scan.skipped == ()
    assert len({round(record.size.aspect, 2) for record in scan.records}) >= 5


def test_no_picture_shows_a_held_out_thing():
    held_out = [record.caption_text for record in scan_folder(HELD_OUT).records]
    assert len(held_out) == 12
    words = " and ".join(record.caption_text for record in scan_folder(PICTURES).records)
    for caption in held_out:
        assert caption not in words.split(" and ")


def test_the_base_model_draws_what_it_is_asked_for():
    """Of twelve training icons the nearest one, as thumbnails, is that of the prompt."""
    sampler = Sampler.of(load_base_model(BASE_MODEL))
    colours = {"a banana": (255, 210, 60), "a tulip": (225, 120, 190), "a frog": (120, 170, 50)}
    means = {}
    for seed, text in enumerate(colours):
        image = sampler.draw(Prompt(text, "", seed, 128, 128, 12, 2.0))
        pixels = np.asarray(image.resize((32, 32), Image.Resampling.BOX), dtype=float)
        shape = pixels.min(axis=2) < 225  # the thing, on white
        assert 0.08 < shape.mean() < 0.9, text
        means[text] = pixels[shape].mean(axis=0)
    for text, mean in means.items():
        distances = {name: np.abs(mean - colour).sum() for name, colour in colours.items()}
        assert min(distances, key=distances.get) == text, (text, mean)


def test_the_default_folder_is_never_taken(tmp_path):
    assert free_path(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert free_path(tmp_path / "demo") == tmp_path / "demo-3"


def test_the_demo_lowers_the_held_out_loss_and_names_what_it_made(tmp_path):
    """With a quarter of the images and few steps, average and warm-up shortened."""
    run, images = tmp_path / "run", every_fourth(tmp_path / "images")
    result = impasto(
        "demo", "--out", run, *sets(
            f"dataset.image_dir={images}", "optimizer.lr=2e-4", "training.batch_size=4",
            "training.max_steps=15", "training.ema_decay=0.8", "schedule.warmup_steps=1",
            "training.fit_check=false", "validation.timesteps=2", "previews.steps=1",
            "previews.width=64", "previews.height=64",
        ),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("impasto train") == 1
    assert str(run / "report.html") in result.stdout.replace("\n", "")
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [r["validation_loss"] for r in map(json.loads, lines) if "validation_loss" in r]
    assert losses[-1] < 0.7 * losses[0]
    settings = demo_config(run)
    assert len(settings.previews.prompts) == 12
    seen = re.findall(r"^(.*?) +\d+ of 12 things recognised", result.stdout, re.MULTILINE)
    assert seen == ["The base model", "The result of 15 steps", "The mixture, 80% result"]
    values = [_first_weights(path) for path in _ends_and_mixture(run)]
    torch.testing.assert_close(values[2], 0.2 * values[0] + 0.8 * values[1], rtol=0, atol=2e-3)
    assert not torch.equal(values[2], values[1])


def sets(*changes):
    return [word for change in changes for word in ("--set", change)]


def _ends_and_mixture(run):
    return [BASE_MODEL, run / "export/run.safetensors", run / "mixed/run-mixed.safetensors"]


def _first_weights(model):
    return load_base_model(model).unet.conv_in.weight.detach()


def drawn(folder, colour):
    """Write twelve samples of one colour; return their folder."""
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (128, 128), colour).save(folder / f"{number:03d}.png")
    return folder


def test_real_drawings_are_recognised_and_plain_paper_is_not(tmp_path):
    (tmp_path / "real").mkdir()
    for number, picture in enumerate(sorted(HELD_OUT.glob("*.webp"))):
        with Image.open(picture) as image:
            image.save(tmp_path / "real" / f"{number:03d}.png")
    folders = {"real": tmp_path / "real", "paper": drawn(tmp_path / "paper", "white")}
    found = look_at_drawings(folders, held_out_captions(), SilentProgress())
    assert (found["real"].recognised, found["real"].asked) == (12, 12)
    assert found["paper"].recognised == 0
    assert found["real"].distance < 1 < found["paper"].distance
