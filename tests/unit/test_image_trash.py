"""Images are moved to their dataset's trash with the files that belong to them, and restored."""

import os
import sys

import pytest
from PIL import Image
from studios import FROM_HERE

from impasto.data.scanning.scan import scan_folder
from impasto.errors import DatasetError
from impasto.progress import size_text
from impasto.studio.folders import address_of
from impasto.studio.image_trash import put_away, put_back, trashed


@pytest.fixture
def cats(folder):
    cats = folder.parent / "data" / "cats"
    (cats / "sub").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "twin.png", "twin.jpg", "sub/a.png"):
        Image.new("RGB", (64, 64), (9, 90, 30)).save(cats / name)
    for name in ("a.txt", "a.caption", "a.png.crop.json", "a.npz", "a_0064x0064_sd.npz",
                 "a_te_outputs.npz", "b.txt", "twin.txt", "about.txt", "sub/a.txt"):  # fmt: skip
        (cats / name).write_text(name, encoding="utf-8")
    (cats.with_name("cats-masks") / "sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "sub/a.png"):
        (cats.with_name("cats-masks") / name).write_bytes(b"mask")
    return cats


def held(data):
    return {p.relative_to(data).as_posix() for p in data.rglob("*")
            if p.is_file() and not any(part.startswith(".") for part in p.parts)}  # fmt: skip


def address(studio, cats):
    return f"/data/{address_of(studio.folders.data, cats)}"


@pytest.mark.parametrize("number", [2, 20])
def test_a_folder_is_listed_once_however_many_images_go(cats, monkeypatch, number):
    for name in (f"{n}{ending}" for n in range(20) for ending in (".png", ".txt", "_8x8_sd.npz")):
        (cats / name).write_bytes(b"x")
        (cats.with_name("cats-masks") / name).write_bytes(b"x")
    listed = []

    def counting(real):
        def list_it(path="."):
            listed.append(str(path))
            return real(path)

        return list_it

    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, counting(getattr(os, name)))
    images = [cats / f"{n}.png" for n in range(number)]
    entry = put_away(cats, images, [cats.parent])
    assert listed.count(str(cats)) == 1
    assert listed.count(str(cats.with_name("cats-masks"))) == 2  # to find names with masks
    assert len([p for p in entry.path.iterdir() if p.is_file()]) == 3 * number
    assert len(list((entry.path / ".masks-beside").iterdir())) == number


def test_twins_that_go_together_take_what_is_of_both(cats):
    entry = put_away(cats, [cats / "twin.png", cats / "twin.jpg"], [cats.parent])
    assert sorted(path.name for path in entry.path.iterdir()) == [
        "twin.jpg", "twin.png", "twin.txt",
    ]  # fmt: skip


def test_what_is_beside_an_image_goes_with_it_and_comes_back(client, studio, cats):
    before = held(cats.parent)
    content = (cats / "a.png").read_bytes()
    here = address(studio, cats)
    sent = {"image": [address_of([cats], cats / "a.png"), address_of([cats], cats / "twin.png")]}
    answer = client.post(f"{here}/trash", data=sent, headers=FROM_HERE)
    assert answer.status_code == 200
    assert before - held(cats.parent) == {
        "cats/a.png", "cats/a.txt", "cats/a.caption", "cats/a.png.crop.json", "cats/a.npz",
        "cats/a_0064x0064_sd.npz", "cats/a_te_outputs.npz", "cats-masks/a.png", "cats/twin.png",
    }  # fmt: skip
    assert len(scan_folder(cats).records) == 3  # files in the trash are not part of the dataset
    assert "a.png, twin.png" in answer.text
    [entry] = trashed(cats)
    client.post(f"{here}/trash/{entry.name}/restore", headers=FROM_HERE)
    assert held(cats.parent) == before
    assert (cats / "a.png").read_bytes() == content
    assert (cats / "a.txt").read_text(encoding="utf-8") == "a.txt"
    assert trashed(cats) == []
    assert client.post(f"{here}/trash/{entry.name}/restore", headers=FROM_HERE).status_code == 404


def test_nothing_is_replaced_and_a_refused_restore_moves_nothing(client, studio, cats):
    entry = put_away(cats, [cats / "a.png", cats / "b.jpg"], studio.folders.data)
    (cats / "b.txt").write_text("a new one", encoding="utf-8")
    before = held(cats.parent)
    answer = client.post(f"{address(studio, cats)}/trash/{entry.name}/restore", headers=FROM_HERE)
    assert answer.status_code == 409
    assert "b.txt already exists" in answer.text
    assert held(cats.parent) == before
    assert entry.images == ["a.png", "b.jpg"]


def test_only_images_of_the_dataset_are_moved(client, studio, cats):
    here, before = address(studio, cats), held(cats.parent)
    for name in ("0.x", address_of([cats], cats / "a.txt"), address_of([cats], cats / "gone.png")):
        refused = client.post(f"{here}/trash", data={"image": name}, headers=FROM_HERE)
        assert refused.status_code == 400
    assert client.post(f"{here}/trash", headers=FROM_HERE).status_code == 400
    assert held(cats.parent) == before
    assert trashed(cats) == []


def test_masks_elsewhere_than_in_the_studios_folders_stay(cats):
    put_away(cats, [cats / "a.png"], [cats])
    assert (cats.with_name("cats-masks") / "a.png").exists()


def test_images_are_deleted_for_good_by_their_entry_alone(client, studio, cats):
    first = put_away(cats, [cats / "a.png"], studio.folders.data)
    second = put_away(cats, [cats / "b.jpg"], studio.folders.data)
    assert first.name != second.name
    size = sum(path.stat().st_size for path in first.path.rglob("*") if path.is_file())
    assert size == first.size > 0
    said = client.post(f"{address(studio, cats)}/trash/{first.name}/remove", headers=FROM_HERE).text
    assert f"1 image was removed for good. That freed {size_text(size)}." in said
    assert "removed for good" not in client.get(address(studio, cats)).text
    assert [entry.name for entry in trashed(cats)] == [second.name]


@pytest.mark.skipif(sys.platform == "win32", reason="creating links needs a privilege on Windows")
def test_a_strangers_trash_leads_nowhere(cats, tmp_path, studio):
    outside = tmp_path / "outside"
    (outside / "20260101-000000-0").mkdir(parents=True)
    (outside / "20260101-000000-0" / "x.png").write_bytes(b"x")
    (cats / ".image-trash").symlink_to(outside, target_is_directory=True)
    assert trashed(cats) == []
    with pytest.raises(DatasetError, match="is not a folder"):
        put_away(cats, [cats / "a.png"], studio.folders.data)
    (cats / ".image-trash").unlink()
    (cats / ".image-trash").mkdir()
    (cats / ".image-trash" / "20260101-000000-0").symlink_to(outside / "20260101-000000-0")
    assert trashed(cats) == []
    (cats / ".image-trash" / "20260101-000000-1" / "out").mkdir(parents=True)
    (cats / ".image-trash" / "20260101-000000-1" / "out" / "x.png").write_bytes(b"x")
    (cats / "out").symlink_to(outside, target_is_directory=True)
    [entry] = trashed(cats)
    with pytest.raises(DatasetError, match="none of the studio's folders"):
        put_back(entry, studio.folders.data)
    assert sorted(p.name for p in outside.rglob("*.png")) == ["x.png"]
