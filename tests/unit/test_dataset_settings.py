"""sd-scripts' dataset configurations: the levels, refused values, and error messages."""

import json
import re

import pytest
import tomli_w

from impasto.cli.dataset_options import dataset_config
from impasto.config.dataset_file import names_masks, read_dataset_file
from impasto.config.differences import changed_settings
from impasto.config.load import build_run_config, dump_toml, load_dataset_config
from impasto.config.validation import REFUSED
from impasto.data.captions import TrainingPosition
from impasto.datasets.sources import build_caption_rules, build_subset
from impasto.errors import ConfigError

RUN = {"output_dir": "out", "model": {"path": "m"}, "training": {"max_steps": 1}}


def built(dataset):
    return build_run_config({**RUN, "dataset": dataset}, source="run.toml").dataset


def file_of(tmp_path, content, name="data.toml"):
    path = tmp_path / name
    text = json.dumps(content) if name.endswith(".json") else tomli_w.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


CONTENT = {
    "general": {"shuffle_caption": True, "keep_tokens": 1, "resolution": 512, "num_repeats": 3},
    "datasets": [
        {
            "resolution": [512, 768],
            "batch_size": 4,
            "enable_bucket": True,
            "keep_tokens": 2,
            "subsets": [
                {"metadata_file": "a.json", "image_dir": "a", "num_repeats": 5},
                {"image_dir": "b", "keep_tokens": 0, "caption_prefix": "b,"},
            ],
        },
        {"batch_size": 2, "subsets": [{"image_dir": "c", "shuffle_caption": False}]},
    ],
}


@pytest.mark.parametrize("way", ["toml", "json", "inline"])
def test_a_lower_level_wins(tmp_path, way):
    if way == "inline":
        dataset = built(CONTENT)
    else:
        dataset = built({"config": str(file_of(tmp_path, CONTENT, f"data.{way}"))})
    first, second = dataset.entries
    assert [first.width_height, second.width_height] == [(512, 768), (512, 512)]
    assert [first.batch_size, second.batch_size] == [4, 2]
    subsets = [*first.subsets, *second.subsets]
    assert [s.num_repeats for s in subsets] == [5, 3, 3]
    assert [s.keep_tokens for s in subsets] == [2, 0, 1]
    assert [s.shuffle_caption for s in subsets] == [True, True, False]
    assert [s.caption_prefix for s in subsets] == [None, "b,", None]


def test_what_a_file_leaves_out_is_as_in_sd_scripts_and_the_run_comes_before_that(tmp_path):
    path = str(file_of(tmp_path, CONTENT))
    first, second = built({"config": path}).entries
    assert (first.enable_bucket, second.enable_bucket) == (True, False)
    assert first.bucket_selection == "kohya"
    assert first.subsets[0].latents_from_npz
    assert first.subsets[0].flip_safe == ()
    changed = built({"config": path, "bucket_selection": "native", "keep_tokens": 9})
    assert changed.entries[0].bucket_selection == "native"
    assert changed.entries[1].subsets[0].keep_tokens == 1  # the file's [general] overrides the run
    inline = built(CONTENT).entries[1]
    assert (inline.enable_bucket, inline.bucket_selection) == (True, "native")


def test_small_images_of_a_file_without_buckets_are_enlarged_as_there(tmp_path):
    """`bucket_no_upscale` has no effect there without `enable_bucket`, and is not refused here."""
    content = {
        "general": {"bucket_no_upscale": True},
        "datasets": [
            {"subsets": [{"image_dir": "a"}]},
            {"enable_bucket": True, "subsets": [{"image_dir": "b"}]},
        ],
    }
    entries = built({"config": str(file_of(tmp_path, content))}).entries
    assert [entry.bucket_no_upscale for entry in entries] == [False, True]


def test_bucket_sides_are_rounded_outwards_as_there(tmp_path):
    content = {
        "general": {"enable_bucket": True, "min_bucket_reso": 300, "max_bucket_reso": 1000},
        "datasets": [{"subsets": [{"image_dir": "a"}]}],
    }
    part = built({"config": str(file_of(tmp_path, content))}).entries[0]
    assert (part.min_bucket_reso, part.max_bucket_reso) == (256, 1024)


