"""Regularisation images and class tokens: sd-scripts' counts, captions and weights.

If this failed, a DreamBooth dataset of sd-scripts would silently be trained on other images, other
captions or another loss than there.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from impasto.config.dreambooth import dreambooth_subsets
from impasto.config.load import build_run_config, dump_toml
from impasto.data.folders.beside import SidecarLookup
from impasto.data.planning.regularisation import balance, showings_of
from impasto.datasets.batching import build_epoch_sampler
from impasto.datasets.build import scan_all, survey
from impasto.errors import ConfigError, DatasetError
from impasto.parsing import parse_toml
from impasto.progress import SilentProgress
from impasto.training.fingerprints.fingerprint import differences, settings_fingerprint

RUN = {"output_dir": "out", "model": {"path": "m"}, "training": {"max_steps": 1}}


def images_in(folder, count, words=None, shade=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (64, 64), (i * 7 % 256, shade, count)).save(folder / f"{i:02}.png")
        if words is not None:
            (folder / f"{i:02}.txt").write_text(words, encoding="utf-8")
    return folder


def config_of(dataset, **others):
    return build_run_config({**RUN, "dataset": dataset, **others}, source="run.toml")


@pytest.fixture
def sets(tmp_path):
    """Return settings of a dataset with several training images and class images."""

    def build(train, regularisation, *, repeats=1, reg_repeats=1, **keys):
        subsets = [
            {
                "image_dir": str(images_in(tmp_path / "sks", train, "a sks dog", 1)),
                "num_repeats": repeats,
            },
            {
                "image_dir": str(images_in(tmp_path / "dogs", regularisation, "a dog", 2)),
                "num_repeats": reg_repeats,
                "is_reg": True,
            },
        ]
        sizes = {"resolution": 64, "min_bucket_reso": 64, "max_bucket_reso": 64}
        datasets = [{"subsets": subsets, **sizes, **keys}]
        return {"datasets": datasets, "cache_dir": str(tmp_path / "derived")}

    return build


def as_in_sd_scripts(repeats, wanted):
    """Count showings one after another, as sd-scripts' loop does."""
    found = {}
    total, rounds = 0, 0
    while total < wanted:
        for image, own in enumerate(repeats):
            more = own if rounds == 0 else 1
            found[image] = found.get(image, 0) + more
            total += more
            if total >= wanted:
                break
        rounds += 1
    return [found.get(image, 0) for image in range(len(repeats))]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(0, 90))
def test_showings_are_those_of_its_loop(repeats, wanted):
    assert showings_of(repeats, wanted) == as_in_sd_scripts(repeats, wanted)


@pytest.mark.parametrize(
    ("repeats", "wanted", "expected"),
    [
        ([1] * 8, 20, [3, 3, 3, 3, 2, 2, 2, 2]),
        ([1] * 8, 5, [1, 1, 1, 1, 1, 0, 0, 0]),
        ([2, 2, 2], 5, [2, 2, 2]),  # the last one keeps its repeats: 6 showings
        ([3, 3, 3], 4, [3, 3, 0]),
        ([2, 1], 8, [5, 3]),
        ([4], 3, [4]),
        ([1, 1], 0, [0, 0]),
        ([], 7, []),
    ],
)
def test_showings_by_hand(repeats, wanted, expected):
    assert showings_of(repeats, wanted) == expected


def times(records):
    return {f"{r.path.parent.name}/{r.path.stem}": r.repeats for r in records}


def test_each_dataset_is_balanced_on_its_own(sets, tmp_path):
    first = sets(2, 3, repeats=5)
    second = [
        {"image_dir": str(images_in(tmp_path / "cat", 1, "cat", 3))},
        {"image_dir": str(images_in(tmp_path / "cats", 4, "cats", 4)), "is_reg": True},
    ]
    third = [{"image_dir": str(images_in(tmp_path / "plain", 2, "plain", 5)), "num_repeats": 3}]
    plain = {k: v for k, v in first["datasets"][0].items() if k != "subsets"}
    datasets = [*first["datasets"], {**plain, "subsets": second}, {**plain, "subsets": third}]
    config = config_of({**first, "datasets": datasets})
    found = survey(config)
    assert times(image.record for image in found.plan.images) == {
        "sks/00": 5, "sks/01": 5, "dogs/00": 4, "dogs/01": 3, "dogs/02": 3,
        "cat/00": 1, "cats/00": 1, "plain/00": 3, "plain/01": 3,
    }  # fmt: skip
    told = found.balance
    assert (told.images, told.used, told.showings, told.trained) == (7, 4, 11, 11)
    assert build_epoch_sampler(config, found.plan, 1).samples_per_epoch == 11 + 11 + 6


