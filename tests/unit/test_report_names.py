"""A dataset's HTML report and its JSON report are two files."""

from pathlib import Path

import pytest

from impasto.cli.main import main
from impasto.errors import ConfigError
from impasto.report.dataset_page import ReportFiles


@pytest.mark.parametrize("name", ["x.json", "x.JSON", "a.b.json"])
def test_a_page_that_would_be_the_data_is_refused(name, tmp_path, capsys):
    for more in ([], ["--overwrite"]):
        with pytest.raises(SystemExit) as ended:
            main(["dataset", "report", str(tmp_path), "--out", str(tmp_path / name), *more])
        assert ended.value.code == 2
        assert Path(name).with_suffix(".html").name in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_other_names_have_their_data_beside():
    assert ReportFiles(Path("x.htm"), Path("p")).data == Path("x.json")
    with pytest.raises(ConfigError, match=r"expected an HTML file, such as x\.html"):
        ReportFiles(Path("x"), Path("p"))
