"""Conclusions from validation and image losses about a run, and where the studio shows them."""

import html
import json
import math
import re

import pytest
from conftest import impasto
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_run_status import GONE, make_run

from impasto.runs.image_losses import TIMESTEP_RANGE, read_image_losses
from impasto.runs.learning import (
    NO_CHECKPOINT,
    RISEN,
    checkpoints_of,
    kept_best,
    learning_of,
    nearest,
    read_learning,
    validation_points,
)
from impasto.runs.validations import Validation
from impasto.studio import losses
from impasto.training.saving.own_models import OwnModels


@pytest.mark.parametrize(
    ("points", "word", "overfits"),
    [
        ([(0, 0.5), (10, 0.4), (20, 0.3)], "at its lowest, 0.3000, down from 0.5000", False),
        ([(0, 0.5), (10, 0.3), (20, 0.31)], "after 10 steps and has risen", True),
        ([(0, 0.5), (10, 0.3), (20, 0.303)], "hardly changed since", False),
        ([(0, 0.5), (10, 0.5), (20, 0.505)], "not below that of the base model", False),
        ([(0, 0.5), (10, 0.6)], "over-fitting", True),
    ],
)
def test_a_run_without_losses_of_images_is_judged_by_a_limit(points, word, overfits):
    learning = learning_of([Validation(*point) for point in points])
    assert word in learning.sentence()
    assert "by a fixed limit of 2 %: this run did not record" in learning.sentence()
    assert learning.is_overfitting is overfits


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0.01, 9)), max_size=6))
def test_over_fitting_is_what_has_risen_over_its_lowest(points):
    learning = learning_of([Validation(*point) for point in points])
    if len(points) < 2:
        assert learning is None
        return
    lowest = min(loss for _, loss in points)
    assert learning.best.loss == lowest
    assert learning.is_overfitting == (points[-1][1] > RISEN * lowest)


def test_what_is_no_number_is_no_validation():
    lines = [
        {"step": 1, "validation_loss": math.nan}, {"step": 2, "validation_loss": 1e300},
        {"step": 3, "loss": 1.0}, {"step": "4", "validation_loss": 1.0},
        {"step": 5, "validation_loss": 0.25},
    ]  # fmt: skip
    assert validation_points(lines) == [(5, 0.25)]


def make_models(run, *names):
    (run.path / "models").mkdir()
    for name in names:
        (run.path / "models" / name).write_bytes(b"")
    record = {"written": [f"models/{name}" for name in names]}
    (run.path / "models.json").write_text(json.dumps(record), encoding="utf-8")


@pytest.fixture
def dog(folder):
    run = make_run(
        folder / "dog", phase="finished", step=40, total_steps=40, steps_per_epoch=7, process=GONE
    )
    for step, loss in ((0, 0.5), (20, 0.3), (40, 0.4)):
        run.append_metrics({"step": step, "validation_loss": loss, "time": 1.0})
    return run


def test_checkpoints_are_told_by_their_names(dog):
    names = ("m-step00000020.safetensors", "m-000001.safetensors", "m.safetensors", "m-best")
    make_models(dog, *names)
    (dog.path / "models" / "m-000001.safetensors").unlink()  # its file has been removed
    found = [(c.path.name, c.step) for c in checkpoints_of(dog)]
    assert found == [(names[0], 20), (names[2], 40), (names[3], None)]


@pytest.mark.parametrize(
    ("names", "best"),
    [
        (("m-step00000018.safetensors", "m.safetensors"), "m-step00000018.safetensors"),
        (("m-000003-ema.safetensors", "m.safetensors"), "m-000003-ema.safetensors"),
        (("m-best.safetensors", "m-step00000020.safetensors"), "m-best.safetensors"),
        (("m.safetensors",), "m.safetensors"),
        (("m-best", "m-best-ema"), "m-best-ema"),
        (("m-best-ema.safetensors", "m-best.safetensors"), "m-best-ema.safetensors"),
        (("m-step00000018", "m-step00000018-ema"), "m-step00000018-ema"),
    ],
)
def test_the_best_checkpoint_is_the_nearest_to_the_lowest_loss(dog, names, best):
    make_models(dog, *names)
    learning = read_learning(dog)
    assert nearest(checkpoints_of(dog), learning.best.step).path.name == best
    path, step = kept_best(dog, learning)
    assert path.name == best
    steps = {"best": 20, "step00000018": 18, "000003": 21}
    assert step == next((steps[word] for word in steps if f"-{word}" in best), 40)