def test_several_subsets_are_taken_in_their_order(sets, tmp_path):
    """The first subset's images with their repeats, then the second's, until there are enough."""
    content = sets(5, 2, reg_repeats=2)
    more = str(images_in(tmp_path / "more", 3, "a dog", 9))
    content["datasets"][0]["subsets"].insert(0, {"image_dir": more, "is_reg": True})
    found = times(image.record for image in survey(config_of(content)).plan.images)
    shown = {name: n for name, n in found.items() if not name.startswith("sks")}
    assert shown == {"more/00": 1, "more/01": 1, "more/02": 1, "dogs/00": 2}


def test_images_that_are_too_many_are_told(sets):
    lines = []

    class Notes(SilentProgress):
        def note(self, message):
            lines.append(message)

    survey(config_of(sets(2, 5)), Notes())
    assert any("3 regularisation images of 5 are not used" in line for line in lines)
    lines.clear()
    survey(config_of(sets(6, 5)), Notes())
    assert not any("regularisation" in line for line in lines)


def test_without_regularisation_images_records_are_the_same(tmp_path):
    folder = images_in(tmp_path / "sks", 3, "a sks dog")
    records = scan_all(config_of({"image_dir": str(folder)}).dataset).records
    found = balance(records)
    assert found is records
    assert {record.subset.loss_weight for record in found} == {1.0}


@pytest.mark.parametrize("seed", range(4))
def test_they_are_never_held_out_and_balance_what_is_left(sets, seed):
    config = config_of(sets(10, 30, repeats=2), validation={"split": 0.3}, seed=seed)
    found = survey(config)
    assert len(found.split.held_out) == 3  # a fraction of the ten, not of the forty
    assert not any(record.subset.is_reg for record in found.split.held_out)
    assert (found.balance.trained, found.balance.showings) == (14, 14)


def test_a_copy_of_a_regularisation_image_is_not_held_out_either(sets, tmp_path):
    content = sets(4, 4)
    for i in range(3):
        shutil.copy(tmp_path / "dogs" / f"{i:02}.png", tmp_path / "sks" / f"{i:02}.png")
    found = survey(config_of(content, validation={"split": 0.5}))
    assert [record.path.name for record in found.split.held_out] == ["03.png"]


def test_holding_out_all_that_is_trained_on_is_an_error(sets):
    with pytest.raises(DatasetError, match=r"leaves none to train on"):
        survey(config_of(sets(1, 4), validation={"split": 0.99}))


def test_images_of_a_validation_folder_are_called_as_those_trained_on(sets, tmp_path):
    """Validation images do not get the class as caption, though regularisation images come
    first."""
    content = sets(2, 2)
    content["datasets"][0]["subsets"].reverse()
    for subset, words in zip(content["datasets"][0]["subsets"], ("dog", "sks dog"), strict=True):
        subset["class_tokens"] = words
    own = images_in(tmp_path / "own", 1, None, 77)
    found = survey(config_of(content, validation={"image_dir": str(own)}))
    assert [record.caption_text for record in found.split.held_out] == ["sks dog"]


def test_damaged_images_that_leave_regularisation_alone_are_an_error(sets):
    records = scan_all(config_of(sets(2, 3)).dataset).records
    with pytest.raises(DatasetError, match=r"All 3 images .* are regularisation images"):
        balance([record for record in records if record.subset.is_reg])


# captions