def test_what_is_set_counts_before_what_is_general():
    """`--set dataset.resolution` puts the value into `[dataset]`."""
    subsets = [{"image_dir": "a"}]
    dataset = {"general": {"resolution": 640, "keep_tokens": 2}, "datasets": [{"subsets": subsets}]}
    assert built(dataset).entries[0].width_height == (640, 640)
    run = {**RUN, "dataset": dataset}
    config = build_run_config(run, overrides=["dataset.resolution=768"], source="run.toml")
    (entry,) = config.dataset.entries
    assert (entry.width_height, entry.subsets[0].keep_tokens) == ((768, 768), 2)
    assert dataset["general"] == {"resolution": 640, "keep_tokens": 2}


EVERYWHERE = {
    "general": {"shuffle_caption": True},
    "datasets": [
        {
            "resolution": 512,
            "batch_size": 2,
            "subsets": [{"image_dir": "a", "num_repeats": 3}, {"image_dir": "b", "num_repeats": 1}],
        }
    ],
}


@pytest.mark.parametrize("way", ["file", "inline"])
@pytest.mark.parametrize(
    "override",
    ["dataset.resolution=768", "dataset.num_repeats=2", "training.batch_size=4"],
)
def test_what_is_set_above_a_level_that_says_otherwise_everywhere_is_refused(
    tmp_path, way, override
):
    """A value that every lower level overrides is refused, instead of silently ignored."""
    path = str(file_of(tmp_path, EVERYWHERE))
    run = {**RUN, "dataset": {"config": path} if way == "file" else EVERYWHERE}
    setting, giver = override.partition("=")[0], "data.toml" if way == "file" else "each dataset"
    told = rf"--set {setting} has no effect: .*{giver if setting[0] == 'd' else 'each dataset'}"
    with pytest.raises(ConfigError, match=told):
        build_run_config(run, overrides=[override], source="run.toml")
    kept = build_run_config(run, overrides=["dataset.min_bucket_reso=128"], source="run.toml")
    assert kept.dataset.entries[0].min_bucket_reso == 128


def test_what_is_set_counts_before_the_general_part_of_settings_but_not_of_a_file(tmp_path):
    run = {**RUN, "dataset": {"config": str(file_of(tmp_path, EVERYWHERE))}}
    with pytest.raises(ConfigError, match=r"shuffle_caption has no effect: .*data\.toml sets"):
        build_run_config(run, overrides=["dataset.shuffle_caption=false"], source="run.toml")
    run = {**RUN, "dataset": EVERYWHERE}
    config = build_run_config(run, overrides=["dataset.shuffle_caption=false"], source="run.toml")
    assert not config.dataset.entries[0].subsets[0].shuffle_caption


def test_a_batch_size_that_the_only_dataset_decides_is_refused():
    run = {**RUN, "dataset": {"image_dir": "a", "batch_size": 2, "validation_split": 0.1}}
    for override in ("training.batch_size=4", "validation.split=0.2"):
        with pytest.raises(ConfigError, match=r"has no effect: \[dataset\] sets"):
            build_run_config(run, overrides=[override], source="run.toml")
    free = [*["dataset.batch_size=none", "training.batch_size=4"], "validation.split=none"]
    assert build_run_config(run, overrides=free, source="run.toml").batch_sizes == {0: 4}


def test_repeats_that_names_of_folders_decide_are_not_set(tmp_path):
    (tmp_path / "10_cat").mkdir()
    run = {**RUN, "dataset": {"train_data_dir": str(tmp_path)}}
    with pytest.raises(ConfigError, match=r"--set dataset\.num_repeats has no effect"):
        build_run_config(run, overrides=["dataset.num_repeats=2"], source="run.toml")
    config = build_run_config(run, overrides=["dataset.recursive=true"], source="run.toml")
    assert config.dataset.entries[0].subsets[0].recursive


def test_masks_that_are_set_go_to_the_folders_with_classes(tmp_path):
    (tmp_path / "10_cat").mkdir()
    run = {**RUN, "dataset": {"train_data_dir": str(tmp_path)}}
    config = build_run_config(run, overrides=["dataset.mask_dir=masks"], source="run.toml")
    assert config.dataset.entries[0].subsets[0].mask_dir.name == "masks"


