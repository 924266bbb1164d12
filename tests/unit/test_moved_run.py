"""What a run keeps in its own directory is found where the directory was moved to."""

from pathlib import Path

import pytest

from impasto import files
from impasto.config.load import dump_toml, load_begun_config
from impasto.config.moved import cache_of_moved_run
from impasto.datasets.build import survey
from impasto.runs import RunDirectory
from impasto.studio.starting import fields_of_run


@pytest.fixture
def begun(train_config, tmp_path):
    """The directory of a run with its cache in it, as the demo's has."""
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
