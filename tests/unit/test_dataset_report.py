"""A report on a dataset replaces its own earlier one, and no other file."""

import json
import shutil

import pytest
from click.testing import CliRunner

from impasto.cli.main import impasto
from impasto.demo.recipe import PICTURES
from impasto.errors import ConfigError
from impasto.report.dataset_page import ReportFiles


def test_only_an_earlier_report_on_the_same_folder_is_replaced(tmp_path):
    target = ReportFiles(tmp_path / "page.html", tmp_path / "cats")
    target.require_free()
    target.page.write_text("<p>of somebody", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"page\.html exists, and is not a report on"):
        target.require_free()
    target.data.write_text(json.dumps({"source": target.mark}), encoding="utf-8")
    target.require_free()
    with pytest.raises(ConfigError, match="--overwrite"):
        ReportFiles(target.page, tmp_path / "dogs").require_free()
    for content in ("[]", "{", "{}"):
        target.data.write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError):
            target.require_free()
    target.page.unlink()
    with pytest.raises(ConfigError, match=r"page\.json exists"):
        target.require_free()


def test_the_mark_of_a_report_tells_no_path(tmp_path):
    target = ReportFiles(tmp_path / "page.html", tmp_path / "cats")
    assert "cats" not in target.mark
    assert target.mark == ReportFiles(tmp_path / "x.html", tmp_path / "dogs" / ".." / "cats").mark


@pytest.mark.parametrize("source", ["pictures", "data.json"])
def test_whole_paths_are_whole_where_the_source_is_relative(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.webp", "b.webp"):
        shutil.copy(next(PICTURES.glob("*.webp")), folder / name)
    content = {"datasets": [{"subsets": [{"image_dir": "pictures"}]}]}
    (tmp_path / "data.json").write_text(json.dumps(content), encoding="utf-8")
    for options, begins in ((["--whole-paths"], f"{tmp_path}/"), ([], "pictures/")):
        done = CliRunner().invoke(
            impasto, ["dataset", "report", source, "--out", "r.html", *options]
        )
        assert done.exit_code == 0, done.output
        ((path, *_),) = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["equal"]
        assert path.startswith(begins)
