"""Verbs that read runs and models give the same results for URLs as for folders."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from flat_models import one_level_model
from object_store import put_folder
from runs import StopAt
from safetensors.torch import load_file
from test_runs_in_a_store import told_by

from impasto.cli.main import impasto as commands
from impasto.runs.remote.fetching import is_here
from impasto.runs.remote.local_folders import working_folder
from impasto.runs.remote.reading import is_of_pages_and_models, open_run
from impasto.storage import objects
from impasto.training.trainer import resume, train

nano_model = one_level_model

SAVING = {
    "format": "safetensors",
    "model_every_steps": 2,
    "state_every_steps": 2,
    "posthoc_every_steps": 2,
}
_MADE = {}


@pytest.fixture
def local(train_config, tmp_path_factory):
    """A finished run on a disk with checkpoints and averages; trained once for all tests."""
    if "local" not in _MADE:
        folder = tmp_path_factory.mktemp("local") / "style"
        _MADE["local"] = train(
            train_config(
                output_dir=str(folder),
                saving=SAVING,
                training={"posthoc_ema": True, "max_steps": 4},
                validation={
                    "split": 0.2,
                    "timesteps": 1,
                    "standard_error": 0,
                    "training_images": 1,
                },
                previews={"prompts": ["a red ball"], "width": 64, "height": 64, "steps": 1},
            )
        )
    return _MADE["local"].path


@pytest.fixture
def url(local, bucket, tmp_path, monkeypatch):
    """The same run in a store, from a folder that is still empty."""
    put_folder(local, bucket / "runs" / "style")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return f"s3://{bucket.name}/runs/style"


def refused(*words):
    result = CliRunner().invoke(commands, [str(word) for word in words])
    assert result.exception is not None, result.output
    return result.exception


def same(one, other):
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_models_are_mixed_from_a_url_as_from_a_folder(url, local):
    asked = ("--formula", "average", "--last", 2, "--out")
    told_by("merge", url, *asked, "there.safetensors")
    told_by("merge", local, *asked, "here.safetensors")
    assert same("there.safetensors", "here.safetensors")
    there = told_by("merge", url, "--along", "0,1", "--out", "best.safetensors")
    assert "the result" in there
    told_by("merge", local, "--along", "0,1", "--out", "best-here.safetensors")
    assert same("best.safetensors", "best-here.safetensors")
    asked = ("--sigma-rel", "0.1", "--out")
    told_by("ema", url, *asked, "longer.safetensors")
    told_by("ema", local, *asked, "longer-here.safetensors")
    assert same("longer.safetensors", "longer-here.safetensors")


def test_a_lora_of_a_url_is_added(url, bucket, nano_model):
    told_by("extract-lora", nano_model, url, "--rank", 2, "--out", "style-lora.safetensors")
    objects.upload(Path("style-lora.safetensors"), bucket / "loras" / "style-lora.safetensors")
    lora = f"s3://{bucket.name}/loras/style-lora.safetensors"
    told = told_by("merge", nano_model, "--lora", f"{lora}:0.5", "--out", "there.safetensors")
    assert f"{lora} at 0.5" in told
    asked = ("--lora", "style-lora.safetensors:0.5", "--out", "here.safetensors")
    told_by("merge", nano_model, *asked)
    assert same("there.safetensors", "here.safetensors")
    error = refused("merge", nano_model, "--lora", f"{url}/config.toml", "--out", "no.safetensors")
    assert str(error).startswith(f"{url}/config.toml is neither a safetensors nor")
    assert error.exit_code == 4


def test_a_model_of_a_run_is_published_with_the_card_of_its_run(url):
    asked = ("ada/style", "--license", "creativeml-openrail-m", "--out")
    told_by("publish", url, *asked, "of-run")
    told_by("publish", f"{url}/export/model.safetensors", *asked, "of-export")
    card = Path("of-run/README.md").read_text(encoding="utf-8")
    assert "samples/001.png" in card
    assert Path("of-export/README.md").read_text(encoding="utf-8") == card
    told_by("publish", f"{url}/models/model-step00000002.safetensors", *asked, "on-the-way")
    assert "samples/001.png" in Path("on-the-way/README.md").read_text(encoding="utf-8")
    error = refused("publish", f"{url}/models/none.safetensors", *asked, "none")
    assert f"{url}/models/none.safetensors does not exist" in str(error)
    assert not Path("none").exists()


def test_a_fault_names_the_url_and_not_the_copy_of_it(url, bucket):
    for name in ("config.toml", "models"):
        error = refused("inspect", f"{url}/{name}")
        assert str(error).startswith(f"{url}/{name} is "), error
        assert error.exit_code == 4
    objects.remove(bucket / "runs/style/averages/start.safetensors")
    for step in (2, 4):
        objects.remove(bucket / f"runs/style/averages/step-{step:08d}.safetensors")
    error = refused("ema", url, "--sigma-rel", "0.1", "--out", "no.safetensors")
    assert str(error).startswith(f"{url} has no stored averages"), error
    assert error.exit_code == 5


def test_what_a_resumed_run_has_left_in_the_store_counts(
    train_config, bucket, tmp_path, monkeypatch
):
    """A machine that resumes a run downloads no models: earlier ones are in the store."""
    url, place = f"s3://{bucket.name}/run", bucket / "run"
    saving = {"state_every_steps": 1, "model_every_steps": 1, "format": "safetensors"}
    with pytest.raises(ZeroDivisionError):
        train(train_config(output_dir=url, saving=saving), StopAt(3))
    monkeypatch.setenv("IMPASTO_STORE_CACHE", str(tmp_path / "another machine"))
    with pytest.raises(ZeroDivisionError):
        resume(url, StopAt(4))
    assert is_here(place)
    assert not (working_folder(place) / "models" / "model-step00000001.safetensors").exists()
    found = open_run(place, is_wanted=is_of_pages_and_models)
    steps = [f"model-step{step:08d}.safetensors" for step in (1, 2, 3)]
    assert {name for name in steps if (found.path / "models" / name).is_file()} == set(steps)
    out = tmp_path / "soup.safetensors"
    told = told_by("merge", url, "--formula", "average", "--out", out)
    assert "(A + B + C) / 3" in told
    assert out.is_file()
