"""Images, models and settings of earlier runs are kept; dry runs write nothing."""

import json
from importlib import resources
from pathlib import Path

import pytest
from click.testing import CliRunner
from flat_models import one_level_model
from PIL import Image
from runs import StopAt

from impasto.cli.main import impasto as commands
from impasto.errors import ConfigError, RunError
from impasto.runs import RunDirectory
from impasto.runs.learning import checkpoints_of
from impasto.training.events import SilentEvents
from impasto.training.saving.own_models import OwnModels
from impasto.training.saving.run_models import models_of_run
from impasto.training.trainer import resume, train

nano_model = one_level_model

ONE_FILE = {"format": "safetensors", "name": "my"}


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def impasto(*words):
    """Run a command in this process."""
    return CliRunner().invoke(commands, [str(word) for word in words])


def test_samples_of_an_earlier_call_stay(nano_model, tmp_path):
    small = ("--width", 32, "--height", 32, "--steps", 1, "--out", tmp_path / "o", "--grid")
    assert impasto("sample", nano_model, "a sun", "a sea", *small).exit_code == 0
    before = contents(tmp_path / "o")
    assert impasto("sample", nano_model, "a moon", *small).exit_code == 0
    after = contents(tmp_path / "o")
    assert before.items() <= after.items()
    assert {str(p) for p in after.keys() - before.keys()} == {"0002-1.png", "grid-2.png"}


@pytest.mark.parametrize("form", ["safetensors", "ckpt", "diffusers"])
def test_a_run_is_drawn_at_the_size_it_was_trained_at(form, train_config, tmp_path):
    run = train(train_config(saving={"format": form}, training={"max_steps": 1}))
    done = impasto("sample", run.path, "a", "--steps", 1, "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "o" / "0000-1.png") as image:
        assert image.size == (80, 80)


def test_prompts_that_are_cut_are_said(nano_model, tmp_path):
    small = ("--width", 32, "--height", 32, "--steps", 1, "--out", tmp_path / "o")
    done = impasto("sample", nano_model, "cat " * 224, "cat " * 226, *small)
    assert done.exit_code == 0, done.output
    assert "Warning: 1 prompt has over 225 tokens" in done.output
    assert "the rest is ignored: 'cat cat" in done.output.replace("\n", " ")


def test_the_file_says_how_text_was_read_where_that_is_not_the_usual(nano_model, tmp_path):
    words = ("sample", nano_model, "a (cat)", "--width", 32, "--height", 32, "--steps", 1)
    texts = []
    for more in ((), ("--clip-skip", 2, "--emphasis", "no_norm")):
        assert impasto(*words, *more, "--out", tmp_path / "o").exit_code == 0
        with Image.open(tmp_path / "o" / f"{len(texts):04d}-1.png") as image:
            texts.append(image.info["parameters"])
    assert texts[1] == f"{texts[0]}, Clip skip: 2, Emphasis: No norm"


def test_keep_models_counts_own_models_only(train_config, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("my-step00000007", "my-000009", "my-step00000008-ema", "other"):
        (folder / f"{name}.safetensors").write_text("earlier")
    before = contents(folder)
    saving = {**ONE_FILE, "model_dir": str(folder), "model_every_steps": 1, "keep_models": 2}
    config = train_config(saving={**saving, "state_every_steps": 2}, training={"max_steps": 4})
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(3))
    resume(config.output_dir)
    assert before.items() <= contents(folder).items()
    new = sorted(p.name for p in contents(folder).keys() - before.keys())
    assert new == ["my-step00000002.safetensors", "my-step00000003.safetensors", "my.safetensors"]


def test_models_of_an_attempt_that_was_given_up_are_none_of_the_next(train_config, tmp_path):
    """An abandoned attempt's states and one model were moved away; the new models are kept."""
    folder = tmp_path / "models"
    saving = {"name": "my", "format": "safetensors", "model_dir": str(folder), "keep_models": 2}
    config = train_config(saving={**saving, "model_every_steps": 1, "state_every_steps": 1})
    run = RunDirectory(config.output_dir)
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(4))
    *_, moved, last = sorted(folder.iterdir())
    run.states.rename(tmp_path / "states")
    moved.rename(tmp_path / moved.name)
    told = StopAt(2)
    told.note = (notes := []).append
    with pytest.raises(ZeroDivisionError):
        resume(run.path, told)
    (first,) = models_of_run(run)
    assert first.name == "my-step00000001.safetensors"
    assert [checkpoint.path for checkpoint in checkpoints_of(run)] == [first]
    assert sorted(folder.iterdir()) == [first, last]
    assert "1 model is left from an earlier attempt" in " ".join(notes)
    moved.write_text("of another program", encoding="utf-8")
    own = OwnModels(run)
    assert own.claim(moved) == moved.with_stem(f"{moved.stem}-2")
    assert own.claim(last) == last


