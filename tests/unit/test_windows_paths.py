r"""`"D:\train\new"` in TOML is a tab and a line end: reported, with how to write it."""

import pytest

from impasto.config.load import build_run_config, load_dataset_config, load_run_config
from impasto.errors import ConfigError


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ('[dataset]\nimage_dir = "D:\\train\\new"', "dataset.image_dir"),
        ('[dataset]\ncache_dir = "\\\\\\\\server\\\\new\\new"', "dataset.cache_dir"),
        ('[model]\npath = "models\\base"', "model.path"),
        ('output_dir = "D:\\runs\\first"', "output_dir"),
        ('[[dataset.datasets]]\n[[dataset.datasets.subsets]]\nimage_dir = "C:\\faces"',
         "dataset.datasets.subsets.image_dir"),
    ],
)  # fmt: skip
def test_a_tab_in_a_path_is_explained(tmp_path, line, place):
    file = tmp_path / "run.toml"
    file.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_run_config(file)
    assert place in str(caught.value)
    assert "single quotes" in str(caught.value)


def test_the_written_form_is_shown(tmp_path):
    (tmp_path / "d.toml").write_text(
        '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "D:\\train\\new"\n', encoding="utf-8"
    )
    with pytest.raises(ConfigError, match=r"image_dir = 'D:\\train\\new'"):
        load_dataset_config(tmp_path / "d.toml", {})


def test_on_the_command_line_too():
    with pytest.raises(ConfigError, match="single quotes"):
        build_run_config({}, ['dataset.image_dir="D:\\train"'], source="test")


def test_text_may_hold_what_paths_may_not(tmp_path):
    (tmp_path / "set").mkdir()
    file = tmp_path / "d.toml"
    file.write_text(
        f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{tmp_path / 'set'}'\n"
        'caption_separator = "\\t"\ncaption_prefix = "a: b\\n"\n',
        encoding="utf-8",
    )
    config = load_dataset_config(file, {})
    assert config.entries[0].subsets[0].caption_separator == "\t"
