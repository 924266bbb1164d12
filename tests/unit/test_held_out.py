"""Held-out images: shown with training's captions, and never copies of training images.

If this failed, the validation loss would be measured with other captions than in training, or on
images that the model was trained on.
"""

import json
import shutil

import pytest
import tomli_w
from PIL import Image, ImageDraw

from impasto import files
from impasto.cli.evaluate_images import find_images
from impasto.config.differences import read_settings
from impasto.config.load import (
    build_dataset_config,
    build_run_config,
    dump_toml,
    load_run_of_source,
)
from impasto.data.captions import CaptionRules, TrainingPosition
from impasto.data.pixels.content_hashes import ContentHashes
from impasto.data.records import Size
from impasto.datasets.build import plan_dataset, scan_dataset, survey
from impasto.datasets.copies import group_byte_copies
from impasto.errors import DatasetError
from impasto.parsing import parse_toml
from impasto.progress import SilentProgress
from impasto.runs import RunDirectory

MOMENT = TrainingPosition(3, 20, 100)


@pytest.mark.parametrize(
    ("words", "steady", "rules"),
    [
        ("a ||| b, c", "a, b, c", {"shuffle": True, "keep_tokens_separator": "|||"}),
        ("a ||| b ||| z", "a, b, z", {"tag_dropout_rate": 0.5, "keep_tokens_separator": "|||"}),
        ("a ||| b, c", "a, b, c", {"warmup_steps": 50, "keep_tokens_separator": "|||"}),
        # training does not parse it either
        ("a ||| b, c", "a ||| b, c", {"keep_tokens_separator": "|||"}),
        ("a ;;; b,c", "a , b, c", {"shuffle": True, "secondary_separator": ";;;"}),
        ("a;;;b,c", "a,b,c", {"secondary_separator": ";;;"}),
        ("a. b", "a, b", {"shuffle": True, "separator": "."}),
        ("a,b\nc", "p a, b", {"shuffle": True, "prefix": "p"}),
    ],
)
def test_held_out_words_are_written_as_training_writes_them(words, steady, rules):
    kept = CaptionRules(**rules).steady()
    assert kept.write(words, MOMENT, 1, "x") == steady
    assert kept.steady() == kept
    assert not kept.changes_captions
    assert not kept.is_random
    # the same tags as a showing in training without dropout
    shown = CaptionRules(**{**rules, "tag_dropout_rate": 0, "warmup_steps": 0})
    if "shuffle" in rules:
        parts = sorted(part.strip() for part in shown.write(words, MOMENT, 1, "x").split(","))
        assert parts == sorted(part.strip() for part in steady.split(","))


@pytest.fixture
def folder(tmp_path):
    """Twenty images, each different, and a copy of each third one under another name."""
    target = tmp_path / "pictures"
    target.mkdir()
    for i in range(20):
        Image.new("RGB", (64, 64), (i * 12, 9, 9)).save(target / f"{i:02}.png")
        (target / f"{i:02}.txt").write_text(f"number {i}", encoding="utf-8")
    for i in range(0, 20, 3):
        shutil.copy(target / f"{i:02}.png", target / f"z{i:02}.png")
    return target


class Notes(SilentProgress):
    def __init__(self):
        self.lines = []

    def note(self, message):
        self.lines.append(message)


def config_of(folder, tmp_path, **others):
    values = {
        "output_dir": str(tmp_path / "run"),
        "model": {"path": "m"},
        "optimizer": {"lr": 1e-5},
        "training": {"max_steps": 1},
        "dataset": {"image_dir": str(folder), "cache_dir": str(tmp_path / "cache")},
    }
    for section, own in others.items():
        whole = {**values.get(section, {}), **own}
        values[section] = {key: value for key, value in whole.items() if value is not None}
    return build_run_config(values, source="test")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
def test_copies_are_on_one_side(folder, tmp_path, share, seed):
    notes = Notes()
    config = config_of(folder, tmp_path, validation={"split": share})
    config = config.model_copy(update={"seed": seed})
    split = survey(config, notes).split
    sides = [{r.path.read_bytes() for r in side} for side in (split.training, split.held_out)]
    assert not sides[0] & sides[1]
    assert len(split.training) + len(split.held_out) == 27
    assert 0 < len(split.held_out) <= round(27 * share)
    assert any("14 of 27 images are copies of one another" in line for line in notes.lines)


def test_without_copies_the_split_is_the_one_it_always_was(folder, tmp_path):
    for copy in folder.glob("z*.png"):
        copy.unlink()
    split = survey(config_of(folder, tmp_path, validation={"split": 0.2})).split
    from impasto.randomness import derive_rng

    order = derive_rng(42, "validation-split").permutation(20)[:4]
    assert sorted(r.path.stem for r in split.held_out) == sorted(f"{i:02}" for i in order)


