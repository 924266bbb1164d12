"""Masks in `cats-masks` beside `cats` are found by `new` and the studio, and are not a dataset."""

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from impasto.cli.new import new
from impasto.data.folders.mask_folders import mask_names
from impasto.data.folders.masks import masks_of
from impasto.data.inspecting.image_list import (
    ImageList,
    ListedImage,
    folders_below,
    write_image_list,
)
from impasto.data.scanning.scan import scan_folder
from impasto.demo.recipe import BASE_MODEL
from impasto.studio.datasets import derived_of, find_datasets
from impasto.studio.folders import Folders, address_of
from impasto.studio.pages.data_views import LIST_FILE


def picture(path, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (64, 64)).save(path)


@pytest.fixture
def cats(tmp_path):
    cats = tmp_path / "data" / "cats"
    for name in ("a.png", "b.jpg", "sub/c.png"):
        picture(cats / name)
    return cats


def test_settings_for_a_goal_name_the_masks_beside_the_images(cats, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def made(data, out):
        words = ["--goal", "style", "--data", str(data), "--model", str(BASE_MODEL), "--out", out]
        CliRunner().invoke(new, words, catch_exceptions=False)
        text = Path(out).read_text(encoding="utf-8")
        return text, tomllib.loads(text)["dataset"]

    assert "mask_dir" not in made(cats, "none.toml")[1]
    picture(cats.with_name("cats-masks") / "other.png", "L")
    assert "mask_dir" not in made(cats, "other.toml")[1]
    picture(cats.with_name("cats-masks") / "b.png", "L")
    text, tree = made(cats, "whole.toml")
    assert tree["mask_dir"] == str(cats.with_name("cats-masks"))
    assert "masks of 1 of the 3 images" in text
    assert Path(made(Path("data/cats"), "relative.toml")[1]["mask_dir"]) == Path("data/cats-masks")


def test_the_names_agree_with_what_training_takes(cats):
    masks = cats.with_name("cats-masks")
    for name in ("b.png", "sub/c.webp", "A.png"):
        picture(masks / name, "L")
    records = scan_folder(cats).records
    found = mask_names(cats, [cats.parent])
    folder, number = masks_of(cats, records)  # which uses training's own `mask_file`
    assert folder == masks
    assert number == sum(found.has(record.file_name) for record in records)
    assert found.has("b.jpg")
    assert mask_names(cats, [cats]) is None  # beside it would be outside of the shown folders
    picture(cats / ".masks" / "a.png", "L")
    assert mask_names(cats, [cats]).folder == cats / ".masks"


def test_folders_of_masks_are_no_datasets_and_others_are(cats):
    data = cats.parent
    picture(data / "cats-masks" / "a.png", "L")
    picture(data / "cats-masks" / "sub" / "c.png", "L")
    picture(data / "carnival-masks" / "a.png")  # no folder of that name beside it
    picture(data / "dogs" / "a.png")
    picture(data / "dogs-masks" / "venice.png")  # with none of their names
    picture(data / "birds" / "a.png")
    picture(data / "birds-masks" / "a.png")
    (data / "birds-masks" / "a.txt").write_text("a bird with a mask", encoding="utf-8")
    found = [d.path.relative_to(data).as_posix() for d in find_datasets(Folders((), [data]))]
    assert found == [
        "birds", "birds-masks", "carnival-masks", "cats", "cats/sub", "dogs", "dogs-masks",
    ]  # fmt: skip


def test_the_gallery_marks_and_filters_images_with_a_mask_and_a_crop(client, studio, cats):
    picture(cats.with_name("cats-masks") / "sub" / "c.png", "L")
    (cats / "a.png.crop.json").write_text("{}", encoding="utf-8")
    names = ["a.png", "b.jpg", "sub/c.png"]
    file = derived_of(cats, studio.home) / LIST_FILE
    file.parent.mkdir(parents=True)
    images = [ListedImage(name, width=64, height=64, bucket="64x64") for name in names]
    write_image_list(file, ImageList(images, folders=folders_below(cats)))
    address = f"/data/{address_of(studio.folders.data, cats)}"

    def shown(query=""):
        text = client.get(address + query).text
        cards = text.split('<a class="card"')[1:]
        return [name for name in names if any(f'title">{name}<' in c for c in cards)], text, cards

    every, text, cards = shown()
    assert every == names
    assert "1 with a mask" in text
    assert [">mask</span>" in card for card in cards] == [False, False, True]
    assert [">crop</span>" in card for card in cards] == [True, False, False]
    assert shown("?mask=some")[0] == ["sub/c.png"]
    assert shown("?mask=none")[0] == ["a.png", "b.jpg"]
