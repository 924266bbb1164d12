"""`impasto evaluate` as a command: models, a run with its base, reused files and refusals."""

import json
import re
import shutil

import pytest
import torch
from click.testing import CliRunner
from clips import tiny_clip
from conftest import draw_images, impasto
from flat_models import one_level_model
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from runs_made import made_run

from impasto.cli.main import impasto as commands
from impasto.data.pixels.images import read_rgb
from impasto.errors import (
    ConfigError,
    DatasetError,
    ImpastoError,
    ModelError,
    OutOfMemoryError,
    RunError,
)
from impasto.locks import FolderLock
from impasto.models.writing.architectures import write_random_model

nano_model = one_level_model

SMALL = ("--width", "32", "--height", "32", "--steps", "1", "--guidance", "1")
FEW = (*SMALL, "--bootstrap", "50", "--limit", "4")


@pytest.fixture(scope="module")
def other_model(tmp_path_factory, nano_architecture):
    folder = tmp_path_factory.mktemp("models") / "other"
    write_random_model(nano_architecture, folder, seed=1, dtype=torch.float32)
    return folder


def run_here(*words):
    """Run the command in this process; its exceptions are passed on."""
    found = CliRunner().invoke(commands, ["evaluate", *map(str, words)])
    if found.exception is not None:
        raise found.exception
    return found.output


def values_in(folder):
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


def measure(model, name):
    return next(row for row in model["measures"] if row["measure"] == name)


def test_two_models_draw_the_same_prompts_with_the_same_seeds(tmp_path, nano_model, other_model):
    """The whole command in a separate process; a second run draws nothing again."""
    out = tmp_path / "out"
    pictures = draw_images(tmp_path / "pictures", 10)
    training = draw_images(tmp_path / "training", 12, seed=5)
    words = ("evaluate", nano_model, other_model, "--images", pictures, "--training", training,
             "--count", "2", *SMALL, "--bootstrap", "50", "--out", out)  # fmt: skip
    first = impasto(*words)
    assert first.returncode == 0, first.stderr
    for said in ("Drawing with nano", "Kernel distance to the real images (lower is better)",
                 "10 prompts are few", "evaluation.html"):  # fmt: skip
        assert said in first.stdout
    values = values_in(out)
    assert [model["name"] for model in values["models"]] == ["nano", "other"]
    assert (values["prompts"], values["images_per_prompt"]) == (10, 2)
    assert (values["features"][0]["width"], values["features"][0]["frechet_draws"]) == (448, 50)
    assert values["drawing"]["emphasis"] == "off"
    for model in values["models"]:
        assert measure(model, "copies")["value"] == 0
        assert measure(model, "kernel_distance")["low"] < measure(model, "kernel_distance")["high"]
    assert "against_first" not in measure(values["models"][0], "kernel_distance")
    assert measure(values["models"][1], "kernel_distance")["against_first"]["verdict"]
    assert measure(values["models"][1], "frechet_distance")["against_first"]["verdict"] is None
    assert "differences were judged" in first.stdout
    assert "None" not in first.stdout
    seeds = [
        [re.search(r"-(\d+)\.png$", sample["file"])[1] for sample in pair["samples"][:2]]
        for pair in values["pairs"]
    ]
    assert seeds == [[str(1 + n), str(11 + n)] for n in range(10)]
    folders = sorted((out / "samples").iterdir())
    assert [len(list(folder.iterdir())) for folder in folders] == [20, 20]
    assert_whole_page(out, values)

    before = {file: file.stat().st_mtime_ns for file in (out / "samples").rglob("*.png")}
    gone, damaged, *_ = sorted(before)
    content = gone.read_bytes()
    gone.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-40])
    again = run_here(*words[1:])
    assert "nano: 18 images already exist." in again
    assert "Drawing with other" not in again
    assert gone.read_bytes() == content
    after = {file: file.stat().st_mtime_ns for file in (out / "samples").rglob("*.png")}
    assert {file for file in before if after[file] != before[file]} == {gone, damaged}
    assert values_in(out) == values


