"""Runs with regularisation images: counts, exact resuming, and reports.

If this failed, a run would be trained on other numbers of images than its plan and reports show, or
would continue differently after a break.
"""

import csv
import json
import shutil
import tomllib

import pytest
import tomli_w
from click.testing import CliRunner
from conftest import draw_images, impasto
from flat_models import one_level_model
from runs import exported, killed_copy

from impasto.cli.main import impasto as commands
from impasto.config.load import build_run_config
from impasto.config.setting_files import read_toml
from impasto.datasets.build import survey
from impasto.errors import ConfigError, RunError
from impasto.training.trainer import resume, train

nano_model = one_level_model

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture
def settings(run_values, tmp_path, pictures):
    """Settings of a run on thirteen images and a number of class images."""

    def build(count=5, subset=(), general=(), **changes):
        balls = draw_images(tmp_path / "balls", count, seed=3, captions=False)
        sizes = {k: v for k, v in run_values["dataset"].items() if k != "image_dir"}
        regularisation = {"image_dir": str(balls), "is_reg": True, "class_tokens": "a ball"}
        subsets = [{"image_dir": str(pictures)}, {**regularisation, **dict(subset)}]
        values = {
            **run_values,
            "dataset": {**sizes, "datasets": [{"subsets": subsets}], **dict(general)},
        }
        for key, value in changes.items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
        return values

    return build


def run_of(values):
    return build_run_config(values, source="test")


def rows_of(run):
    with run.image_losses_file.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def losses_of(run):
    return [record["loss"] for record in run.read_metrics() if "loss" in record]


def test_with_a_weight_of_1_they_are_images_like_others(settings, tmp_path):
    """With as many class images as training images, weight 1 gives the same run, bit for bit."""
    flagged = train(run_of(settings(13)))
    plain = train(run_of(settings(13, {"is_reg": False}, output_dir=str(tmp_path / "plain"))))
    assert exported(flagged) == exported(plain)
    assert losses_of(flagged) == losses_of(plain)


def test_losses_are_weighted_in_the_step_and_not_in_the_table(settings, tmp_path):
    logging = {"image_losses": True, "every_steps": 1}
    runs = [
        train(
            run_of(
                settings(
                    general={"prior_loss_weight": weight},
                    logging=logging,
                    output_dir=str(tmp_path / str(weight)),
                )
            )
        )
        for weight in (1.0, 0.25)
    ]
    first, second = ([row for row in rows_of(run) if row["step"] == "1"] for run in runs)
    assert first == second  # losses are equal before the first weight update
    assert {"balls" in row["image"] for row in first} == {True, False}
    for run, weight in zip(runs, (1.0, 0.25), strict=True):
        weighted = [
            float(row["loss"]) * (weight if "balls" in row["image"] else 1.0) for row in first
        ]
        assert losses_of(run)[0] == pytest.approx(sum(weighted) / len(weighted), abs=1e-5)
    assert losses_of(runs[1])[1:] != losses_of(runs[0])[1:]


def test_a_broken_off_run_goes_on_as_if_nothing_had_been(settings, tmp_path):
    """The run is resumed across the end of an epoch, with unchanged repeats."""
    values = settings(
        general={"prior_loss_weight": 0.5, "num_repeats": 2},
        training={"max_steps": 18},
        saving={"state_every_steps": 12},
        logging={"image_losses": True, "every_steps": 1},
    )
    whole = train(run_of(values))
    again = resume(killed_copy(whole.path, tmp_path / "again", after=12))
    assert exported(again) == exported(whole)
    assert rows_of(again) == rows_of(whole)
    assert {row["step"] for row in rows_of(whole)} == {str(n) for n in range(1, 19)}
    assert [record["epoch"] for record in again.read_metrics()][11] == 0
    assert [record["epoch"] for record in again.read_metrics()][17] == 1