def test_a_run_that_would_replace_models_does_not_begin(train_config, tmp_path):
    taken = [tmp_path / f"{name}.safetensors" for name in ("my", "my-step00000004", "my-best")]
    for file in taken:
        file.write_text("earlier")
    saving = {**ONE_FILE, "model_dir": str(tmp_path), "model_every_steps": 2, "best_model": True}
    config = train_config(saving=saving, validation={"split": 0.2})
    with pytest.raises(RunError, match=r"my.*\.safetensors \(and 2 more\) already exists"):
        train(config)
    assert not config.output_dir.exists()
    assert {file.read_text() for file in taken} == {"earlier"}


def test_models_are_replaced_where_that_is_asked(train_config, tmp_path):
    (tmp_path / "my.safetensors").write_text("earlier")
    saving = {**ONE_FILE, "model_dir": str(tmp_path), "overwrite": True}
    train(train_config(saving=saving, training={"max_steps": 1}))
    assert (tmp_path / "my.safetensors").stat().st_size > 1000
    with pytest.raises(ConfigError, match="overwrite has no effect without model_dir"):
        train_config(saving={"overwrite": True})


@pytest.mark.parametrize("form", ["safetensors", "diffusers"])
def test_a_model_that_another_program_has_open_ends_no_run(train_config, monkeypatch, form):
    """A model open in another program, as on Windows: reported once, and removed later."""
    held, notes = "my-step00000001", []
    unlink, replace = Path.unlink, Path.replace

    class Noting(SilentEvents):
        def note(self, message):
            notes.append(message)

    def refusing(real):
        def act(path, *args, **options):
            newest = path.with_name(path.name.replace("00000001", "00000003"))
            if path.stem == held and not newest.exists():  # closed when that is written
                raise PermissionError(13, "being used by another process", str(path))
            return real(path, *args, **options)

        return act

    monkeypatch.setattr(Path, "unlink", refusing(unlink))
    monkeypatch.setattr(Path, "replace", refusing(replace))
    saving = {"name": "my", "format": form, "model_every_steps": 1, "keep_models": 1}
    run = train(train_config(saving=saving, training={"max_steps": 4}), Noting())
    assert len([note for note in notes if "could not be removed" in note]) == 1
    assert [path.stem for path in (run.path / "models").iterdir()] == ["my-step00000003"]


def test_a_name_that_was_taken_meanwhile_is_left(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    own = OwnModels(run)
    own.begin()
    target = tmp_path / "my.safetensors"
    assert own.claim(target) == target
    target.write_text("own")
    assert OwnModels(run).claim(target) == target
    other = tmp_path / "other.safetensors"
    other.write_text("of another")
    assert own.claim(other).name == "other-2.safetensors"


def test_imported_settings_replace_no_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("mine")
    command = "fine_tune.py --pretrained_model_name_or_path=a --output_dir=o --dataset_config=d"
    done = impasto("import-command", command, "--out", file)
    assert done.exception.exit_code == 5
    assert file.read_text() == "mine"


@pytest.mark.parametrize("verb", ["tag", "clean", "plan"])
def test_dry_runs_write_nothing(verb, run_file, pictures, tmp_path):
    next(pictures.glob("*.txt")).unlink()
    settings = run_file(previews={"prompts": ["a cat " * 40, "b"]})
    tagger = Path(str(resources.files("impasto.demo"))) / "tagger"
    words = {
        "tag": ("dataset", "tag", pictures, "--model", tagger, "--dry-run"),
        "clean": ("dataset", "clean", pictures, "--dry-run"),
        "plan": ("train", settings, "--plan"),
    }[verb]
    before = sorted(tmp_path.rglob("*"))
    done = impasto(*words)
    assert done.exit_code == 0, done.output
    assert sorted(tmp_path.rglob("*")) == before
    expected = {
        "tag": "Would be written",
        "clean": "Nothing was written (--dry-run).",
        "plan": f"previews.prompts = {json.dumps(['a cat ' * 40, 'b'])}",
    }
    assert expected[verb] in done.output