def test_class_tokens_are_the_words_of_images_without_a_caption_file(tmp_path):
    folder = images_in(tmp_path / "sks", 4)
    (folder / "01.txt").write_text("a sks dog on grass", encoding="utf-8")
    (folder / "02.txt").write_text("\n", encoding="utf-8")
    (folder / "03.caption").write_text("sitting", encoding="utf-8")
    config = config_of(
        {"image_dir": str(folder), "class_tokens": "sks dog", "caption_prefix": "photo of"}
    )
    scan = scan_all(config.dataset)
    assert [r.caption_text for r in scan.records] == [
        "sks dog",
        "a sks dog on grass",
        "",
        "sitting",
    ]
    assert scan.records[0].fixed_caption == "photo of sks dog"
    assert (scan.tally.without_words, scan.tally.by_class) == (1, 1)
    # the image still counts as having no caption
    assert [SidecarLookup().has_caption(r) for r in scan.records] == [False, True, False, True]


def test_of_another_ending_a_file_counts_only_where_it_is_read(tmp_path):
    folder = images_in(tmp_path / "sks", 1, "words")
    dataset = {"image_dir": str(folder), "class_tokens": "sks", "caption_extension": ".caption"}
    assert scan_all(config_of(dataset).dataset).records[0].caption_text == "sks"


def test_class_tokens_fill_in_for_metadata_without_words(tmp_path):
    folder = images_in(tmp_path / "sks", 3)
    entries = {"00.png": {}, "01.png": {"tags": "dog"}, "02.png": {"caption": "a dog"}}
    (tmp_path / "m.json").write_text(json.dumps(entries), encoding="utf-8")
    dataset = {"metadata_file": str(tmp_path / "m.json"), "image_dir": str(folder)}
    scan = scan_all(config_of({**dataset, "class_tokens": "sks"}).dataset)
    assert [record.caption_text for record in scan.records] == ["sks", "dog", "a dog"]


def test_without_any_words_nothing_is_trained_on(tmp_path):
    folder = images_in(tmp_path / "sks", 2)
    with pytest.raises(DatasetError, match="class_tokens"):
        survey(config_of({"image_dir": str(folder)}))
    assert survey(config_of({"image_dir": str(folder), "class_tokens": "sks"})).plan.images


# settings


def subsets_of(*subsets, **keys):
    return {"datasets": [{"subsets": list(subsets), **keys}]}


TRAIN, REG = {"image_dir": "a"}, {"image_dir": "b", "is_reg": True}
FAULTS = {
    "negative": (subsets_of(TRAIN, REG, prior_loss_weight=-0.5), "prior_loss_weight"),
    "no number": (subsets_of(TRAIN, REG, prior_loss_weight=float("nan")), "prior_loss_weight"),
    "no effect": (subsets_of(TRAIN, prior_loss_weight=0.5), "prior_loss_weight has no effect"),
    "alone": (subsets_of(REG), "all its subsets have is_reg"),
    "left alone": (subsets_of({**TRAIN, "num_repeats": 0}, REG), "all its subsets have is_reg"),
    "empty words": (subsets_of({**TRAIN, "class_tokens": " "}), "class_tokens is empty"),
    "both": (subsets_of(TRAIN, {**TRAIN, "is_reg": True}), "a is given twice"),
    "of all": ({"is_reg": True, **subsets_of(TRAIN, REG)}, "is_reg"),
    "of a folder": ({"image_dir": "a", "is_reg": True}, "is_reg"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_settings_are_refused(fault):
    dataset, expected = FAULTS[fault]
    with pytest.raises(ConfigError) as caught:
        config_of(dataset)
    assert expected in str(caught.value)


@pytest.mark.parametrize("name", ["data.toml", "data.json"])
def test_a_configuration_of_sd_scripts_is_read(tmp_path, name):
    content = {
        "general": {"class_tokens": "dog", "caption_extension": ".txt"},
        **subsets_of({**TRAIN, "class_tokens": "sks dog", "num_repeats": 10}, REG),
    }
    text = tomli_w.dumps(content) if name.endswith("toml") else json.dumps(content)
    (tmp_path / name).write_text(text, encoding="utf-8")
    dataset = {"config": str(tmp_path / name), "prior_loss_weight": 0.25}
    (entry,) = config_of(dataset).dataset.entries
    assert [(s.is_reg, s.class_tokens, s.num_repeats) for s in entry.subsets] == [
        (False, "sks dog", 10),
        (True, "dog", 1),
    ]
    assert entry.prior_loss_weight == 0.25


def test_a_dataset_has_its_own_weight(sets):
    content = sets(1, 1, prior_loss_weight=0.5)
    records = scan_all(config_of({**content, "prior_loss_weight": 0.75}).dataset).records
    assert [record.subset.loss_weight for record in records] == [1.0, 0.5]


# a state is resumed only with the same ones


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"prior_loss_weight": 0.5}, "dataset.datasets[0].prior_loss_weight (was 1.0, is 0.5)"),
        ({"class_tokens": "cat"}, "dataset.datasets[0].class_tokens (was off, is "),
    ],
)
def test_what_differs_is_named(change, name):
    before, after = (
        settings_fingerprint(config_of(subsets_of(TRAIN, REG, **keys))) for keys in ({}, change)
    )
    assert any(line.startswith(name) for line in differences(before, after))
    assert not differences(after, after)