def test_a_copy_in_a_data_set_that_holds_nothing_out(folder, tmp_path):
    """The held-out image is trained on there, so its copies in other datasets are too."""
    other = tmp_path / "other"
    other.mkdir()
    for path in sorted(folder.glob("[01]*.*"))[:20]:
        shutil.copy(path, other)
    datasets = [
        {"validation_split": share, "subsets": [{"image_dir": str(place)}]}
        for share, place in ((0.5, folder), (0.0, other))
    ]
    config = config_of(folder, tmp_path, validation={"split": 0.1})
    values = config.model_dump(mode="json", exclude_none=True)
    values["dataset"] = {"datasets": datasets, "cache_dir": str(tmp_path / "cache")}
    split = survey(build_run_config(values, source="test")).split
    trained = {r.path.read_bytes() for r in split.training}
    assert len(split.held_out) > 3
    assert not trained & {r.path.read_bytes() for r in split.held_out}
    assert all(r.path.parent == folder for r in split.held_out)


def test_a_folder_of_validation_without_what_is_trained_on(folder, tmp_path):
    own = tmp_path / "held-out"
    own.mkdir()
    shutil.copy(folder / "03.png", own / "copy.png")
    (own / "copy.txt").write_text("x", encoding="utf-8")
    rules = {"shuffle_caption": True, "keep_tokens_separator": "|||", "caption_extension": ".txt"}
    config = config_of(folder, tmp_path, validation={"image_dir": str(own)}, dataset=rules)
    with pytest.raises(DatasetError, match="is trained on too, or a copy of one that is"):
        survey(config)
    Image.new("RGB", (64, 64), "blue").save(own / "new.png")
    (own / "new.txt").write_text("a ||| b", encoding="utf-8")
    (own / "new.caption").write_text("of a kind that training does not read", encoding="utf-8")
    notes = Notes()
    split = survey(config, notes).split
    assert [r.name for r in split.held_out] == ["new.png"]
    assert [r.fixed_caption for r in split.held_out] == ["a, b"]
    assert len(split.training) == 27
    assert any("copy.png: a copy of" in line for line in notes.lines)


def test_what_a_folder_of_validation_cannot_use_is_said(folder, tmp_path):
    own = tmp_path / "held-out"
    own.mkdir()
    config = config_of(folder, tmp_path, validation={"image_dir": str(own)})
    with pytest.raises(DatasetError, match="held-out holds no images"):
        survey(config)
    for number in range(12):
        (own / f"broken{number:02}.png").write_bytes(b"not an image")
    with pytest.raises(DatasetError, match="None of the 12 images"):
        survey(config)
    Image.new("RGB", (64, 64), "blue").save(own / "new.png")
    (own / "a.psd").write_bytes(b"8BPS")
    notes = Notes()
    survey(config, notes)
    assert sum("Not validated on:" in line and "broken" in line for line in notes.lines) == 9
    assert any(line.startswith("... and 3 more") for line in notes.lines)
    assert any("a.psd" in line for line in notes.lines)


def test_a_picture_that_vanished_is_like_no_other(folder, tmp_path):
    records = scan_dataset(config_of(folder, tmp_path).dataset).records
    (folder / "z03.png").unlink()
    hashes = ContentHashes(tmp_path / "hashes.json")
    groups = group_byte_copies(records, hashes, SilentProgress())
    names = [r.name for r in records]
    assert groups[names.index("03.png")] != groups[names.index("z03.png")]
    assert groups[names.index("06.png")] == groups[names.index("z06.png")]


def test_where_all_have_copies_something_is_held_out(folder, tmp_path):
    for i in range(20):
        shutil.copy(folder / f"{i:02}.png", folder / f"y{i:02}.png")
    split = survey(config_of(folder, tmp_path, validation={"split": 0.03})).split
    assert 1 < len(split.held_out) < 4
    assert len({r.path.read_bytes() for r in split.held_out}) == 1


def scene(number, size=(96, 96)):
    """Return an image with structure that resembles no image of another number."""
    picture = Image.new("RGB", size, (230, 220, 200))
    draw, scale = ImageDraw.Draw(picture), size[0] / 96
    for k in range(9):
        x, y = (number * 37 + k * k * 29) % 80, (number * 53 + k * 41) % 80
        box = [x * scale, y * scale, (x + 6 + 3 * k) * scale, (y + 20 - k) * scale]
        colour = ((number * 71 + k * 90) % 256, (k * 60) % 256, (number * 31) % 256)
        (draw.ellipse if (number + k) % 2 else draw.rectangle)(box, fill=colour)
    return picture


