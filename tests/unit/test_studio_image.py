"""The page of one image: what it shows, saves and refuses."""

import base64
import io
import json
import os
import sys

import pytest
from PIL import Image
from studios import FROM_HERE

from impasto.data.inspecting.image_list import read_image_list
from impasto.data.pixels.cuts import crop_file, cut_beside, write_cut
from impasto.data.records import Box, Size
from impasto.studio.datasets import dataset_of, derived_of, image_of
from impasto.studio.folders import address_of
from impasto.studio.pages.data_views import LIST_FILE
from impasto.studio.pages.image_views import masks_folder
from impasto.studio.verbs import run_verb

HOSTILE = '<img src=x onerror="alert(1)">'


def encoded(path, number=0):
    return f"{number}." + base64.urlsafe_b64encode(os.fsencode(path)).decode().rstrip("=")


@pytest.fixture
def cats(folder):
    cats = folder.parent / "data" / "cats"
    (cats / "sub").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "sub/c.png"):
        Image.new("RGB", (300, 200), (200, 90, 30)).save(cats / name)
    (cats / "b.txt").write_text(HOSTILE, encoding="utf-8")
    return cats


@pytest.fixture
def at(studio, cats):
    def address(name, end=""):
        dataset = address_of(studio.folders.data, cats)
        return f"/data/{dataset}/images/{address_of([cats], cats / name)}{end}"

    return address


def png(size=(300, 200), color=255, mode="L"):
    content = io.BytesIO()
    Image.new(mode, size, color).save(content, "PNG")
    return content.getvalue()


def test_the_page_shows_the_image_its_neighbours_and_words_as_text(client, at, cats):
    page = client.get(at("b.jpg"))
    assert page.status_code == 200
    assert "300 × 200" in page.text
    assert at("a.png") in page.text
    assert at("sub/c.png") in page.text
    assert "2 of 3" in page.text
    assert HOSTILE not in page.text
    assert "&lt;img src=x" in page.text
    assert " style=" not in page.text
    file = client.get(at("b.jpg").replace("/images/", "/files/"))
    assert file.content == (cats / "b.jpg").read_bytes()
    assert file.headers["content-type"] == "image/jpeg"
    assert str(cats) not in json.dumps(dict(file.headers))


def test_what_browsers_show_otherwise_is_given_as_an_upright_copy(client, at, cats):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 200), (0, 200, 0)).save(cats / "turned.png", exif=exif)
    Image.new("RGB", (5000, 4000), (0, 200, 0)).save(cats / "large.png")
    Image.new("CMYK", (64, 64), (0, 200, 0, 0)).save(cats / "print.tif")
    sizes = {"turned.png": (200, 300), "large.png": (2048, 1638), "print.tif": (64, 64)}
    for name, size in sizes.items():
        answer = client.get(at(name).replace("/images/", "/files/"))
        assert answer.headers["content-type"] == "image/jpeg"
        with Image.open(io.BytesIO(answer.content)) as shown:
            assert (shown.format, shown.mode, shown.size) == ("JPEG", "RGB", size)
            assert not shown.getexif()


def test_an_image_that_cannot_be_read_says_why(client, at, cats):
    (cats / "bad.png").write_text("<html>", encoding="utf-8")
    for address in (at("bad.png"), at("bad.png").replace("/images/", "/files/")):
        answer = client.get(address)
        assert answer.status_code == 422
        assert "an HTML page saved under an image" in answer.text


