"""Files in a run's own directory are found after the directory was moved."""

import shutil
from pathlib import Path

import pytest
import tomli_w

from impasto import files
from impasto.config.load import dump_toml, load_begun_config, read_begun
from impasto.config.moved import cache_of_moved_run
from impasto.config.setting_files import read_toml
from impasto.datasets.build import survey
from impasto.runs import RunDirectory
from impasto.studio.starting import fields_of_run
from impasto.training.fingerprints.fingerprint import settings_fingerprint


@pytest.fixture
def begun(train_config, tmp_path):
    """Write the directory of a run with its cache in it, like the demo's."""
    before = tmp_path / "before" / "run"
    config = train_config(output_dir=str(before), dataset={"cache_dir": str(before / "derived")})
    before.mkdir(parents=True)
    (before / "config.toml").write_text(dump_toml(config), encoding="utf-8")
    files.write_json(before / "status.json", {"phase": "finished", "folder": str(tmp_path)})
    return before


def test_reading_a_moved_run_makes_nothing_in_its_old_place(begun, tmp_path):
    survey(load_begun_config(begun / "config.toml"))
    kept = sorted(path.name for path in (begun / "derived").rglob("*.arrow"))
    assert kept
    begun.parent.rename(tmp_path / "after")
    moved = tmp_path / "after" / "run"
    config = load_begun_config(moved / "config.toml")
    assert config.dataset.cache_dir == moved / "derived"
    survey(config)
    assert sorted(path.name for path in (moved / "derived").rglob("*.arrow")) == kept
    assert not begun.parent.exists()


def test_a_duplicate_of_a_moved_run_uses_the_cache_where_it_is(begun, tmp_path):
    begun.parent.rename(tmp_path / "after")
    moved = tmp_path / "after" / "run"
    assert fields_of_run(RunDirectory(moved))["dataset.cache_dir"] == str(moved / "derived")


def test_only_what_lay_in_the_directory_is_followed(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    elsewhere = tmp_path / "cache"
    assert cache_of_moved_run(elsewhere, before, after) == elsewhere
    assert cache_of_moved_run(tmp_path / "before-2", before, after) == tmp_path / "before-2"
    assert cache_of_moved_run(before / "a" / "b", before, after) == after / "a" / "b"
    assert cache_of_moved_run(before / "a", before, before) == before / "a"
    stored = Path("s3:/bucket/run/derived")
    assert cache_of_moved_run(stored, Path("s3:/bucket/run"), after) == stored


def test_a_relative_cache_is_found_from_another_folder(tmp_path, monkeypatch):
    moved = tmp_path / "after"
    moved.mkdir()
    monkeypatch.chdir(moved)
    assert cache_of_moved_run(Path("runs/a/derived"), Path("runs/a"), moved) == moved / "derived"


def begin_relative(folder, values):
    """Write the directory of a run that was started in a folder, with paths relative to it."""
    run = folder / "runs" / "dog"
    run.mkdir(parents=True)
    (folder / "pictures").mkdir()
    (folder / "base").mkdir()
    relative = {
        **values,
        "output_dir": "runs/dog",
        "model": {"path": "base"},
        "dataset": {**values["dataset"], "image_dir": "pictures", "cache_dir": "derived"},
        "saving": {"model_dir": "models"},
    }
    (run / "config.toml").write_text(tomli_w.dumps(relative), encoding="utf-8")
    files.write_json(run / "status.json", {"phase": "stopped", "folder": str(folder)})
    return run


def test_relative_paths_begin_where_the_run_was_begun(tmp_path, run_values, monkeypatch):
    begun_in = tmp_path / "begun"
    run = begin_relative(begun_in, run_values)
    monkeypatch.chdir(run.parent)
    config = load_begun_config(Path("dog/config.toml"))
    assert config.model.path == str(begun_in / "base")
    assert config.dataset.image_dir == begun_in / "pictures"
    assert (config.dataset.cache_dir, config.saving.model_dir) == (
        begun_in / "derived",
        begun_in / "models",
    )
    assert read_begun(Path("dog/config.toml")).is_elsewhere
    monkeypatch.chdir(begun_in)
    there = load_begun_config(run / "config.toml")
    assert there.dataset.image_dir == Path("pictures")
    assert settings_fingerprint(config) == settings_fingerprint(there)


def test_a_pattern_of_files_begins_there_too(tmp_path, run_values, monkeypatch):
    begun_in = tmp_path / "begun"
    run = begin_relative(begun_in, run_values)
    (begun_in / "pictures" / "cats-1.tar").touch()
    text = (run / "config.toml").read_text(encoding="utf-8")
    text = text.replace('image_dir = "pictures"', 'image_dir = "pictures/cats-*.tar"')
    (run / "config.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    begun = read_begun(run / "config.toml")
    pattern = str(begun_in / "pictures" / "cats-*.tar")
    assert (begun.is_elsewhere, begun.values["dataset"]["image_dir"]) == (True, pattern)


@pytest.mark.parametrize("is_copy", [True, False])
def test_a_run_that_was_moved_with_its_data_reads_what_moved(
    tmp_path, run_values, monkeypatch, is_copy
):
    """The moved data is used even if the old place still has the data, or other files."""
    before, after = tmp_path / "before", tmp_path / "after"
    begin_relative(before, run_values)
    (shutil.copytree if is_copy else shutil.move)(before, after)
    before.mkdir(exist_ok=True)
    monkeypatch.chdir(after)
    begun = read_begun(Path("runs/dog/config.toml"))
    assert (begun.folder, begun.is_elsewhere) == (after, False)
    assert load_begun_config(Path("runs/dog/config.toml")).dataset.image_dir == Path("pictures")


def test_paths_that_are_in_every_folder_tell_nothing(tmp_path, run_values, monkeypatch):
    run = begin_relative(tmp_path / "begun", run_values)
    values = read_toml(run / "config.toml")
    values["dataset"]["image_dir"], values["model"]["path"] = ".", "owner/name"
    (run / "config.toml").write_text(tomli_w.dumps(values), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    config = load_begun_config(run / "config.toml")
    assert config.dataset.image_dir == tmp_path / "begun"
    assert config.model.path == "owner/name"
