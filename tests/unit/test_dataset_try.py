"""`impasto dataset try`: models side by side, and no file beside the images.

If one failed, captions of a model that was only tried would be trained on, or one wrong name would
lose the other models' results.
"""

import itertools
import json
import shutil
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from impasto.cli.dataset_try import spread
from impasto.cli.main import impasto
from impasto.demo.recipe import PICTURES, TAGGER
from impasto.errors import ModelError


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / "pictures"
    target.mkdir()
    for path in sorted(PICTURES.glob("*.webp"))[:5]:
        shutil.copy(path, target)
    return target


def run(*words):
    return CliRunner().invoke(impasto, ["dataset", "try", *map(str, words)])


def test_each_model_says_its_words_and_nothing_is_written(folder, tmp_path):
    out = tmp_path / "out.json"
    done = run(
        folder, "--tagger", TAGGER, "0.35", "--captioner", "nonsense", "", "--tagger", TAGGER, "1",
        "--sample", 3, "--out", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    said = json.loads(out.read_text(encoding="utf-8"))
    first, second, third = said["models"]
    assert said["images"] == ["0000-sun.webp", "0001-butterfly.webp", "0003-tomato_frog.webp"]
    assert [m["kind"] for m in said["models"]] == ["tagger", "captioner", "tagger"]
    assert "butterfly" in first["words"]["0001-butterfly.webp"].split(", ")
    assert "nonsense" in second["error"]
    assert "butterfly" not in third["words"]["0001-butterfly.webp"]
    assert "butterfly" in done.output
    names = {path.name for path in folder.iterdir()}
    assert {name for name in names if not name.endswith(".webp")} <= {".impasto"}


def test_one_model_with_two_settings_is_printed_twice(folder):
    done = run(folder, "--tagger", TAGGER, "0.35", "--tagger", TAGGER, "1", "--sample", 1)
    assert done.exit_code == 0, done.output
    first, second = (
        next(line for line in done.output.splitlines() if line.startswith(f"tagger {TAGGER} {of}"))
        for of in ("0.35", "1 ")
    )
    assert "sun" in first
    assert "sun" not in second


def test_images_of_one_name_in_two_folders_have_words_of_their_own(folder, tmp_path):
    out, listed = tmp_path / "out.json", tmp_path / "sets.toml"
    others = tmp_path / "others"
    others.mkdir()
    one, other = sorted(folder.iterdir())[:2]
    shutil.copy(other, others / one.name)
    subsets = "\n".join(
        f"[[datasets.subsets]]\nimage_dir = {json.dumps(str(f))}" for f in (folder, others)
    )
    listed.write_text(f"[[datasets]]\nresolution = 64\n{subsets}\n", encoding="utf-8")
    done = run(listed, "--tagger", TAGGER, "0.35", "--sample", 99, "--out", out)
    assert done.exit_code == 0, done.output
    (said,) = json.loads(out.read_text(encoding="utf-8"))["models"]
    words = said["words"]
    assert words[str(others / one.name)] == words[other.name] != words[str(one)]


def test_no_model_that_can_be_had_is_an_error(folder):
    done = run(folder, "--tagger", "nonsense", "default")
    assert isinstance(done.exception, ModelError)
    assert "0000-sun" not in done.output, "no empty results"
    assert run(folder).exit_code == 2


def test_images_are_spread_over_the_dataset_and_none_comes_twice():
    records = [SimpleNamespace(path=n // 2) for n in range(200)]
    found = [record.path for record in spread(records, 12)]
    assert len(set(found)) == 12
    assert found[0] == 0
    assert found[-1] > 90
    assert {b - a for a, b in itertools.pairwise(found)} <= {8, 9}
    assert len(spread(records[:6], 12)) == 3