def test_facts_in_a_strangers_folder_decide_nothing(client, at, cats):
    """The same holds for links there, which a zip file may contain."""
    assert client.get(at("a.png")).status_code == 200
    views = cats / ".impasto" / "views"
    (kept,) = views.iterdir()
    true = json.loads(kept.read_text(encoding="utf-8"))
    page = at("a.png").replace("/images/", "/files/")
    for change in ({"media_type": "text/html"}, {"width": "<b>"}, {"format": ["x"]}):
        kept.write_text(json.dumps({**true, **change}), encoding="utf-8")
        answer = client.get(page)
        assert answer.headers["content-type"] == "image/png"
        assert json.loads(kept.read_text(encoding="utf-8")) == true
    secret = cats.parent.parent / "secret.json"
    secret.write_text(json.dumps({**true, "format": "SECRET"}), encoding="utf-8")
    kept.unlink()
    kept.symlink_to(secret)
    assert "SECRET" not in client.get(at("a.png")).text
    assert "SECRET" in secret.read_text(encoding="utf-8")


def test_a_folder_of_views_that_leads_out_is_not_written(client, at, cats, studio):
    outside = cats.parent.parent / "outside"
    outside.mkdir()
    (cats / ".impasto").symlink_to(outside)
    assert client.get(at("a.png")).status_code == 200
    assert list(outside.iterdir()) == []
    assert len(list((studio.home / "views").iterdir())) == 1


def test_addresses_lead_to_images_of_datasets_alone(client, studio, cats, at):
    outside = cats.parent.parent / "secret.png"
    Image.new("RGB", (8, 8)).save(outside)
    (cats / "link.png").symlink_to(outside)
    (cats / "words.txt").write_text("x", encoding="utf-8")
    (cats / ".hidden").mkdir()
    Image.new("RGB", (8, 8)).save(cats / ".hidden" / "x.png")
    (cats / "folder.png").mkdir()
    assert dataset_of(studio.folders, encoded("cats")) == cats
    assert image_of(cats, encoded("a.png")) == cats / "a.png"
    for name in (
        encoded("../../secret.png"), encoded(str(outside)), encoded("link.png"),
        encoded("gone.png"),
        encoded("words.txt"), encoded(".hidden/x.png"), encoded("folder.png"), encoded("a\0.png"),
        encoded("../cats/../../secret.png"), "0.%%%", "1.YQ", "x", encoded("x" * 5000 + ".png"),
    ):  # fmt: skip
        assert image_of(cats, name) is None, name
        dataset = address_of(studio.folders.data, cats)
        for path in (f"/data/{dataset}/images/{name}", f"/data/{dataset}/files/{name}"):
            assert client.get(path).status_code == 404, name
    for name in (encoded("../runs"), encoded("cats/a.png"), encoded("gone"), "7.YQ", ""):
        assert dataset_of(studio.folders, name) is None, name


@pytest.mark.skipif(sys.platform != "linux", reason="Windows and macOS refuse such names")
@pytest.mark.parametrize(
    "name", ['"><b>.png', "two\nlines.png", "%2e%2e.png", "-x.png", "\udcff.png"]
)
def test_strange_names_are_shown_and_cropped(client, at, cats, name):
    Image.new("RGB", (300, 200)).save(cats / name)
    page = client.get(at(name))
    assert page.status_code == 200
    assert "<b>" not in page.text.replace("<b>Impasto", "")
    form = {"x": 0, "y": 0, "width": 96, "height": 96}
    answer = client.post(at(name, "/crop"), data=form, headers=FROM_HERE, follow_redirects=False)
    assert answer.status_code == 303
    assert cut_beside(cats / name).box.size == Size(96, 96)


