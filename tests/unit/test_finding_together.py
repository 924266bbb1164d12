"""Keys of one metadata file are looked up together: no image gets the caption of another.

If one of these failed, an image would be trained with the caption of a deleted image of the same
name.
"""

import json

import pytest

from impasto.data.engines.stages import Failure
from impasto.data.folders import finding
from impasto.data.folders.finding import ImageFinder
from impasto.data.folders.metadata import read_metadata
from impasto.data.scanning.scan import scan_metadata
from impasto.data.subsets import Subset


def scan_of(root, files, content):
    from PIL import Image

    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)
    file = root / "meta.json"
    file.write_text(json.dumps({k: {"caption": v} for k, v in content.items()}), encoding="utf-8")
    return scan_metadata(read_metadata(file), root, subset=Subset(root=root))


def words_of(scan):
    return {record.file_name: record.caption for record in scan.records}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("files", "content", "words"),
    [
        (["b.png"], {"a/b.png": "dog", "b.png": "cat"}, {"b.png": "cat"}),
        (["b.png"], {"a/b": "dog", "b": "cat"}, {"b.png": "cat"}),
        (["b.png", "c.png"], {"a/b.png": "dog", "c.png": "cat"}, {"c.png": "cat"}),
        (["a/b.png"], {"b.png": "dog", "a/b.png": "cat"}, {"a/b.png": "cat"}),
        (["a/b.png", "c.png"], {"b.png": "dog", "c.png": "cat"}, {"c.png": "cat"}),
        (["b.png"], {"C:\\x\\a\\b.png": "dog", "C:\\x\\b.png": "cat"}, {"b.png": "cat"}),
        (
            ["b.png", "c.png"],
            {"/x/a/b.png": "dog", "/x/c.png": "cat"},
            {"c.png": "cat"},
        ),
        (
            ["b.png", "c.png"],
            {"C:\\x\\b.png": "dog", "D:\\y\\c.png": "cat"},
            {"b.png": "dog", "c.png": "cat"},
        ),
        (
            ["b.png", "d.png", "s/e.png"],
            {"a/b.png": "1", "a/d.png": "2", "a/s/e.png": "3"},
            {"b.png": "1", "d.png": "2", "s/e.png": "3"},
        ),
    ],
)
def test_the_words_of_an_image_that_is_gone_go_nowhere(tmp_path, files, content, words, turned):
    items = dict(reversed(content.items())) if turned else content
    scan = scan_of(tmp_path, files, items)
    assert words_of(scan) == words
    assert len(scan.skipped) == len(content) - len(words)


def test_names_that_begin_above_the_folder_are_announced(tmp_path):
    scan = scan_of(tmp_path, ["b.png"], {"a/b.png": "dog"})
    assert words_of(scan) == {"b.png": "dog"}
    line = scan.describe_unused()[0]
    assert line.startswith("Also found: meta.json: its names begin with a/, which is not in ")


def test_names_without_their_folders_are_announced(tmp_path):
    scan = scan_of(tmp_path, ["a/b.png", "c/d.png"], {"b.png": "dog", "d": "cat"})
    assert words_of(scan) == {"a/b.png": "dog", "c/d.png": "cat"}
    line = scan.describe_unused()[0]
    assert "found by the ends of their paths" in line


def test_relative_names_of_two_beginnings_are_not_guessed(tmp_path):
    finder = ImageFinder(tmp_path)
    (tmp_path / "b.png").touch()
    (tmp_path / "d.png").touch()
    found = finder.find_all(["a/b.png", "c/d.png"])
    assert all(isinstance(outcome, Failure) for outcome in found)
    assert "judging by the other names in the file it is a different image" in found[0].reason


@pytest.mark.parametrize(
    ("key", "file"),
    [
        ("/t/p/a.png", "t/p/a.png"),
        ("/p/a.png", "p/a.png"),
        ("/a.png", "a.png"),
        ("C:\\t\\p\\a.png", "t/p/a.png"),
        ("C:\\q\\p\\a.png", "p/a.png"),
        ("C:\\q\\a", "a.png"),
    ],
)
def test_an_absolute_name_is_the_longest_path_that_it_ends_in(tmp_path, key, file):
    for name in ("t/p/a.png", "p/a.png", "a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert ImageFinder(tmp_path).find(key) == str(tmp_path / file)


def test_many_files_of_one_name_are_looked_up_by_their_whole_paths(tmp_path, monkeypatch):
    """Each key is compared with a few spellings, not with all files of its name."""
    for n in range(200):
        (tmp_path / f"d{n}").mkdir()
        (tmp_path / f"d{n}" / "image.png").touch()
    calls = 0
    plain = finding._plain

    def counted(name):
        nonlocal calls
        calls += 1
        return plain(name)

    monkeypatch.setattr(finding, "_plain", counted)
    keys = [f"X:\\set\\d{n}\\image.png" for n in range(200)]
    found = ImageFinder(tmp_path).find_all(keys)
    assert found == [str(tmp_path / f"d{n}" / "image.png") for n in range(200)]
    assert calls < 200 * 10