def test_a_run_is_not_continued_with_other_ones(settings):
    values = settings(training={"max_steps": 1})
    run = train(run_of(values))
    text = run.config_file.read_text(encoding="utf-8")
    for change, name in (
        ({"prior_loss_weight": 0.5}, "prior_loss_weight (was 1.0, is 0.5)"),
        ({"is_reg": False}, "is_reg (was true, is false)"),
        ({"class_tokens": "a thing"}, "dataset (was "),
    ):
        longer = text.replace("max_steps = 1\n", "max_steps = 2\n")
        tree = tomllib.loads(longer)
        (dataset,) = tree["dataset"]["datasets"]
        place = dataset if "prior_loss_weight" in change else dataset["subsets"][1]
        place |= change
        run.config_file.write_text(tomli_w.dumps(tree), encoding="utf-8")
        with pytest.raises(RunError) as caught:
            resume(run.path)
        assert name in str(caught.value)
    run.config_file.write_text(longer, encoding="utf-8")
    assert resume(run.path).saved_steps() == [1, 2]


def test_damaged_images_do_not_count_and_the_plan_says_the_same(settings, pictures, tmp_path):
    """Damaged images are found while encoding, or before; both kinds stay balanced."""
    values = settings(6)
    for path in (pictures / "003.png", pictures / "004.png", tmp_path / "balls" / "001.png"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) - 40])
    run = train(run_of({**values, "training": {**values["training"], "max_steps": 1}}))
    planned = survey(run_of(values), decode=True)
    told, found = planned.balance, run.read_json("dataset.json")
    assert (told.used, told.showings, told.trained) == (5, 11, 11)
    assert (found["regularisation"], found["regularisation_showings"]) == (5, 11)
    assert found["images"] == 11 + 5
    assert {item["path"].rpartition("/")[2] for item in found["set_aside"]} == {
        "003.png", "004.png", "001.png",
    }  # fmt: skip


@pytest.fixture
def folders(tmp_path):
    """A project for train_db.py: folders named by repeats and class."""
    draw_images(tmp_path / "train" / "4_sks ball", 5, captions=False)
    draw_images(tmp_path / "reg" / "1_ball", 8, seed=5, captions=False)
    return tmp_path / "train", tmp_path / "reg"


@pytest.fixture
def folder_run(folders, run_values, tmp_path):
    train_dir, reg_dir = folders
    sizes = {k: v for k, v in run_values["dataset"].items() if k != "image_dir"}
    given = {"train_data_dir": str(train_dir), "reg_data_dir": str(reg_dir)}
    file = tmp_path / "folders.toml"
    values = {**run_values, "dataset": {**sizes, **given, "prior_loss_weight": 0.5}}
    file.write_text(tomli_w.dumps(values), encoding="utf-8")
    return file