@pytest.fixture
def scenes(tmp_path):
    """Sixteen images, and a copy of each fourth one, enlarged or saved again as JPEG."""
    target = tmp_path / "scenes"
    target.mkdir()
    for i in range(16):
        scene(i).save(target / f"{i:02}.png")
    for i in range(0, 16, 4):
        if i % 8:
            scene(i, (120, 120)).save(target / f"{i:02}-larger.png")
        else:
            scene(i).save(target / f"{i:02}-again.jpg", quality=80)
    for path in [*target.glob("*.png"), *target.glob("*.jpg")]:
        path.with_suffix(".txt").write_text("words", encoding="utf-8")
    return target


def sides_of(config):
    split = survey(config).split
    return [{r.path.stem[:2] for r in side} for side in (split.training, split.held_out)]


def test_pictures_that_look_the_same_are_on_one_side(scenes, tmp_path):
    """With twenty seeds; if only equal files counted, some images would be on both sides."""
    near, by_bytes = (
        config_of(scenes, tmp_path, validation={"split": 0.25, "copies": copies})
        for copies in ("near", "bytes")
    )
    seeds = [{"seed": seed} for seed in range(20)]
    assert not any(set.intersection(*sides_of(near.model_copy(update=s))) for s in seeds)
    assert any(set.intersection(*sides_of(by_bytes.model_copy(update=s))) for s in seeds)
    notes = Notes()
    found = survey(near, notes).split
    assert (found.copies.images, found.copies.groups) == (8, 4)
    assert any("8 of 20 images are copies of one another, or look" in line for line in notes.lines)
    both = [path for path in found.alike if path in {r.path for r in found.held_out}]
    assert len(both) == len(found.alike)


@pytest.mark.parametrize(
    ("copies", "split", "words"),
    [
        ("near", 0.25, "images that look the same count as copies"),
        ("bytes", 0.25, ""),
        ("bytes", 0.01, "Raise validation.split."),
    ],
)
def test_where_nothing_can_be_held_out_it_is_said_why(tmp_path, copies, split, words):
    """Twelve images look the same: without a message there would silently be no best model."""
    target = tmp_path / "alike"
    target.mkdir()
    for i in range(12):
        scene(3, (96 + i, 96 + i)).save(target / f"{i:02}.png")
        (target / f"{i:02}.txt").write_text("words", encoding="utf-8")
    notes = Notes()
    config = config_of(target, tmp_path, validation={"split": split, "copies": copies})
    assert bool(survey(config, notes).split.held_out) == (not words)
    told = [line for line in notes.lines if "No image is held out" in line]
    assert len(told) == bool(words)
    assert all(words in line for line in told)
    assert all(("validation.image_dir" in line) == (copies == "near") for line in told)


def test_it_is_said_how_much_more_than_the_share_is_held_out(tmp_path):
    """In two groups of six, one image in ten is requested, and half of them are held out."""
    target = tmp_path / "two"
    target.mkdir()
    for i in range(12):
        scene(3 + i % 2, (96 + i, 96 + i)).save(target / f"{i:02}.png")
        (target / f"{i:02}.txt").write_text("words", encoding="utf-8")
    notes = Notes()
    found = survey(config_of(target, tmp_path, validation={"split": 0.1}), notes).split
    assert len(found.held_out) == 6
    assert any("6 images are held out, 5 more than validation.split" in n for n in notes.lines)


def test_a_dry_run_splits_as_the_run_does(scenes, tmp_path):
    config = config_of(scenes, tmp_path, validation={"split": 0.25})
    with files.dry_run():
        planned = sides_of(config)
    assert not list((tmp_path / "cache").rglob("looks.table"))
    assert sides_of(config) == planned


def test_plain_surfaces_do_not_look_the_same(folder, tmp_path):
    for copy in folder.glob("z*.png"):
        copy.unlink()
    found = survey(config_of(folder, tmp_path, validation={"split": 0.2})).split
    assert found.copies.groups == 0


