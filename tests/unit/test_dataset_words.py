"""Commands for captions report files, metadata and options correctly."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import draw_images

from impasto.annotate.tags import GENERAL, Tag
from impasto.cli.dataset_annotation import _require_read
from impasto.cli.dataset_tag import _spelling
from impasto.cli.main import impasto
from impasto.config.load import load_dataset_config
from impasto.errors import ConfigError

OPTIONS = {
    "underscores": "kaomoji", "replace": "", "undesired": (), "rating": "off", "quality": "off",
    "characters_first": False, "expand_characters": False, "always_first": (),
    "escape_brackets": False,
}  # fmt: skip


def test_what_replaces_a_tag_may_be_put_first_and_left_out_as_it_is_written():
    tags = [Tag("1girl", GENERAL, 0.9), Tag("long_hair", GENERAL, 0.8), Tag("solo", GENERAL, 0.7)]
    of = {**OPTIONS, "replace": "solo,sks_girl"}
    first = _spelling({**of, "always_first": ("sks_girl", "long_hair")})
    assert first.write(tags) == ["sks_girl", "long hair", "1girl"]
    without = _spelling({**of, "undesired": ("sks_girl", "long_hair")})
    assert without.write(tags) == ["1girl"]


def test_of_folders_with_other_endings_one_after_the_other_is_tagged(tmp_path):
    for name in ("a", "b"):
        draw_images(tmp_path / name, 1)
    text = "".join(
        f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "{(tmp_path / name).as_posix()}"\n'
        f'caption_extension = "{ending}"\n'
        for name, ending in (("a", ".txt"), ("b", ".caption"))
    )
    file = tmp_path / "d.toml"
    file.write_text(f"[general]\n{text}", encoding="utf-8")
    config = load_dataset_config(file, {})
    for ending in (".txt", ".caption"):
        with pytest.raises(ConfigError, match="Process each folder separately"):
            _require_read(config, file, ending)
    draw_images(tmp_path / "c", 1)
    _require_read(load_dataset_config(tmp_path / "c", {}), tmp_path / "c", ".txt")


def run(*words):
    done = CliRunner().invoke(impasto, [str(word) for word in words])
    return done.exit_code, " ".join(done.output.split())


def test_words_in_their_usual_file_are_not_said_to_be_elsewhere(tmp_path):
    folder = draw_images(tmp_path / "set", 3)
    _, said = run("dataset", "clean", folder, "--captions-ending", ".natural", "--yes")
    assert "Skipped" not in said
    meta = tmp_path / "set" / "meta.json"
    words = {path.name: {"tags": "wings, sky"} for path in folder.glob("*.png")}
    meta.write_text(json.dumps(words), encoding="utf-8")
    for file in folder.glob("*.txt"):
        file.unlink()
    _, said = run("dataset", "clean", meta, "--yes")
    assert said.count("Skipped") == 1
    assert "(and 2 more like it): its caption is not in a separate file" in said


def test_an_ending_beside_metadata_is_refused(tmp_path):
    folder = draw_images(tmp_path / "set", 1)
    meta = Path(folder) / "meta.json"
    meta.write_text('{"000.png": {"tags": "wings"}}', encoding="utf-8")
    assert run("dataset", "tags", meta)[0] == 0
    code, said = run("dataset", "tags", meta, "--ending", ".wd")
    assert (code, "--ending has no effect" in said) == (2, True)


def test_an_ending_counts_where_a_part_of_the_tags_is_in_files(tmp_path):
    named, others = draw_images(tmp_path / "a", 1), draw_images(tmp_path / "b", 1)
    (named / "meta.json").write_text('{"000.png": {"tags": "wings"}}', encoding="utf-8")
    (others / "000.wd").write_text("sky, wings", encoding="utf-8")
    file = tmp_path / "d.toml"
    file.write_text(
        f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{named}'\n"
        f"metadata_file = '{named / 'meta.json'}'\n"
        f"[[datasets.subsets]]\nimage_dir = '{others}'\ncaption_extension = '.wd'\n",
        encoding="utf-8",
    )
    code, said = run("dataset", "tags", file, "--ending", ".wd")
    assert code == 0, said
    assert said.endswith("wings 2 sky 1 2 tags in 2 images.")