def test_a_setting_that_changed_in_all_levels_is_named_once():
    before, after = (
        settings_fingerprint(config_of(subsets_of(TRAIN, REG, keep_tokens=n))) for n in (0, 2)
    )
    assert sum("keep_tokens" in path for path in before if before[path] != after[path]) > 2
    found = [line for line in differences(before, after) if "keep_tokens (" in line]
    assert found == ["dataset.datasets[0].keep_tokens (was 0, is 2)"]


def test_a_state_from_before_these_settings_goes_on():
    """The state lacks these settings, so they had their defaults."""
    plain = settings_fingerprint(config_of(subsets_of(TRAIN)))
    new = (".is_reg", ".class_tokens", ".prior_loss_weight")
    old = {path: value for path, value in plain.items() if not path.endswith(new)}
    assert len(old) < len(plain)
    assert not differences(old, plain)
    weighted = settings_fingerprint(config_of(subsets_of(TRAIN, REG, prior_loss_weight=0.5)))
    found = differences(old, weighted)
    assert any(line.startswith("dataset.datasets[0].prior_loss_weight (was 1.0") for line in found)
    assert any("subsets[1].is_reg (was absent" in line for line in found)


def test_a_subset_that_is_gone_is_named():
    before = settings_fingerprint(config_of(subsets_of(TRAIN, REG)))
    after = settings_fingerprint(config_of(subsets_of(TRAIN)))
    assert any("subsets[1]" in line and "absent" in line for line in differences(before, after))
    assert any("subsets[1]" in line and "absent" in line for line in differences(after, before))


def test_a_file_is_not_both(tmp_path):
    """Files in a folder within a folder would be trained on as both."""
    images_in(tmp_path / "a", 2, "a dog")
    images_in(tmp_path / "a" / "reg", 3, "dog", 9)
    own, reg = {"image_dir": str(tmp_path / "a")}, {"image_dir": str(tmp_path / "a" / "reg")}
    with pytest.raises(DatasetError, match=r"reg.*is given twice, as a regularisation image"):
        survey(config_of(subsets_of(own, {**reg, "is_reg": True})))
    found = survey(config_of(subsets_of({**own, "recursive": False}, {**reg, "is_reg": True})))
    assert found.balance.images == 3


# folders named N_class


def tree_of(tmp_path, *names):
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), (len(name), 0, 0)).save(tmp_path / name / "a.png")


def test_folders_are_subsets(tmp_path):
    tree_of(tmp_path, "t/10_sks dog", "t/2_a_b", "t/3", "t/0_off", "t/.impasto", "r/1_dog")
    (tmp_path / "t" / "notes.txt").write_text("x")
    assert dreambooth_subsets(tmp_path / "t", tmp_path / "r") == [
        {"image_dir": str(tmp_path / "t/10_sks dog"), "num_repeats": 10, "class_tokens": "sks dog"},
        {"image_dir": str(tmp_path / "t/2_a_b"), "num_repeats": 2, "class_tokens": "a_b"},
        {"image_dir": str(tmp_path / "t/3"), "num_repeats": 3},
        {
            "image_dir": str(tmp_path / "r/1_dog"), "num_repeats": 1, "class_tokens": "dog",
            "is_reg": True,
        },
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("dog", "10_dog"), ("ten_dog", "10_ten_dog"), ("_dog", "10_dog"), ("-1_dog", "10_dog"),
        ("1.5_dog", "10_dog"), ("10 dog", "10_dog"), ("x10_a", "10_x10_a"), ("1-2", "10_class"),
    ],
)  # fmt: skip
def test_badly_named_folders_are_refused(tmp_path, name, right):
    tree_of(tmp_path, "t/10_sks", f"t/{name}")
    with pytest.raises(ConfigError) as caught:
        dreambooth_subsets(tmp_path / "t")
    assert f"{name} has no number of repeats" in str(caught.value)
    assert f"as in {right}. " in str(caught.value)


