"""Arguments that would do nothing, or something else than meant, are refused with what to give."""

import pytest
from click.testing import CliRunner
from conftest import draw_images

from impasto.cli.main import impasto


def invoked(folder, *words):
    """Exit code and one line of what is printed or raised."""
    done = CliRunner().invoke(impasto, [str(word) for word in words])
    said = done.output if done.exception is None or not str(done.exception) else done.exception
    return " ".join(f"{done.output} {said}".split()).replace(str(folder), "F"), done.exception


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["queue", "move", "1", "up", "2"], "up takes no other job; expected before or after 2"),
        (["dataset", "report", "{set}", "--out", "{top}/page.txt"], "expected an HTML file"),
        (["dataset", "report", "{set}", "--out", "{top}/p.json"], "expected an HTML file, such as"),
        (["dataset", "scan", "{set}/000.png"], "000.png is not a dataset; expected a folder of"),
        (["dataset", "undo", "{top}/nowhere"], "nowhere does not exist"),
        (["demo", "--out", "{set}"], "already exists and is not empty"),
    ],
)
def test_each_is_refused_with_what_to_give(tmp_path, words, message):
    images = draw_images(tmp_path / "set", 1)
    named = [word.format(set=images, top=tmp_path) for word in words]
    said, error = invoked(tmp_path, *named)
    assert error is not None
    assert message in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