def assert_whole_page(out, values):
    """Require that a page needs no other file, shows every prompt, and names no folder of this
    machine.
    """
    page = (out / "evaluation.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert page.count("a copy") == 0
    assert page.count('<div class="sheet pair">') == len(values["pairs"])
    assert str(out.parent) not in page
    assert str(out.parent) not in (out / "evaluation.json").read_text(encoding="utf-8")


def test_a_model_that_has_changed_or_draws_otherwise_is_drawn_anew(
    tmp_path, nano_model, other_model, pictures
):
    model = tmp_path / "model"
    shutil.copytree(nano_model, model)
    words = (model, "--images", pictures, "--out", tmp_path / "out", *FEW)
    run_here(*words)
    first = values_in(tmp_path / "out")
    folders = {sample["file"].split("/")[1] for p in first["pairs"] for sample in p["samples"]}
    drawn = set((tmp_path / "out").rglob("*.png"))
    run_here(*words, "--steps", "2")
    assert values_in(tmp_path / "out")["models"][0]["measures"] != first["models"][0]["measures"]
    assert drawn < set((tmp_path / "out").rglob("*.png"))  # existing files stay
    shutil.rmtree(model)
    shutil.copytree(other_model, model)
    run_here(*words)
    changed = values_in(tmp_path / "out")
    assert changed["models"][0]["sha256"] != first["models"][0]["sha256"]
    others = {sample["file"].split("/")[1] for p in changed["pairs"] for sample in p["samples"]}
    assert not others & folders


def test_a_run_that_was_trained_on_what_is_measured_by_is_named(
    tmp_path, nano_model, other_model, pictures
):
    """Run b was trained on images that run a held out; its base model is opened by b's settings."""
    held = draw_images(tmp_path / "held", 4, seed=3)
    runs = []
    for name, images, validation, said in (
        ("a", pictures, {"validation": {"image_dir": str(held)}}, {}),
        ("b", held, {}, {"prediction_type": "v_prediction"}),
    ):
        made = made_run(
            tmp_path / name,
            settings={
                "model": {"path": str(nano_model), **said},
                "dataset": {"image_dir": str(images), "cache_dir": str(tmp_path / "derived")},
                **validation,
            },
        )
        shutil.copytree(other_model, made.export / name)
        runs.append(made.path)
    out = tmp_path / "out"
    run_here(*runs, "--out", out, *FEW)
    values = values_in(out)
    assert any("those that b was trained on" in note for note in values["notes"])
    assert values["images"]["place"] == "the held-out images of a"
    assert values["training"]["images"] == 17
    assert [model["name"] for model in values["models"]] == ["nano", "nano-2", "a", "b"]
    said = [model["opened_with"]["prediction_type"] for model in values["models"]]
    assert said == ["epsilon", "v_prediction", "epsilon", "v_prediction"]
    for folder in (held, pictures):
        with pytest.raises(ConfigError, match="count as real images"):
            run_here(*runs, "--images", draw_images(tmp_path / "others", 2), "--training", held,
                     "--out", folder / "evaluation", *FEW)  # fmt: skip


def test_brackets_in_captions_are_drawn_as_they_are_trained(tmp_path, nano_model):
    real = draw_images(tmp_path / "real", 2)
    for n in range(2):
        (real / f"{n:03d}.txt").write_text("a (((banana)))", encoding="utf-8")

    def drawn(*words):
        run_here(nano_model, "--images", real, "--out", tmp_path / "out", *FEW, *words)
        values = values_in(tmp_path / "out")
        return [(tmp_path / "out" / s["file"]).read_bytes() for s in values["pairs"][0]["samples"]]

    def texts():
        return {m["measure"] for m in values_in(tmp_path / "out")["models"][0]["measures"]}

    plain = drawn()
    assert "prompt_tags" not in texts()  # the tag is banana, the caption (((banana)))
    assert drawn("--emphasis", "off") == plain
    assert drawn("--emphasis", "mean") != plain
    assert "prompt_tags" in texts()


def test_images_say_how_text_was_read_and_those_of_earlier_versions_are_kept(tmp_path, nano_model):
    real = draw_images(tmp_path / "real", 1)
    words = (nano_model, "--images", real, "--out", tmp_path / "out", *FEW, "--clip-skip", "2")
    run_here(*words)
    (file,) = (tmp_path / "out" / "samples").rglob("*.png")
    with Image.open(file) as image:
        own = image.text["parameters"]
        assert own.endswith(", Clip skip: 2, Emphasis: None")
        earlier = PngInfo()
        earlier.add_text("parameters", own.removesuffix(", Clip skip: 2, Emphasis: None"))
        image.save(file, pnginfo=earlier)
    before = file.read_bytes()
    run_here(*words)
    assert file.read_bytes() == before


def test_memory_that_runs_out_is_told_with_where(tmp_path, nano_model, pictures, monkeypatch):
    from impasto.evaluation import evaluate
    from impasto.sampling.sampler import Sampler

    def full(*_, **__):
        raise MemoryError

    words = (nano_model, "--images", pictures, "--out", tmp_path / "out", *FEW)
    with monkeypatch.context() as patched:
        patched.setattr(Sampler, "draw", full)
        with pytest.raises(OutOfMemoryError, match=r"while drawing\. Draw smaller images"):
            run_here(*words)
    monkeypatch.setattr(evaluate, "measure", full)
    with pytest.raises(OutOfMemoryError, match=r"while measuring\. Use a smaller feature network"):
        run_here(*words)


def test_a_run_brings_its_base_model_and_its_images(tmp_path, nano_model, other_model, pictures):
    held = draw_images(tmp_path / "held", 5, seed=3)
    run = made_run(
        tmp_path / "style",
        settings={
            "model": {"path": str(nano_model)},
            "dataset": {"image_dir": str(pictures), "cache_dir": str(tmp_path / "derived")},
            "validation": {"image_dir": str(held)},
            "previews": {"prompts": ["a ball"], "width": 32, "height": 40},
        },
    )
    shutil.copytree(other_model, run.export / "style")
    out = tmp_path / "out"
    printed = run_here(run.path, "--out", out, "--json", "--steps", "1", "--bootstrap", "50")
    values = json.loads(printed)
    assert values == values_in(out)
    assert [model["name"] for model in values["models"]] == ["nano", "style"]
    assert {(m["width"], m["height"]) for m in values["models"]} == {(32, 40)}
    assert (values["images"]["images"], values["training"]["images"]) == (5, 13)
    assert {row["name"] for row in values["references"]} == {"the real images", "other real images"}
    assert [pair["image"] for pair in values["pairs"]] == [f"{n:03d}.png" for n in range(5)]
    assert not (tmp_path / "derived").exists()  # the dataset is read and not changed
    run_here(run.path, "--without-base", "--out", out, "--steps", "1", "--bootstrap", "50", "--vae",
             other_model / "vae")  # fmt: skip
    [model] = values_in(out)["models"]
    assert model["name"] == "style"
    assert model["opened_with"]["other_vae"] == "other/vae"
    assert len(model["opened_with"]["other_vae_sha256"]) == 64


def test_a_copy_is_found_and_shown(tmp_path, nano_model, pictures, monkeypatch):
    """A model that draws one of its training images again and again is reported."""
    from impasto.sampling.sampler import Sampler

    training = draw_images(tmp_path / "training", 12, seed=5)
    for number in range(12):  # shapes on white are too similar to each other
        noise = torch.randint(0, 256, (4, 4, 3), generator=torch.Generator().manual_seed(number))
        plain = Image.fromarray(noise.to(torch.uint8).numpy())
        plain.resize((32, 32), Image.Resampling.NEAREST).save(training / f"{number:03d}.png")
    drawn = read_rgb(training / "004.png")
    monkeypatch.setattr(Sampler, "draw", lambda *_: drawn)
    out = tmp_path / "out"
    run_here(nano_model, "--images", pictures, "--training", training, "--out", out, *FEW)
    values = values_in(out)
    assert measure(values["models"][0], "copies")["value"] == 1
    assert {sample["nearest"] for pair in values["pairs"] for sample in pair["samples"]} == {
        "004.png"
    }
    assert "a copy" in (out / "evaluation.html").read_text(encoding="utf-8")


def test_prompts_of_a_file_need_no_captions(tmp_path, nano_model, nano_sd2_model):
    """Models of two families draw at their own sizes; the file's sizes and seeds are used."""
    bare = draw_images(tmp_path / "bare", 4, captions=False)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball --w 64 --h 64 --d 7\na blue ball\n", encoding="utf-8")
    out = tmp_path / "out"
    run_here(nano_model, nano_sd2_model, "--images", bare, "--prompts", prompts, "--out", out,
             "--steps", "1", "--height", "72", "--bootstrap", "50")  # fmt: skip
    values = values_in(out)
    assert [pair["prompt"] for pair in values["pairs"]] == ["a red ball", "a blue ball"]
    run_here(nano_model, "--images", bare, "--prompts", prompts, "--out", out, "--limit", "1",
             "--steps", "1", "--bootstrap", "50")  # fmt: skip
    assert [pair["prompt"] for pair in values_in(out)["pairs"]] == ["a red ball"]
    assert all(pair["image"] is None for pair in values["pairs"])
    names = {row["measure"] for row in values["models"][0]["measures"]}
    assert "kernel_distance" in names
    assert "image_similarity" not in names
    assert any("differ in family" in note for note in values["notes"])
    first = sorted((out / "samples").rglob("*-7.png"))
    assert [read_rgb(file).size for file in first] == [(64, 64)] * 2


def test_a_network_that_reads_measures_prompts_and_a_tagger_their_tags(tmp_path, nano_model):
    """A text network measures prompts and a tagger tags; foreign text is escaped on the page."""
    real = draw_images(tmp_path / "real", 4)
    (real / "000.txt").write_text("a banana <script>, \x1b[2J", encoding="utf-8")
    clip = tiny_clip(tmp_path / "tiny-clip", nano_model / "tokenizer")
    out = tmp_path / "out"
    printed = run_here(nano_model, "--images", real, "--features", clip, "--tagger", "demo",
                       "--out", out, *SMALL, "--bootstrap", "50")  # fmt: skip
    assert "\x1b" not in printed
    values = values_in(out)
    assert [(n["name"], n["width"]) for n in values["features"]] == [
        ("demo", None),
        ("tiny-clip", 8),
    ]
    rows = {(row["measure"], row["features"]) for row in values["models"][0]["measures"]}
    assert rows == {
        ("frechet_distance", "tiny-clip"), ("kernel_distance", "tiny-clip"),
        ("image_similarity", "tiny-clip"), ("text_similarity", "tiny-clip"), ("prompt_tags", None),
    }  # fmt: skip
    run_here(nano_model, "--images", real, "--features", clip, "--features", "demo", "--tagger",
             "demo", "--out", out, *SMALL, "--bootstrap", "50")  # fmt: skip
    assert [network["name"] for network in values_in(out)["features"]] == ["demo", "tiny-clip"]
    page = (out / "evaluation.html").read_text(encoding="utf-8")
    assert "a banana &lt;script&gt;" in page
    assert "<script" not in page


def test_one_real_image_has_no_distances(tmp_path, nano_model):
    single = draw_images(tmp_path / "one", 1)
    out = tmp_path / "out"
    run_here(nano_model, "--images", single, "--out", out, *FEW)
    values = values_in(out)
    names = {row["measure"] for row in values["models"][0]["measures"]}
    assert "image_similarity" in names
    assert not names & {"frechet_distance", "kernel_distance"}
    assert measure(values["models"][0], "image_similarity")["low"] is None


def test_black_images_of_nan_are_named(tmp_path, nano_model, other_model, pictures, monkeypatch):
    from impasto.sampling.sampler import Sampler

    drawn, black = [], Image.new("RGB", (32, 32))
    once = Sampler.draw

    def draw(sampler, prompt, *rest):
        drawn.append(prompt)
        return black if len(drawn) == 2 else once(sampler, prompt, *rest)

    monkeypatch.setattr(Sampler, "draw", draw)
    run_here(nano_model, "--images", pictures, "--out", tmp_path / "out", *FEW)
    values = values_in(tmp_path / "out")
    assert values["models"][0]["of_one_colour"] == 1
    assert any("1 of its 4 images are of a single colour" in note for note in values["notes"])
    monkeypatch.setattr(Sampler, "draw", lambda *_: black)
    for _ in range(2):  # even if they already exist
        with pytest.raises(ModelError, match="only images of a single colour"):
            run_here(other_model, "--images", pictures, "--out", tmp_path / "out", *FEW)


def test_what_is_refused_is_refused_before_anything_is_drawn(
    tmp_path, nano_model, pictures, monkeypatch
):
    from impasto.sampling.sampler import Sampler

    monkeypatch.setattr(Sampler, "draw", lambda *_: pytest.fail("something was drawn"))
    monkeypatch.chdir(tmp_path)
    bare = draw_images(tmp_path / "bare", 2, captions=False)
    full = tmp_path / "full"
    full.mkdir()
    (full / "novel.txt").write_text("mine", encoding="utf-8")
    images = ("--images", pictures)
    cases = [
        ((nano_model,), ConfigError, "no real images"),
        ((nano_model, nano_model, *images), ConfigError, "given twice"),
        (("nowhere.safetensors", *images), ModelError, "does not exist"),
        ((nano_model, "--images", tmp_path / "no"), DatasetError, "does not exist"),
        ((nano_model, "--images", bare), DatasetError, r"has a caption.*--prompts"),
        ((nano_model, *images, "--training", tmp_path / "no"), DatasetError, "does not exist"),
        ((nano_model, *images, "--features", "clap"), ConfigError, "no feature network 'clap'"),
        ((nano_model, *images, "--tagger", "clap"), ConfigError, "no model 'clap'"),
        ((nano_model, *images, "--out", pictures / "out"), ConfigError, "count as real images"),
        ((nano_model, *images, "--out", full), ConfigError, "not part of an evaluation"),
        ((nano_model, *images, "--out", full / "novel.txt"), ConfigError, "is a file"),
        ((nano_model, *images, "--sampler", "x"), ConfigError, "no sampler 'x'"),
        ((nano_model, *images, "--width", "33"), ConfigError, "multiple of 8"),
        ((nano_model, *images, "--prompts", "no.txt"), ConfigError, "does not exist"),
        ((nano_model, *images, "--without-base"), ConfigError, "no model is a run"),
        ((nano_model, *images, *["--features", "demo"] * 2), ConfigError, "are called 'demo'"),
    ]  # fmt: skip
    for words, kind, sentence in cases:
        with pytest.raises(kind, match=sentence):
            run_here(*words)
    assert issubclass(ConfigError, ImpastoError)
    assert [path.name for path in full.iterdir()] == ["novel.txt"]


def test_two_processes_do_not_write_the_same_results(tmp_path, nano_model, pictures):
    out = tmp_path / "out"
    out.mkdir()

    def refuse(holder):
        pytest.fail(str(holder))

    with (
        FolderLock(out, "evaluating", refuse),
        pytest.raises(RunError, match="Another process is evaluating"),
    ):
        run_here(nano_model, "--images", pictures, "--out", out, *FEW)