@pytest.mark.parametrize("names", [["t/0_dog"], ["t/.hidden"], ["t"]])
def test_a_folder_without_such_folders_is_refused(tmp_path, names):
    tree_of(tmp_path, *names)
    with pytest.raises(ConfigError, match="holds no folder named N_class"):
        dreambooth_subsets(tmp_path / "t")


def test_folders_of_masks_beside_them_are_no_subsets(tmp_path):
    tree_of(tmp_path, "t/10_sks dog", "t/10_sks dog-masks", "t/1_party-masks")
    found = [Path(subset["image_dir"]).name for subset in dreambooth_subsets(tmp_path / "t")]
    assert found == ["10_sks dog", "1_party-masks"]


def test_folders_in_settings_stand_for_subsets(tmp_path):
    tree_of(tmp_path, "t/10_sks dog", "r/1_dog")
    folders = {"train_data_dir": str(tmp_path / "t"), "reg_data_dir": str(tmp_path / "r")}
    run = config_of({**folders, "resolution": 64, "min_bucket_reso": 64, "shuffle_caption": True})
    shutil.rmtree(tmp_path / "t")  # the resolved settings no longer need the folder names
    (entry,) = build_run_config(parse_toml(dump_toml(run)), source="again").dataset.entries
    assert entry.width_height == (64, 64)
    assert [(s.num_repeats, s.class_tokens, s.is_reg) for s in entry.subsets] == [
        (10, "sks dog", False),
        (1, "dog", True),
    ]
    assert all(subset.shuffle_caption for subset in entry.subsets)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ({"reg_data_dir": "r"}, "without dataset.train_data_dir"),
        ({"train_data_dir": "t", "image_dir": "a"}, "train_data_dir and dataset.image_dir"),
        ({"train_data_dir": "t", "config": "a"}, "train_data_dir and dataset.config"),
        ({"train_data_dir": "nowhere"}, "nowhere of dataset.train_data_dir does not exist"),
        ({"train_data_dir": "t", "reg_data_dir": "nowhere"}, "nowhere of dataset.reg_data_dir"),
        ({"train_data_dir": 5}, "train_data_dir is 5; expected the path of a folder"),
        ({"train_data_dir": "t", "reg_data_dir": ["r"]}, "reg_data_dir is ['r']; expected"),
        ({"train_data_dir": "dates"}, "asks for 20,240,315 repeats; expected up to 9,999"),
        ({"train_data_dir": "t", "prior_loss_weight": 0.5}, "prior_loss_weight has no effect"),
    ],
)
def test_folders_that_do_not_go_together_are_refused(tmp_path, monkeypatch, dataset, expected):
    tree_of(tmp_path, "t/1_a", "r/1_b", "dates/20240315_beach")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        config_of(dataset)
    assert expected in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="creating links needs a privilege on Windows")
def test_a_link_to_a_folder_is_not_followed(tmp_path):
    tree_of(tmp_path, "t/1_a", "private")
    (tmp_path / "t" / "10_dog").symlink_to(tmp_path / "private", target_is_directory=True)
    with pytest.raises(ConfigError, match="10_dog is a link to a folder, which is not followed"):
        dreambooth_subsets(tmp_path / "t")


def test_keys_beside_the_folders_hold_for_them(tmp_path):
    """Masks apply to training images only; subfolders only if requested."""
    tree_of(tmp_path, "t/1_a", "r/1_b")
    folders = {"train_data_dir": str(tmp_path / "t"), "reg_data_dir": str(tmp_path / "r")}
    for keys, recursive in (({}, False), ({"recursive": True}, True)):
        (entry,) = config_of({**folders, "mask_dir": "masks", **keys}).dataset.entries
        assert [str(subset.mask_dir) for subset in entry.subsets] == ["masks", "None"]
        assert [subset.recursive for subset in entry.subsets] == [recursive] * 2
