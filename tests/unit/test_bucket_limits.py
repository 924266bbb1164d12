"""Limits of bucket sides that contradict the step or the resolution are refused."""

import pytest

from impasto.config.load import build_dataset_config, load_dataset_config
from impasto.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_bucket_reso": 1000}, "max_bucket_reso is 1000; expected a multiple"),
        ({"min_bucket_reso": 250}, r"min_bucket_reso is 250; expected a multiple .*such as 256"),
        ({"min_bucket_reso": 512, "max_bucket_reso": 256}, "512 is above max_bucket_reso 256"),
        ({"min_bucket_reso": 576}, "min_bucket_reso is 576, above the resolution 512x512"),
        ({"max_bucket_reso": 448}, "max_bucket_reso is 448, below the resolution 512x512"),
        ({"resolution": [512, 1152]}, "expected at least 1152"),
        ({"resolution": [192, 512]}, "expected at most 192"),
        ({"max_bucket_reso": 448, "bucket_no_upscale": True}, "below the resolution"),
    ],
)
def test_limits_that_contradict_are_refused(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        build_dataset_config({"image_dir": str(tmp_path), **changes}, source="test")


@pytest.mark.parametrize(
    "changes",
    [
        {"min_bucket_reso": 512, "max_bucket_reso": 512},
        {"max_bucket_reso": 448, "enable_bucket": False},
        {"max_bucket_reso": 448, "buckets": [[448, 448]]},
        {"resolution": 2048, "bucket_table": "novelai"},
    ],
)
def test_limits_that_do_not_matter_are_taken(tmp_path, changes):
    build_dataset_config({"image_dir": str(tmp_path), **changes}, source="test")


def test_a_file_of_sd_scripts_is_rounded_first_and_then_held_to_it(tmp_path):
    file = tmp_path / "d.toml"
    text = (
        "[general]\nenable_bucket = true\nmin_bucket_reso = 64\nmax_bucket_reso = {}\n"
        "[[datasets]]\nresolution = 256\n"
        f"[[datasets.subsets]]\nimage_dir = '{tmp_path}'\n"
    )
    file.write_text(text.format(252), encoding="utf-8")
    config = load_dataset_config(file, {})
    assert config.entries[0].max_bucket_reso == 256
    assert config.entries[0].subsets[0].recursive is False
    file.write_text(text.format(190), encoding="utf-8")
    with pytest.raises(ConfigError, match="max_bucket_reso is 192, below the resolution 256x256"):
        load_dataset_config(file, {})


def test_a_level_above_may_give_one_of_the_limits(tmp_path):
    file = tmp_path / "d.toml"
    file.write_text(
        "[general]\nenable_bucket = true\nmax_bucket_reso = 192\n[[datasets]]\nresolution = 128\n"
        f"min_bucket_reso = 64\n[[datasets.subsets]]\nimage_dir = '{tmp_path}'\n",
        encoding="utf-8",
    )
    assert load_dataset_config(file, {}).entries[0].min_bucket_reso == 64


@pytest.mark.parametrize("value", ["3", '"x"', "{a = 1}"])
def test_data_sets_that_are_no_tables_are_named(tmp_path, value):
    (tmp_path / "d.toml").write_text(f"datasets = {value}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"expected \[\[datasets\]\] tables"):
        load_dataset_config(tmp_path / "d.toml", {})