def test_the_step_of_the_best_model_is_what_was_written_down_with_it(dog):
    """The lowest metrics may be another step: after a kill they may be incomplete."""
    make_models(dog, "m-best.safetensors", "m-step00000018.safetensors", "m.safetensors")
    record = dog.read_json("models.json")
    own = OwnModels(dog)
    best = dog.path / "models" / "m-best.safetensors"
    own.end_best(best, 37, 0.25)
    assert kept_best(dog, read_learning(dog)) == (best, 37)
    assert dog.read_json("models.json")["written"] == record["written"]
    OwnModels(dog).begin_best(best)  # as after a kill: the step is unknown
    assert kept_best(dog, read_learning(dog)) == (best.with_name("m-step00000018.safetensors"), 18)
    OwnModels(dog).end_best(best, 20, 0.3)
    assert kept_best(dog, read_learning(dog)) == (best, 20)


@pytest.mark.parametrize("settings", ['output_dir = "runs/{}"', '[saving]\nname = "{}"'])
@pytest.mark.parametrize(
    "name", ["cats-20261128", "cats-202611", "dog-best", "dog-ema", "cats-step00000007"]
)
def test_the_name_of_a_run_says_nothing_of_its_models(dog, name, settings):
    """A run's folder name may end with a date, or with a suffix used for models."""
    dog.config_file.write_text(settings.format(name), encoding="utf-8")
    make_models(
        dog, name, f"{name}-2.ckpt", f"{name}-ema.ckpt", f"{name}-step00000020.ckpt",
        f"{name}-000001-ema", f"{name}-best.ckpt",
    )  # fmt: skip
    OwnModels(dog).end_best(dog.path / "models" / f"{name}-best.ckpt", 20, 0.3)
    found = {c.path.name: (c.step, c.is_best, c.is_average) for c in checkpoints_of(dog)}
    assert found == {
        name: (40, False, False), f"{name}-2.ckpt": (40, False, False),
        f"{name}-ema.ckpt": (40, False, True), f"{name}-step00000020.ckpt": (20, False, False),
        f"{name}-000001-ema": (7, False, True), f"{name}-best.ckpt": (20, True, False),
    }  # fmt: skip
    assert kept_best(dog, read_learning(dog))[0].name == f"{name}-best.ckpt"


def test_where_the_base_model_is_best_no_model_is_called_so(dog, client, studio):
    make_models(dog, "m-step00000020.safetensors", "m.safetensors")
    dog.append_metrics({"step": 0, "validation_loss": 0.1, "time": 1.0})
    learning = read_learning(dog)
    assert learning.best.step == 0
    assert kept_best(dog, learning) is None
    words = "the loss was lowest with the base model"
    assert words in client.get(f"/runs/{studio.folders.name_of(dog)}/learning").text
    shown = impasto("show", dog.path)
    assert words in " ".join(shown.stdout.split())


def test_the_page_says_what_is_learnt(client, studio, dog):
    make_models(dog, "m-step00000020.safetensors")
    name = studio.folders.name_of(dog)
    text = client.get(f"/runs/{name}/learning").text
    assert "over-fitting" in text
    assert "m-step00000020.safetensors" in text
    assert "from step 20" in text
    (dog.path / "models.json").unlink()
    assert NO_CHECKPOINT in client.get(f"/runs/{name}/learning").text
    dog.metrics_file.unlink()
    assert "before two validations" in client.get(f"/runs/{name}/learning").text


# losses of images