@pytest.mark.parametrize("overrides", [[], ["dataset.resolution=768"]])
@pytest.mark.parametrize("way", ["file", "inline"])
def test_subsets_that_are_no_list_are_told(tmp_path, way, overrides):
    odd = {"datasets": [{"subsets": 5}]}
    dataset = {"config": str(file_of(tmp_path, odd))} if way == "file" else odd
    with pytest.raises(ConfigError, match=r"datasets\[0\]\.subsets: expected a list"):
        build_run_config({**RUN, "dataset": dataset}, overrides=overrides, source="run.toml")


def test_masks_beside_datasets_are_not_passed_over():
    datasets = [{"subsets": [{"image_dir": "a"}]}]
    with pytest.raises(ConfigError, match="mask_dir and datasets contradict each other: put"):
        built({"mask_dir": "masks", "datasets": datasets})


def test_of_a_subset_what_is_not_as_above_counts_as_changed():
    subsets = [{"image_dir": "a"}, {"image_dir": "b", "keep_tokens": 0, "is_reg": True}]
    dataset = {"keep_tokens": 1, "datasets": [{"batch_size": 4, "subsets": subsets}]}
    changed = changed_settings(build_run_config({**RUN, "dataset": dataset}, source="run.toml"))
    assert {path: value for path, value in changed.items() if path.startswith("dataset")} == {
        "dataset.keep_tokens": 1,
        "dataset.datasets[0].batch_size": 4,
        "dataset.datasets[0].subsets[0].image_dir": "a",
        "dataset.datasets[0].subsets[1].image_dir": "b",
        "dataset.datasets[0].subsets[1].keep_tokens": 0,
        "dataset.datasets[0].subsets[1].is_reg": True,
    }


@pytest.mark.parametrize("word", ["", " "])
def test_a_word_that_every_caption_holds_stops_no_flips(word):
    with pytest.raises(ConfigError, match=r"flip_safe\[1\]: expected a word"):
        built({"image_dir": "a", "flip_safe": ["left", word]})


def test_the_resolved_settings_need_no_other_file(tmp_path):
    config = built({"config": str(file_of(tmp_path, CONTENT))})
    run = build_run_config({**RUN, "dataset": {"config": str(tmp_path / "data.toml")}}, source="x")
    (tmp_path / "data.toml").unlink()
    import tomllib

    again = build_run_config(tomllib.loads(dump_toml(run)), source="y")
    assert again.dataset.entries == config.entries


KEYS = {  # sd-scripts' key -> (a value, field of the subset or its rules, the field's value)
    "num_repeats": (4, "repeats", 4),
    "flip_aug": (True, "flips", True),
    "resize_interpolation": ("area", "interpolation", "area"),
    "shuffle_caption": (True, "captions.shuffle", True),
    "enable_wildcard": (True, "captions.wildcards", True),
    "keep_tokens": (2, "captions.keep_tokens", 2),
    "keep_tokens_separator": ("|||", "captions.keep_tokens_separator", "|||"),
    "secondary_separator": (";;;", "captions.secondary_separator", ";;;"),
    "caption_separator": (";", "captions.separator", ";"),
    "caption_prefix": ("p", "captions.prefix", "p"),
    "caption_suffix": ("s", "captions.suffix", "s"),
    "token_warmup_min": (3, "captions.warmup_min", 3),
    "token_warmup_step": (0.5, "captions.warmup_steps", 0.5),
    "caption_dropout_rate": (1, "captions.dropout_rate", 1.0),
    "caption_tag_dropout_rate": (0.25, "captions.tag_dropout_rate", 0.25),
    "caption_dropout_every_n_epochs": (2, "captions.dropout_every_n_epochs", 2),
    "color_aug": (True, "augmentation.color", True),
    "random_crop": (True, "augmentation.random_crop", True),
    "face_crop_aug_range": ([2.0, 4.0], "augmentation.face_crop_range", (2.0, 4.0)),
    "alpha_mask": (True, "masks.alpha", True),
}