def output(*words):
    done = CliRunner().invoke(commands, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_verbs_count_and_show_them(folder_run, tmp_path):
    shown = output("dataset", "plan", folder_run)
    rows = {line[:27].strip(): line[27:].strip() for line in shown.splitlines()}
    assert rows["Usable images"] == "13"
    assert rows["Regularisation images"] == "8"
    assert rows["Captioned by class_tokens"] == "13"
    assert rows["Balance"].startswith("8 of 8 used, 20 showings per epoch beside 20 of")
    data = json.loads(output("train", folder_run, "--plan", "--json"))["data"]
    assert (data["images"], data["regularisation"], data["regularisation_used"]) == (5, 8, 8)
    assert (data["regularisation_showings"], data["balanced_showings"]) == (20, 20)
    shown = " ".join(output("train", folder_run, "--plan").split())
    assert "8 of 8 images used, 20 showings per epoch beside 20" in shown
    page = tmp_path / "page.html"
    output("dataset", "report", folder_run, "--out", page)
    health = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert health["balance"] == {"images": 8, "used": 8, "showings": 20, "trained": 20}
    assert health["showings"] == 40
    assert "regularisation images" in page.read_text(encoding="utf-8")
    shown = json.loads(output("dataset", "captions", folder_run, "--json", "--images", "0"))[
        "images"
    ]
    assert {one["caption"] for showings in shown.values() for one in showings} == {
        "sks ball", "ball",
    }  # fmt: skip


def test_all_verbs_count_after_images_are_held_out(folder_run, tmp_path):
    """4 of 5 images are trained on: 16 showings, and as many of the class."""
    values = read_toml(folder_run)
    values["validation"] = {"split": 0.2}
    folder_run.write_text(tomli_w.dumps(values), encoding="utf-8")
    shown = output("dataset", "plan", folder_run)
    rows = {line[:27].strip(): line[27:].strip() for line in shown.splitlines()}
    assert (rows["Usable images"], rows["Held out"]) == ("12", "1")
    assert rows["Balance"].startswith("8 of 8 used, 16 showings per epoch beside 16 of")
    value = json.loads(output("dataset", "plan", folder_run, "--json"))
    assert (len(value["images"]), value["held_out"]) == (12, 1)
    assert sum(image["repeats"] for image in value["images"] if image["regularisation"]) == 16
    data = json.loads(output("train", folder_run, "--plan", "--json"))["data"]
    assert (data["images"], data["held_out"]) == (4, 1)
    assert (data["regularisation_showings"], data["balanced_showings"]) == (16, 16)
    page = tmp_path / "page.html"
    output("dataset", "report", folder_run, "--out", page)
    health = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert health["balance"] == {"images": 8, "used": 8, "showings": 16, "trained": 16}
    assert health["images"] == 13  # all images are examined
    shown = json.loads(output("dataset", "captions", folder_run, "--json", "--images", "0"))[
        "images"
    ]
    words = [one["caption"] for showings in shown.values() for one in showings]
    assert words.count("ball") == 16
    assert len(shown) == 13  # including the held-out one


def test_metadata_does_not_hold_class_tokens(folders, tmp_path):
    data = tmp_path / "data.toml"
    subset = {"image_dir": str(folders[0] / "4_sks ball"), "class_tokens": "sks ball"}
    data.write_text(tomli_w.dumps({"datasets": [{"subsets": [subset]}]}), encoding="utf-8")
    told = output("dataset", "merge", data, tmp_path / "meta.json")
    assert "does not contain class_tokens and is_reg" in told
    assert not any(json.loads((tmp_path / "meta.json").read_text(encoding="utf-8")).values())


def test_a_run_on_folders(folder_run, folders, tmp_path):
    done = impasto("train", folder_run)
    assert done.returncode == 0, done.stderr
    assert "13, 8 for regularisation, 0 held out" in done.stdout + done.stderr
    written = read_toml(tmp_path / "run" / "config.toml")["dataset"]
    assert "train_data_dir" not in written
    (dataset,) = written["datasets"]
    assert [(s["class_tokens"], s["num_repeats"], s["is_reg"]) for s in dataset["subsets"]] == [
        ("sks ball", 4, False),
        ("ball", 1, True),
    ]
    assert "8 of them for regularisation" in (tmp_path / "run" / "report.html").read_text("utf-8")
    shutil.move(folders[1] / "1_ball", folders[1] / "ball")
    done = impasto("train", folder_run, "--set", f"output_dir={tmp_path / 'other'}")
    assert done.returncode == 2
    assert "has no number of repeats in front of its name" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_bad_settings_end_with_one_sentence(folder_run):
    for change, expected in {
        "dataset.prior_loss_weight=-1": "prior_loss_weight",
        "dataset.class_tokens='a cat'": "dataset.class_tokens has no effect",
    }.items():
        done = CliRunner().invoke(commands, ["train", str(folder_run), "--plan", "--set", change])
        assert isinstance(done.exception, ConfigError)
        assert expected in str(done.exception)