def test_an_image_of_several_datasets_counts_once(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("impasto.datasets.copies.MOST_COMPARED", 20)
    subsets = [{"image_dir": str(scenes)}]
    entries = [{"resolution": side, "subsets": subsets} for side in (256, 320)]
    values = {"image_dir": None, "datasets": entries}
    notes = Notes()
    found = survey(config_of(scenes, tmp_path, dataset=values, validation={"split": 0.25}), notes)
    assert found.split.copies.near
    assert found.split.copies.groups == 4
    assert not any("images, looks are not compared" in line for line in notes.lines)


@pytest.mark.parametrize("lacks", [0, 1, 20])
def test_buckets_of_metadata_are_for_a_whole_dataset_or_not_at_all(folder, tmp_path, lacks):
    """Held-out images are planned separately, in the same buckets."""
    names = [f"{i:02}.png" for i in range(20)]
    asked = {"train_resolution": [64, 128]}
    entries = {
        name: {"caption": name, **({} if n < lacks else asked)} for n, name in enumerate(names)
    }
    (tmp_path / "meta.json").write_text(json.dumps(entries), encoding="utf-8")
    dataset = {"metadata_file": str(tmp_path / "meta.json"), "bucket_table": "metadata",
               "resolution": 64, "min_bucket_reso": 64, "max_bucket_reso": 128}  # fmt: skip
    notes = Notes()
    config = config_of(folder, tmp_path, dataset=dataset, validation={"split": 0.5})
    found = survey(config, notes)
    held_out = plan_dataset(config.dataset, found.split.held_out)
    wanted = Size(64, 64) if lacks else Size(64, 128)
    assert {*found.plan.bucket_counts} == {*held_out.bucket_counts} == {wanted}
    said = [line for line in notes.lines if "have no train_resolution" in line]
    assert len(said) == (lacks == 1)


@pytest.mark.parametrize(
    ("buckets", "wanted", "told"),
    [
        ({"bucket_no_upscale": True}, [(64, 128)], "bucket_no_upscale has no effect"),
        (
            {"enable_bucket": False, "bucket_no_upscale": True},
            [(64, 128)],
            "enable_bucket = false has no effect",
        ),
        ({}, [(64, 128)], ""),
        ({"buckets": [[128, 128]]}, [(128, 128)], ""),
    ],
)
def test_what_buckets_of_metadata_override_is_told_and_a_table_of_ones_own_comes_first(
    folder, tmp_path, buckets, wanted, told
):
    names = [f"{i:02}.png" for i in range(20)]
    entries = {name: {"caption": name, "train_resolution": [64, 128]} for name in names}
    (tmp_path / "meta.json").write_text(json.dumps(entries), encoding="utf-8")
    subset = {"metadata_file": str(tmp_path / "meta.json"), "image_dir": str(folder)}
    sides = {"resolution": 64, "min_bucket_reso": 64, "max_bucket_reso": 128}
    general = {"enable_bucket": True, **sides, **buckets}
    file = tmp_path / "data.json"
    file.write_text(json.dumps({"general": general, "datasets": [{"subsets": [subset]}]}))
    notes = Notes()
    config = build_dataset_config({"config": str(file)}, source="test")
    plan = plan_dataset(config, scan_dataset(config, notes).records)
    assert {*plan.bucket_counts} == {Size(*size) for size in wanted}
    said = [line for line in notes.lines if "no effect" in line]
    assert len(said) == bool(told)
    assert all(told in line for line in said)


def test_of_very_many_images_equal_files_alone_are_found(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("impasto.datasets.copies.MOST_COMPARED", 19)
    notes = Notes()
    found = survey(config_of(scenes, tmp_path, validation={"split": 0.25}), notes).split
    assert found.copies.groups == 0
    assert not found.copies.near
    assert any("images, looks are not compared" in line for line in notes.lines)


def test_a_folder_of_validation_without_what_looks_like_training(scenes, tmp_path):
    own = tmp_path / "held-out"
    own.mkdir()
    scene(3).save(own / "again.jpg", quality=75)
    (own / "again.txt").write_text("x", encoding="utf-8")
    config = config_of(scenes, tmp_path, validation={"image_dir": str(own)})
    with pytest.raises(DatasetError, match="only look the same"):
        survey(config)
    by_bytes = config_of(scenes, tmp_path, validation={"image_dir": str(own), "copies": "bytes"})
    assert len(survey(by_bytes).split.held_out) == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_of_an_earlier_version_held_out_by_equal_files_whoever_asks(scenes, tmp_path, seed):
    """With another selection, a model would be evaluated on its training images."""
    validation = {"split": 0.25, "copies": "bytes"}
    config = config_of(scenes, tmp_path, validation=validation).model_copy(update={"seed": seed})
    run = RunDirectory(tmp_path / "old")
    run.path.mkdir()
    tree = parse_toml(dump_toml(config))
    for name in ("copies", "standard_error", "training_images"):
        tree["validation"].pop(name, None)
    run.config_file.write_text(tomli_w.dumps(tree), encoding="utf-8")
    run.status_file.write_text("{}", encoding="utf-8")
    began = sides_of(config)
    assert began != sides_of(
        config_of(scenes, tmp_path, validation={"split": 0.25}).model_copy(update={"seed": seed})
    )
    for source in (run.path, run.config_file):
        assert sides_of(load_run_of_source(source)) == began
    runs = {"run": load_run_of_source(run.path)}
    held_out = find_images(runs, None, None, SilentProgress()).real
    assert {image.path.stem[:2] for image in held_out.entries} == began[1]
    settings, _ = read_settings(run.config_file.read_text(encoding="utf-8"))
    assert settings["validation.copies"] == "bytes"
    run.status_file.unlink()  # a user's settings file of that name, not from a run
    assert load_run_of_source(run.config_file).validation.copies == "near"