def test_a_crop_is_kept_shown_and_removed(client, at, cats):
    form = {"x": "30", "y": "20", "width": "96", "height": "128"}
    answer = client.post(at("b.jpg", "/crop"), data=form, headers=FROM_HERE)
    assert answer.status_code == 200
    assert cut_beside(cats / "b.jpg").box == Box(30, 20, Size(96, 128))
    assert 'name="height" type="number" min="8" max="200" value="128"' in answer.text
    assert "Use the whole image" in answer.text
    answer = client.post(at("b.jpg", "/crop"), data={**form, "remove": "1"}, headers=FROM_HERE)
    assert cut_beside(cats / "b.jpg") is None
    assert "Use the whole image" not in answer.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": "301"}, "outside of the image"),
        ({"x": "-1"}, "outside of the image"),
        ({"height": "7"}, "less than 8 pixels"),
        ({"x": "1.5"}, "whole numbers"),
        ({"x": ""}, "whole numbers"),
        ({"x": "9" * 4000}, "whole numbers"),
        ({"width": "9" * 30}, "whole numbers"),
    ],
)
def test_a_rectangle_that_is_none_is_refused_and_changes_nothing(client, at, cats, change, words):
    form = {"x": "0", "y": "0", "width": "96", "height": "96", **change}
    answer = client.post(at("b.jpg", "/crop"), data=form, headers=FROM_HERE)
    assert answer.status_code == 422
    assert words in answer.text
    assert not crop_file(cats / "b.jpg").exists()
    asked = client.get(at("b.jpg", "/bucket"), params={**form, "resolution": "512"})
    assert asked.status_code == 422
    assert asked.json()["fault"]


def test_a_crop_of_another_image_is_shown_as_a_fault_and_can_be_removed(client, at, cats):
    crop_file(cats / "b.jpg").write_text("{}", encoding="utf-8")
    page = client.get(at("b.jpg"))
    assert "This image is skipped" in page.text
    assert "Use the whole image" in page.text


def test_the_bucket_is_the_one_of_the_plan(client, at):
    form = {"x": "0", "y": "0", "width": "200", "height": "100", "resolution": "512"}
    found = client.get(at("b.jpg", "/bucket"), params=form).json()
    assert found["bucket"] == "704x320"
    assert found["enlarged"] is True
    x, y, width, height = found["kept"]
    assert (x, width) == (0, 1)
    assert y == pytest.approx((1 - height) / 2, abs=0.01)
    assert found["cropped"] == pytest.approx(1 - height)
    assert client.get(at("b.jpg", "/bucket"), params={**form, "resolution": "7"}).status_code == 422


def test_a_crop_goes_where_the_gallery_says_that_it_goes(client, at, cats, studio):
    """The resolution and bounds are those of the dataset's list, not 512 pixels."""
    assert "<option selected>512</option>" in client.get(at("b.jpg")).text
    write_cut(cats / "b.jpg", Size(300, 200), Box(0, 0, Size(100, 200)))
    file = derived_of(cats, studio.home) / LIST_FILE
    words = ["--out", file, "--resolution", "96", "--min-side", "32", "--max-side", "192"]
    run_verb(["dataset", "list", cats, *words, "--step", "16"], cats, 120)
    listed = next(i for i in read_image_list(file).images if i.path == "b.jpg")
    assert (listed.width, listed.height) == (100, 200)
    page = client.get(at("b.jpg")).text
    assert "<option selected>96</option>" in page
    assert "<dt>Crop</dt><dd>100 × 200</dd>" in page
    form = {"x": "0", "y": "0", "width": "100", "height": "200", "resolution": "96"}
    found = client.get(at("b.jpg", "/bucket"), params=form).json()
    assert found["bucket"] == listed.bucket
    assert found["cropped"] == pytest.approx(listed.cropped, abs=1e-6)
    gallery = client.get(at("b.jpg").partition("/images/")[0]).text
    assert "100 × 200 after its crop" in gallery


def test_a_painted_mask_is_kept_where_training_reads_it(client, at, cats, studio):
    sent = {"mask": ("mask.png", png((150, 100), 77), "image/png")}
    answer = client.post(at("sub/c.png", "/mask"), files=sent, headers=FROM_HERE)
    assert answer.status_code == 200, answer.text
    with Image.open(cats.parent / "cats-masks" / "sub" / "c.png") as mask:
        assert (mask.size, mask.getextrema()) == ((300, 200), (77, 77))
    assert list((studio.home / "uploads").iterdir()) == []
    assert 'data-mask="yes"' in client.get(at("sub/c.png")).text
    shown = client.get(at("sub/c.png", "/mask"))
    assert shown.headers["content-type"] == "image/png"
    assert client.get(at("a.png", "/mask")).status_code == 404
    elsewhere = client.get(at("sub/c.png", "/mask"), params={"masks": "../other"})
    assert elsewhere.status_code == 404


