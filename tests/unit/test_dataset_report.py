"""A report on a dataset replaces its own earlier one, and nothing else of the user's."""

import json

import pytest

from impasto.errors import ConfigError
from impasto.report.dataset_page import ReportFiles


def test_only_an_earlier_report_on_the_same_folder_is_replaced(tmp_path):
    target = ReportFiles(tmp_path / "page.html", tmp_path / "cats")
    target.require_free()
    target.page.write_text("<p>of somebody", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"page\.html is there, and is not a report on"):
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
    with pytest.raises(ConfigError, match=r"page\.json is there"):
        target.require_free()


def test_the_mark_of_a_report_tells_no_path(tmp_path):
    target = ReportFiles(tmp_path / "page.html", tmp_path / "cats")
    assert "cats" not in target.mark
    assert target.mark == ReportFiles(tmp_path / "x.html", tmp_path / "dogs" / ".." / "cats").mark
