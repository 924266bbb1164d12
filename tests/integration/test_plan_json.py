"""`impasto train --plan --json`, also of settings written by `impasto new`."""

import json
import shutil
import tomllib

import pytest
from click.testing import CliRunner
from conftest import impasto
from flat_models import one_level_model, write_bare_model
from PIL import Image

from impasto.cli.new import new
from impasto.cli.plan import plan_as_json
from impasto.config.goals import GOALS
from impasto.config.load import load_run_config
from impasto.demo.recipe import PICTURES

nano_model = one_level_model


@pytest.fixture(scope="module")
def model(tmp_path_factory, nano_architecture):
    """A model of few operations: each plan simulates its steps."""
    folder = write_bare_model(nano_architecture, tmp_path_factory.mktemp("models") / "bare")
    (folder / "impasto.json").unlink()  # random weights cause one warning, and no others
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("made")
    words = ("--data", PICTURES, "--model", model, "--output-dir", folder / "run")
    done = impasto("new", "--goal", "style", *words, "--out", folder / "it.toml")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_plan_is_one_json_object(made):
    """The JSON has the numbers of the text, and nothing is written."""
    changes = ("optimizer.lr=1", "training.gradient_accumulation_steps=40")
    sets = [word for change in changes for word in ("--set", change)]
    done = impasto("train", made / "it.toml", "--plan", "--json", *sets)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    steps = tomllib.loads((made / "it.toml").read_text(encoding="utf-8"))["training"]["max_steps"]
    assert plan["error"] is None
    assert plan["data"]["images"] + plan["data"]["held_out"] == 100
    assert sum(plan["data"]["buckets"].values()) == plan["data"]["images"]
    assert plan["steps"]["total"] == steps
    assert plan["steps"]["seconds"] == pytest.approx(steps * plan["steps"]["seconds_each"])
    assert sum(plan["memory"]["parts"].values()) == plan["memory"]["total"] > 0
    assert plan["memory"]["budget"] > 0
    assert plan["disk"]["total_bytes"] > plan["disk"]["model_bytes"] > 0
    assert any("10 to 120 is usual for 90 images" in line for line in plan["warnings"])
    assert plan["changed"]["optimizer.lr"] == 1
    assert not (made / "run").exists()


def make_settings(goal, data, model, file):
    """Run `impasto new` in this process."""
    words = ["--goal", goal, "--data", data, "--model", model, "--out", file,
             "--output-dir", file.parent / "run"]  # fmt: skip
    assert CliRunner().invoke(new, [str(word) for word in words]).exit_code == 0


def test_masks_beside_the_images_are_set_counted_and_missed(tmp_path, model):
    """The settings for a goal use the masks; without that line, the plan reports them as unused."""
    data, masks = tmp_path / "cats", tmp_path / "cats-masks"
    for folder in (data, masks):
        folder.mkdir()
    pictures = sorted(PICTURES.glob("*.webp"))[:4]
    for picture in pictures:
        shutil.copy(picture, data)
        shutil.copy(picture.with_suffix(".txt"), data)
    for picture in pictures[:3]:
        with Image.open(picture) as image:
            mask = Image.new("L", image.size, 255)
        mask.save((masks / picture.name).with_suffix(".png"))
    file = tmp_path / "it.toml"
    make_settings("style", data, model, file)
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    found = {}
    for name in ("with", "without"):
        kept = [line for line in lines if name == "with" or not line.startswith("mask_dir")]
        file.write_text("".join(kept), encoding="utf-8")
        plan, error = plan_as_json(load_run_config(file))
        assert error is None
        unused = [line for line in plan["warnings"] if "dataset.mask_dir is not set" in line]
        found[name] = plan["data"]["masked"], unused
    assert found["with"] == (3, [])
    assert found["without"][0] == 0
    assert [line.split(" ")[0] for line in found["without"][1]] == ["3"]


def test_wrong_settings_are_named_by_their_keys(made):
    wrong = ("--set", "training.max_steps=0", "--set", "training.speed=3")
    done = impasto("train", made / "it.toml", "--plan", "--json", *wrong)
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["kind"] == "ConfigError"
    assert set(error["settings"]) == {"training.max_steps", "training.speed"}
    assert "training.speed" in error["message"]


def test_what_would_stop_the_run_comes_with_the_numbers(made):
    changes = ("training.memory=1", "training.batch_size=32", "dataset.resolution=1024",
               "dataset.max_bucket_reso=2048")  # fmt: skip
    sets = [word for change in changes for word in ("--set", change)]
    done = impasto("train", made / "it.toml", "--plan", "--json", *sets)
    plan = json.loads(done.stdout)
    assert done.returncode == 9
    assert plan["error"]["kind"] == "OutOfMemoryError"
    assert plan["memory"]["total"] > plan["memory"]["budget"] == 2**30


def test_json_belongs_to_plan(made):
    done = impasto("train", made / "it.toml", "--json")
    assert done.returncode == 2
    assert "--json works only with --plan" in done.stderr
    assert not (made / "run").exists()


def test_every_goal_can_be_planned(tmp_path, model):
    for goal in GOALS:
        file = tmp_path / f"{goal}.toml"
        make_settings(goal, PICTURES, model, file)
        config = load_run_config(file, [f"dataset.cache_dir={tmp_path / 'cache'}"])
        plan, error = plan_as_json(config)
        assert error is None
        assert plan["steps"]["total"] == config.training.max_steps