@pytest.mark.parametrize(
    "content", [b"", b"x" * 1000, png((100, 100)), b"<svg onload='alert(1)'/>"], ids=range(4)
)
def test_what_is_no_mask_of_the_image_is_refused(client, at, cats, content):
    sent = {"mask": ("mask.png", content, "image/png")}
    answer = client.post(at("a.png", "/mask"), files=sent, headers=FROM_HERE)
    assert answer.status_code == 422
    assert not (cats.parent / "cats-masks").exists()
    assert client.post(at("a.png", "/mask"), headers=FROM_HERE).status_code == 422


def test_folders_of_masks_stay_within_the_folders_of_images(client, at, cats, studio):
    outside = cats.parent.parent / "outside"
    outside.mkdir()
    (cats.parent / "link").symlink_to(outside)
    for masks in (
        str(outside), "../../outside", "../link", "../link/x", "../link/../..", "a\0b", "x" * 5000,
    ):  # fmt: skip
        data = {"masks": masks}
        sent = {"mask": ("mask.png", png(), "image/png")}
        refused = client.post(at("a.png", "/mask"), data=data, files=sent, headers=FROM_HERE)
        assert refused.status_code == 422, masks
        assert client.get(at("a.png"), params=data).status_code == 422, masks
        asked = {**data, "model": "clothes"}
        refused = client.post(at("a.png", "/mask/model"), data=asked, headers=FROM_HERE)
        assert refused.status_code == 422, masks
    assert list(outside.iterdir()) == []
    data = studio.folders.data
    assert masks_folder(data, cats, "") == cats.parent / "cats-masks"
    assert masks_folder(data, cats.parent, "") == cats.parent / ".masks"
    assert masks_folder(data, cats, "../other") == cats.parent / "other"


def test_a_model_makes_the_mask_as_a_task(client, at, cats, studio, monkeypatch):
    started = []

    def start(words, title, back, folder):
        started.append(([str(word) for word in words], title, back))
        task = studio.home / "tasks" / "20260101-000000-abcdef"
        task.mkdir(parents=True, exist_ok=True)
        (task / "task.json").write_text("{}", encoding="utf-8")
        return task.name

    monkeypatch.setattr(studio.tasks, "start", start)
    (studio.folders.models[0] / "own").mkdir()
    form = {"model": "own", "labels": "cat, -dog,", "grow": "-3", "blur": "2", "invert": "on"}
    answer = client.post(at("sub/c.png", "/mask/model"), data=form, headers=FROM_HERE)
    assert answer.status_code == 200
    (words, title, back), *_ = started
    assert words == [
        "dataset", "mask", str(cats), "--only=sub/c.png",
        f"--model={studio.folders.models[0] / 'own'}", "--label=cat", "--label=-dog",
        "--out", str(cats.parent / "cats-masks"), "--grow=-3", "--blur=2", "--invert",
    ]  # fmt: skip
    assert (title, back) == ("Make the mask of c.png", at("sub/c.png"))
    for wrong in (
        {"model": "../../etc"}, {"model": "/etc"}, {"model": ""}, {"model": "--help"},
        {"grow": "x"}, {"blur": "-1"}, {"grow": "99999"},
    ):  # fmt: skip
        answer = client.post(at("a.png", "/mask/model"), data={**form, **wrong}, headers=FROM_HERE)
        assert answer.status_code == 422, wrong
    assert len(started) == 1


def test_captions_as_training_will_see_them_come_with_their_tokens(client, at):
    part = client.get(at("b.jpg", "/showings"))
    assert part.status_code == 200
    assert part.text.count("<li>") == 4
    assert "epoch 4" in part.text
    assert " tokens" in part.text
    assert HOSTILE not in part.text
    assert "&lt;img" in part.text