def write_losses(file, rows):
    lines = ["step,image,timestep,loss", *(",".join(map(str, row)) for row in rows)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_an_image_is_compared_at_the_same_noise(tmp_path):
    """An image shown only at little noise, where every loss is high, is not reported."""
    rows = [(1, "easy", 10, 0.9), (1, "x", 10, 1.1), (2, "bad", 900, 0.2), (2, "y", 900, 0.1)]
    rows += [(3, "y", 900, 0.1), (3, "x", 10, 1.0)]
    write_losses(tmp_path / "l.csv", rows)
    found = {one.image: one for one in read_image_losses(tmp_path / "l.csv")}
    assert list(found) == ["bad", "x", "easy", "y"]
    assert found["bad"].ratio == pytest.approx(0.2 / (0.4 / 3))
    assert found["x"].ratio == pytest.approx(1.05)
    assert found["x"].times == 2
    assert found["bad"].loss == 0.2


ROWS = st.tuples(st.just(1), st.sampled_from("abcd"), st.integers(0, 999), st.floats(0.001, 10.0))


@given(rows=st.lists(ROWS, min_size=1, max_size=30))
def test_ratios_are_those_of_the_definition(rows, tmp_path_factory):
    file = tmp_path_factory.mktemp("losses") / "l.csv"
    write_losses(file, rows)

    def usual(timestep):
        near = [r[3] for r in rows if r[2] // TIMESTEP_RANGE == timestep // TIMESTEP_RANGE]
        return sum(near) / len(near)

    for one in read_image_losses(file):
        ratios = [loss / usual(t) for _, image, t, loss in rows if image == one.image]
        assert one.ratio == pytest.approx(sum(ratios) / len(ratios))
        assert one.times == len(ratios)


def test_the_page_shows_the_worst_images_and_links_those_it_may_show(client, studio, dog, folder):
    name = studio.folders.name_of(dog)
    assert "logging.image_losses" in client.get(f"/runs/{name}/images").text
    inside = folder.parent / "data" / "cats" / 'a"<b>.png'
    rows = [
        (1, "/elsewhere/secret.png", 5, 2.0),
        (1, f'"{str(inside).replace(chr(34), chr(34) * 2)}"', 5, 1.0),
    ]
    write_losses(dog.image_losses_file, rows)
    with dog.image_losses_file.open("a", encoding="utf-8") as file:
        file.write("2,half")
    text = client.get(f"/runs/{name}/images").text
    assert text.count("<li>") == 2
    assert text.count("<a href") == 1
    assert text.index("secret.png") < text.index("a&#34;&lt;b&gt;.png")
    assert "1.33 × the usual loss" in text


def test_the_newest_losses_are_read_once_while_the_file_is_as_it_was(
    client, studio, dog, monkeypatch
):
    read = []

    def reading(file, read_bytes=None):
        read.append(read_bytes)
        return read_image_losses(file, read_bytes)

    monkeypatch.setattr(losses, "read_image_losses", reading)
    write_losses(dog.image_losses_file, [(1, "a.png", 5, 1.0)])
    page = f"/runs/{studio.folders.name_of(dog)}/images"
    assert client.get(page).text == client.get(page).text
    assert read == [losses.NEWEST_BYTES]
    write_losses(dog.image_losses_file, [(1, "a.png", 5, 1.0), (1, "b.png", 5, 1.0)])
    assert "Of 2 images" in client.get(page).text
    assert read == [losses.NEWEST_BYTES] * 2


def test_show_and_report_read_the_end_of_a_long_table_as_the_studio_does(dog, monkeypatch):
    """A run of a million steps has a table of gigabytes."""
    from click.testing import CliRunner

    from impasto.cli.show import show
    from impasto.report import page
    from impasto.runs import image_losses

    rows = [(1, f"{name}.png", 5, 1.0) for name in "abcdefgh"]
    write_losses(dog.image_losses_file, rows)
    for module in (image_losses, losses, page):
        monkeypatch.setattr(module, "NEWEST_BYTES", 40)
    shown = json.loads(CliRunner().invoke(show, [str(dog.path), "--json"]).stdout)
    names = [one["path"] for one in shown["images"]]
    assert names == ["g.png", "h.png"]
    assert [one["path"] for one in page._worst_images(dog, ("paths",))] == names
    assert [one.image for one in losses.worst_images(dog)] == names


def test_a_browser_keeps_thumbnails_of_the_worst_images(client, studio, dog, folder):
    image = folder.parent / "data" / "cats" / "a.png"
    image.parent.mkdir()
    Image.new("RGB", (16, 16)).save(image)
    write_losses(dog.image_losses_file, [(1, str(image), 5, 1.0)])
    text = client.get(f"/runs/{studio.folders.name_of(dog)}/images").text
    address = html.unescape(re.search('src="([^"]*)"', text)[1])
    assert "max-age" in client.get(address).headers["cache-control"]