@pytest.mark.parametrize("level", ["general", "dataset", "subset"])
@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_a_subset_arrives_from_every_level(tmp_path, key, level):
    value, field, expected = KEYS[key]
    given = {key: value}
    content = {
        "general": given if level == "general" else {},
        "datasets": [
            {
                **(given if level == "dataset" else {}),
                "subsets": [{"image_dir": "a", **(given if level == "subset" else {})}],
            }
        ],
    }
    found = build_subset(
        built({"config": str(file_of(tmp_path, content))}).entries[0].subsets[0], 0, 0
    )
    for name in field.split("."):
        found = getattr(found, name)
    assert found == expected


TAKEN_FROM_FILES = {"cache_info", "conditioning_data_dir"}


@pytest.mark.parametrize("key", sorted(REFUSED.keys() - TAKEN_FROM_FILES))
def test_what_has_no_effect_is_refused_with_the_reason(tmp_path, key):
    content = {"datasets": [{"subsets": [{"image_dir": "a", key: 1}]}]}
    with pytest.raises(ConfigError) as caught:
        read_dataset_file(file_of(tmp_path, content))
    assert f"datasets[0].subsets[0].{key} has no effect: {REFUSED[key]}" in str(caught.value)


@pytest.mark.parametrize("key", sorted(TAKEN_FROM_FILES))
def test_keys_of_sdscripts_are_no_settings_of_ours(key):
    with pytest.raises(ConfigError, match=re.escape(f"{key} has no effect: {REFUSED[key]}")):
        built({"image_dir": "a", key: "b"})


def test_keys_of_a_configuration_that_have_other_names_here(tmp_path):
    subset = {"image_dir": "a", "conditioning_data_dir": "masks", "cache_info": True}
    content = {"general": {"cache_info": True}, "datasets": [{"subsets": [subset]}]}
    assert names_masks(file_of(tmp_path, content))
    (found,) = read_dataset_file(file_of(tmp_path, content))["datasets"][0]["subsets"]
    assert found["mask_dir"] == "masks"
    assert not TAKEN_FROM_FILES & found.keys()
    subset["mask_dir"] = "others"
    with pytest.raises(ConfigError, match="conditioning_data_dir and mask_dir of one table"):
        read_dataset_file(file_of(tmp_path, content))


FAULTS = {
    "typo": (
        {"datasets": [{"subsets": [{"image_dirr": "a"}]}]},
        ["unknown key datasets[0].subsets[0].image_dirr (the nearest is image_dir; known here: "],
    ),
    "level": ({"resolution": 512}, ["unknown key resolution at the top", "[general]"]),
    "wrong kind": (
        {"general": {"keep_tokens": "many"}, "datasets": [{"subsets": [{"image_dir": "a"}]}]},
        ["general.keep_tokens: ", "'many'"],
    ),
    "no images": (
        {"datasets": [{"subsets": [{"num_repeats": 1}]}]},
        ["datasets[0].subsets[0]: give image_dir, metadata_file, or both"],
    ),
    "no subsets": ({"datasets": [{"batch_size": 1}]}, ["datasets[0].subsets is missing"]),
    "empty subsets": ({"datasets": [{"subsets": []}]}, ["datasets[0].subsets"]),
    "no datasets": ({"general": {}}, ["has no [[datasets]]"]),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["data.toml", "data.json"])
def test_faults_are_named_where_they_were_written(tmp_path, fault, name):
    content, expected = FAULTS[fault]
    with pytest.raises(ConfigError) as caught:
        read_dataset_file(file_of(tmp_path, content, name))
    message = str(caught.value)
    assert str(tmp_path / name) in message
    for words in expected:
        assert words in message
    assert message.count("many") <= 1  # once, though three levels have inherited it


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [("d.toml", "a = 1\nb = \n", "line 2"), ("d.json", '{\n"a": }', "line 2, column 6")],
)
def test_malformed_files_are_named_with_their_line(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=expected):
        read_dataset_file(tmp_path / name)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ({}, "give image_dir"),
        ({"image_dir": "a", **CONTENT}, "image_dir and datasets contradict"),
        ({"image_dir": "a", "face_crop_aug_range": [4, 2]}, "1 <= low <= high"),
        ({"image_dir": "a", "caption_separator": ""}, "caption_separator"),
        ({"image_dir": "a", "num_repeats": 0}, "so no images are left"),
        ({"datasets": [{"subsets": [{"image_dir": "a"}] * 2}]}, "subset 2 repeats an earlier one"),
    ],
)
def test_contradictions(dataset, expected):
    with pytest.raises(ConfigError, match=expected):
        built(dataset)


@pytest.mark.parametrize("level", ["general", "datasets"])
def test_the_key_of_masks_at_another_level_is_named_as_it_is_written(tmp_path, level):
    content = {"datasets": [{"subsets": [{"image_dir": "a"}]}]}
    above = content["datasets"][0] if level == "datasets" else content.setdefault("general", {})
    above["conditioning_data_dir"] = "masks"
    with pytest.raises(ConfigError, match=rf"{level}\S*\.conditioning_data_dir has no effect"):
        read_dataset_file(file_of(tmp_path, content))


@pytest.mark.parametrize("name", ["x.tar.gz", "x.TGZ"])
def test_a_compressed_tar_is_called_that(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\x1f\x8b\xff")
    with pytest.raises(ConfigError, match="is a compressed tar"):
        load_dataset_config(path, {})


def test_a_path_stands_for_what_it_is(tmp_path):
    (tmp_path / "pictures").mkdir()
    assert load_dataset_config(tmp_path / "pictures", {}).image_dir == tmp_path / "pictures"
    assert load_dataset_config(file_of(tmp_path, CONTENT), {}).entries[1].batch_size == 2
    metadata = tmp_path / "m.json"
    metadata.write_text('{"a.png": {}}', encoding="utf-8")
    assert load_dataset_config(metadata, {}).metadata_file == metadata
    run = file_of(tmp_path, {**RUN, "dataset": {"image_dir": "z"}}, "run.toml")
    assert str(load_dataset_config(run, {}).image_dir) == "z"


def test_a_cache_named_beside_the_settings_of_a_run_is_the_one_that_is_used(tmp_path):
    run = file_of(tmp_path, {**RUN, "dataset": {"image_dir": "z", "cache_dir": "own"}}, "run.toml")
    found = dataset_config(run, {"cache_dir": tmp_path / "elsewhere"})
    assert found.derived_dir == tmp_path / "elsewhere"
    assert str(dataset_config(run, {}).derived_dir) == "own"


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"resolution": 640}, "--resolution"),
        ({"min_side": 128}, "--min-side"),
        ({"no_upscale": True}, "--no-upscale"),
        ({"flip": True}, "--flip"),
    ],
)
def test_an_option_that_the_settings_of_a_run_decide_is_refused(tmp_path, options, flag):
    run = file_of(tmp_path, {**RUN, "dataset": {"image_dir": "z"}}, "run.toml")
    with pytest.raises(ConfigError, match=f"{flag} has no effect: .*run.toml is the settings"):
        dataset_config(run, options)


def test_an_option_counts_where_a_dataset_file_leaves_room_for_it(tmp_path):
    path = file_of(tmp_path, CONTENT)
    assert dataset_config(path, {"min_side": 128}).entries[1].min_bucket_reso == 128
    with pytest.raises(ConfigError, match=r"--resolution has no effect: .*sets resolution itself"):
        dataset_config(path, {"resolution": 640})
    subsets = [{"image_dir": "a", "flip_aug": False}, {"image_dir": "b", "flip_aug": True}]
    everywhere = file_of(tmp_path, {"datasets": [{"subsets": subsets}]}, "flips.json")
    with pytest.raises(ConfigError, match="--flip has no effect"):
        dataset_config(everywhere, {"flip": True})
    somewhere = file_of(tmp_path, {"datasets": [{"subsets": [{"image_dir": "a"}, subsets[0]]}]})
    first, second = dataset_config(somewhere, {"flip": True}).entries[0].subsets
    assert (first.flip_aug, second.flip_aug) == (True, False)


def test_defaults_change_no_caption():
    rules = build_caption_rules(built({"image_dir": "a"}).entries[0].subsets[0])
    assert not rules.is_random
    assert not rules.changes_captions
    assert rules.write("a, b", TrainingPosition(1, 0, 1), 0, "x") == "a, b"
