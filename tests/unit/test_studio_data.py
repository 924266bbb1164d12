"""The studio's dataset pages: filters, thumbnails of hostile images, failing uploads."""

import base64
import html
import io
import json
import os
import re
import shlex
import shutil
import sys
import time
import zlib
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import draw_images
from hypothesis import given
from hypothesis import strategies as st
from packing import pack_parquet, pack_tars
from PIL import Image
from starlette.exceptions import HTTPException
from studios import FROM_HERE
from test_run_status import GONE, make_run

from impasto import temporary_names
from impasto.data.folders.formats import EXTENSIONS, heif_advice
from impasto.data.inspecting.image_list import (
    ImageList,
    ListedImage,
    folders_below,
    write_image_list,
)
from impasto.files import sha256_of
from impasto.owners import current_process
from impasto.studio import datasets
from impasto.studio import losses as losses_module
from impasto.studio.datasets import dataset_of, derived_of, find_all, find_datasets, image_of
from impasto.studio.folders import Folders, address_of
from impasto.studio.gallery import PER_PAGE, GalleryFilter, chosen, reason_kind
from impasto.studio.losses import read_losses
from impasto.studio.pages.data_views import start_command
from impasto.studio.tag_index import TagIndex
from impasto.studio.thumbnails import (
    CONTENT,
    Thumbnails,
    content_file,
    hash_file,
    reason_of,
    thumbnail_of,
)
from impasto.studio.uploads import CAPTIONS, UploadReceiver, give_name, why_no_name

STRANGE = [
    "<img src=x onerror=alert(1)>.png",
    'a"b.png',
    "%2e%2e.png",
    "two\nlines.png",
    "a&b;c.png",
]


@pytest.fixture
def data(folder):
    return folder.parent / "data"


@pytest.fixture
def cats(data):
    (data / "cats").mkdir()
    for number in range(3):
        png(data / "cats" / f"{number}.png", (60 + number, 40))
    return data / "cats"


@pytest.fixture
def started(studio, monkeypatch):
    """Tasks that are recorded but not started."""
    words = []

    def start(asked, title, back="/", folder=None):
        words.append([str(word) for word in asked])
        return "20260101-000000-abcdef"

    monkeypatch.setattr(studio.tasks, "start", start)
    return words


def png(path, size=(8, 8)):
    Image.new("RGB", size, (200, 40, 40)).save(path, "PNG")
    return path


def encoded(size=(8, 8), kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind)
    return file.getvalue()


def address(studio, dataset):
    return f"/data/{address_of(studio.folders.data, dataset)}"


def listed(studio, dataset, images, **more):
    file = derived_of(dataset, studio.home) / "studio" / "images.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_image_list(file, ImageList(images, folders=folders_below(dataset), **more))


# the list of datasets


def test_datasets_are_folders_with_images_up_to_three_levels_down(client, studio, data, cats):
    for name in ("a/b/c", "a/b/c/d", ".hidden", "words"):
        (data / name).mkdir(parents=True)
    for place in ("a/b/c", "a/b/c/d", ".hidden"):
        png(data / place / "x.png")
    (data / "words" / "x.txt").write_text("x", encoding="utf-8")
    run = make_run(data / "run", phase="finished", process=GONE)
    (run.path / "samples").mkdir()
    png(run.path / "samples" / "x.png")
    found = {s.path.relative_to(data).as_posix(): s.count for s in find_datasets(studio.folders)}
    assert found == {"a/b/c": 1, "cats": 3}
    page = client.get("/data").text
    assert "3 images" in page
    assert f'href="{address(studio, cats)}"' in page


def test_a_large_folder_hides_no_dataset_of_another_and_is_named(data, cats, monkeypatch, client):
    monkeypatch.setattr(datasets, "FOLDERS_AT_MOST", 10)
    many = data / "many"
    for number in range(12):
        (many / str(number)).mkdir(parents=True)
    cut = []
    found = find_all(Folders((), [many, cats]), cut)
    assert ([one.path for one in found], cut) == ([cats], [many])
    assert "Datasets may be missing here" in client.get("/data").text
    monkeypatch.undo()
    assert "may be missing" not in client.get("/data").text


def test_packed_images_are_named_and_not_opened(client, studio, data, cats, tmp_path):
    tars = pack_tars(draw_images(tmp_path / "drawn", 2), data / "laion")
    tables = pack_parquet(tmp_path / "drawn", data / "hub")
    assert [s.path for s in find_datasets(studio.folders)] == [cats]
    page = client.get("/data").text
    assert f"<code>{tars}</code>" in page
    assert f"<code>{tables / 'data'}</code>" in page
    assert f'href="{address(studio, tars)}"' not in page
    shutil.rmtree(tars)
    shutil.rmtree(tables)
    assert "Images inside tars" not in client.get("/data").text


def test_a_list_of_packed_images_is_shown_without_thumbnails(client, studio, data, tmp_path):
    """`impasto dataset list` wrote the list; nothing reads a member from the disk."""
    tars = pack_tars(draw_images(tmp_path / "drawn", 2), data / "laion")
    names = [f"shard-000.tar/00{number}.png" for number in range(2)]
    listed(studio, tars, [ListedImage(name, width=64, height=64, bucket="64x64") for name in names])
    answer = client.get(address(studio, tars))
    assert answer.status_code == 200
    for name in names:
        assert name in answer.text
        assert client.get(f"{address(studio, tars)}/thumbnails/0:{name}").status_code == 404
    assert client.get(f"{address(studio, tars)}/captions").status_code == 200


@pytest.mark.skipif(sys.platform == "win32", reason="shlex parses like POSIX shells")
def test_the_page_says_how_to_show_another_folder(client, studio, data, tmp_path):
    """The command includes all folders that are shown now, so none of them is lost."""
    (tmp_path / "more & more").mkdir()
    runs, more, models = (tmp_path / name for name in ("runs", "more & more", "models"))
    given = Folders([runs], [data, more], [models])
    said = start_command(replace(studio, folders=given, listens=[("--port", 7123)]))
    assert shlex.split(said.partition(" studio ")[2]) == [
        "--runs", str(runs), "--data", str(data), "--data", str(more), "--data", "FOLDER",
        "--models", str(models), "--queue", str(studio.queue),
        "--port", "7123",
    ]  # fmt: skip
    page = html.unescape(client.get("/data").text)
    assert start_command(studio) in page
    assert str(data) in page


def test_a_card_names_the_bucket(client, studio, cats, started):
    listed(studio, cats, [ListedImage("0.png", bucket="448x576", captioned=True)])
    page = client.get(address(studio, cats)).text
    assert '<span class="badge bucket">bucket 448 × 576</span>' in page
    listed(studio, cats, [ListedImage("0.png", skipped="the file is empty")])
    assert "badge bucket" not in client.get(address(studio, cats)).text


def test_an_address_names_datasets_and_images_inside_alone(studio, data, cats, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    png(outside / "x.png")
    (cats / ".hidden.png").write_bytes(b"")
    (cats / "words.txt").write_text("x", encoding="utf-8")
    (cats / "folder.png").mkdir()
    folders = studio.folders
    assert dataset_of(folders, address_of(folders.data, cats)) == cats
    assert image_of(cats, address_of([cats], cats / "0.png")) == cats / "0.png"
    for path in ("missing", "../outside", str(outside), "cats/0.png", "cats/../cats", ".home"):
        assert dataset_of(folders, name_of(path)) is None, path
    for path in (
        ".hidden.png", "words.txt", "folder.png", "missing.png", "../outside/x.png", "a\0.png",
        str(outside / "x.png"), "../cats/0.png", "x" * 300 + ".png",
    ):  # fmt: skip
        assert image_of(cats, name_of(path)) is None, path
    for name in ("", "x", "1.ZG9n", "-1.ZG9n", "x" * 4000):
        assert dataset_of(folders, name) is None
        assert image_of(cats, name) is None
    if sys.platform != "win32":
        (cats / "link.png").symlink_to(outside / "x.png")
        (data / "link").symlink_to(outside)
        assert image_of(cats, name_of("link.png")) is None
        assert dataset_of(folders, name_of("link")) is None


def name_of(path):
    return "0." + base64.urlsafe_b64encode(os.fsencode(path)).decode().rstrip("=")


def test_derived_data_is_not_written_where_a_link_leads_out(cats, tmp_path):
    home = tmp_path / "home"
    assert derived_of(cats, home) == cats / ".impasto"
    (tmp_path / "elsewhere").mkdir()
    (cats / ".impasto").symlink_to(tmp_path / "elsewhere")
    assert derived_of(cats, home).is_relative_to(home)


@pytest.mark.skipif(sys.platform == "win32", reason="creating links needs a privilege on Windows")
def test_a_report_that_is_a_link_out_is_not_sent(client, studio, cats, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text('{"secret": 1}', encoding="utf-8")
    (cats / ".impasto" / "studio").mkdir(parents=True)
    for name, page in (("report.html", "report"), ("report.json", "health")):
        link = cats / ".impasto" / "studio" / name
        link.symlink_to(secret)
        assert client.get(f"{address(studio, cats)}/{page}").status_code == 404
        link.unlink()


def test_a_new_dataset_is_a_folder(client, studio, data, cats):
    made = client.post("/data", data={"name": "dogs"}, headers=FROM_HERE, follow_redirects=False)
    assert made.status_code == 303
    assert made.headers["location"] == address(studio, data / "dogs")
    page = client.get(made.headers["location"])
    assert "no images here yet" in page.text
    assert "dogs" in client.get("/data").text  # shown though it is empty
    for name in ("cats", "", " ", "../x", "a/b", "a\\b", ".x", "con", "a\nb", "x" * 300, "a."):
        answer = client.post("/data", data={"name": name}, headers=FROM_HERE)
        assert [step.status_code for step in answer.history] == [303], name  # "back" asks nothing
        assert 'id="name-fault"' in answer.text, name
    answer = client.post("/data", data={"name": "ok", "where": "7"}, headers=FROM_HERE)
    assert answer.status_code == 400
    assert sorted(p.name for p in data.iterdir()) == ["cats", "dogs"]


# galleries

names = st.sampled_from(["", "cat", "cat, solo", "Solo,night", "a red cat\nsolo", "catalogue"])
some_images = st.lists(
    st.builds(
        ListedImage,
        path=st.text("abcXYZ/.", min_size=1, max_size=6),
        mtime_ns=st.integers(0, 5),
        width=st.integers(0, 3),
        height=st.integers(1, 3),
        bucket=st.sampled_from(["", "512x512", "640x384"]),
        cropped=st.sampled_from([0.0, 0.1, 0.101, 0.5]),
        enlarged=st.sampled_from([0.0, 1.2]),
        caption=names,
        captioned=st.booleans(),
        skipped=st.sampled_from(["", "", "the file is empty", "damaged (x 1)", "damaged (y 2)"]),
        copies=st.integers(0, 2),
        near=st.integers(0, 2),
    ),
    max_size=25,
)
choices = st.builds(
    GalleryFilter,
    caption=st.sampled_from(["", "none", "some"]),
    use=st.sampled_from(["", "used", "skipped"]),
    why=st.sampled_from(["", "", "damaged", "the file is empty"]),
    small=st.booleans(),
    alike=st.sampled_from(["", "", "copies", "near"]),
    cropped=st.sampled_from([None, None, 0, 10, 60]),
    bucket=st.sampled_from(["", "", "512x512"]),
    tag=st.sampled_from(["", "", "solo", "SOLO, cat", "cat"]),
    words=st.sampled_from(["", "", "CAT", "x"]),
    sort=st.sampled_from(["", "name", "newest", "size", "loss"]),
)


def fits(image, choice):
    """A slow, plain implementation of the gallery's filters."""
    text = f"{image.caption}|{image.path}".lower()
    own = [tag.strip() for tag in image.caption.lower().replace("\n", ",").split(",")]
    wanted = [tag.strip() for tag in choice.tag.lower().split(",") if tag.strip()]
    return all(
        (
            not (choice.use == "used" and (image.skipped or choice.why)),
            image.skipped or choice.use != "skipped",
            not choice.why or image.skipped.startswith(choice.why),
            not (choice.caption == "none" and (image.captioned or image.skipped)),
            not (choice.caption == "some" and (not image.captioned or image.skipped)),
            image.enlarged or not choice.small,
            image.copies or choice.alike != "copies",
            image.near or choice.alike != "near",
            choice.cropped is None or image.cropped * 100 > choice.cropped,
            choice.bucket in ("", image.bucket),
            choice.words.lower() in text,
            set(wanted) <= set(own),
        )
    )


@given(some_images, choices, st.dictionaries(st.text("abc", max_size=2), st.floats(0, 9)))
def test_filters_show_what_a_slow_filter_shows(images, choice, means):
    losses = {name: (mean, 1) for name, mean in means.items()}
    found = chosen(images, choice, losses, TagIndex(images))
    expected = [image for image in images if fits(image, choice)]
    assert sorted(found) == sorted(expected)
    sort = choice.sort or ("loss" if losses else "name")
    if choice.alike:
        groups = [getattr(image, choice.alike) for image in found]
        assert groups == sorted(groups)
    elif sort == "name":
        assert found == expected
    else:
        key = {
            "newest": lambda i: i.mtime_ns,
            "size": lambda i: i.width * i.height,
            "loss": lambda i: losses[i.path][0] if i.path in losses else -1,
        }[sort]
        values = [key(image) for image in found]
        assert values == sorted(values, reverse=True)


@given(choices)
def test_an_address_asks_for_what_was_chosen(choice):
    from urllib.parse import parse_qsl

    assert GalleryFilter.of(dict(parse_qsl(choice.address()[1:]))) == choice


@given(st.dictionaries(st.sampled_from(sorted(GalleryFilter().__dict__)), st.text(max_size=9)))
def test_any_address_is_understood(given):
    images = [ListedImage("a")]
    assert chosen(images, GalleryFilter.of(given), {}, TagIndex(images)) in ([], images)


def test_tags_are_found_in_any_letter_case_and_whole():
    captions = ["Solo, cat", "solo\nCAT", "solo cat", "", "cat, cat , SOLO", "stra\u00dfe"]
    tags = TagIndex(ListedImage(str(n), caption=text) for n, text in enumerate(captions))
    assert list(tags.rows(["SOLO"])) == [0, 1, 4]
    assert list(tags.rows(["solo", "Cat"])) == [0, 1, 4]
    assert list(tags.rows(["solo cat"])) == [2]
    assert list(tags.rows(["solo", "missing"])) == []
    assert list(tags.rows(["STRASSE"])) == [5]
    assert tags.most_frequent(2) == ["cat", "Solo"]


def test_reasons_of_one_kind_are_one():
    assert reason_kind("damaged or truncated (no 5)") == "damaged or truncated"


def test_a_page_of_5000_images_has_a_hundred(client, studio, data, started):
    (data / "many").mkdir()
    png(data / "many" / "00000.png")
    images = [
        ListedImage(f"{n:05}.png", caption=f"tag {n}", captioned=n % 2 == 0, bucket="512x512")
        for n in range(5000)
    ]
    listed(studio, data / "many", images)
    page = client.get(f"{address(studio, data / 'many')}?page=30&caption=none").text
    assert page.count('class="card"') == PER_PAGE == 100
    assert "2,500 images of 5,000" in page
    assert "Page 25 of 25" in page  # the last page, if a missing one is requested
    assert "04999.png" in page
    assert "04998.png" not in page
    second = client.get(f"{address(studio, data / 'many')}?page=2").text
    assert "00199.png" in second
    assert "00200.png" not in second


@pytest.mark.skipif(sys.platform != "linux", reason="Windows and macOS refuse such names")
def test_strange_names_and_captions_are_text(client, studio, cats, started):
    for name in STRANGE:
        png(cats / name)
    caption = "</select><script>alert(2)</script>" + "x" * 100_000
    plain = client.get(address(studio, cats)).text
    images = [ListedImage(n, caption=caption, captioned=True, skipped="") for n in STRANGE]
    images += [ListedImage("../../etc/x.png"), ListedImage("/etc/x.png"), ListedImage("a\0.png")]
    listed(studio, cats, images, unused=[("<script>alert(3)", "<b>")])
    page = client.get(address(studio, cats)).text
    for text in (plain, page):
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert text.count('class="card"') >= len(STRANGE)
    assert len(page) < 60_000
    assert "etc" not in page
    for name in STRANGE:
        thumb = f"{address(studio, cats)}/thumbnails/{address_of([cats], cats / name)}"
        assert client.get(thumb).headers["content-type"] == "image/jpeg", name


def test_groups_of_copies_stand_side_by_side(client, studio, cats, started):
    groups = {"0.png": 2, "1.png": 1, "2.png": 2}
    listed(studio, cats, [ListedImage(name, copies=group) for name, group in groups.items()])
    page = client.get(f"{address(studio, cats)}?alike=copies").text
    assert page.index("group 1") < page.index(">1.png<") < page.index("group 2")
    assert page.index("group 2") < page.index(">0.png<") < page.index(">2.png<")
    assert page.count("The same content") == 2


def test_a_folder_that_changed_is_read_again(client, studio, cats, started):
    page = address(studio, cats)
    assert 'hx-trigger="load"' in client.get(page).text
    assert client.get(page).text.count('class="card"') == 3  # shown though no list exists
    stats = [(name, (cats / name).stat()) for name in ("0.png", "1.png", "2.png")]
    listed(studio, cats, [ListedImage(n, s.st_size, s.st_mtime_ns) for n, s in stats])
    assert 'hx-trigger="load"' not in client.get(page).text
    os.utime(cats / "1.png", ns=(5, 5))  # overwritten in place
    assert 'hx-trigger="load"' in client.get(page).text
    os.utime(cats / "1.png", ns=(5, stats[1][1].st_mtime_ns))
    assert 'hx-trigger="load"' not in client.get(page).text
    png(cats / "new.png")
    assert 'hx-trigger="load"' in client.get(page).text


def sizes_of(words):
    names = ("--resolution", "--min-side", "--max-side", "--step")
    return [words[words.index(name) + 1] if name in words else None for name in names]


def test_a_list_is_made_for_the_resolution_that_is_known(client, studio, cats, folder, started):
    page, models = address(studio, cats), folder.parent / "models"

    def asked(form=()):
        client.post(f"{page}/read", data=dict(form), headers=FROM_HERE)
        return sizes_of(started.pop())

    assert asked() == [None] * 4
    unet = models / "tiny" / "unet"
    unet.mkdir(parents=True)
    (models / "tiny" / "model_index.json").write_text("{}", encoding="utf-8")
    (unet / "config.json").write_text(
        '{"sample_size": 16, "cross_attention_dim": 64}', encoding="utf-8"
    )
    assert asked() == ["128", "64", "256", "32"]  # the resolution of the only model
    assert asked({"resolution": "768"}) == ["768", None, None, None]
    (models / "other.safetensors").write_bytes(b"")  # which may be of any size
    assert asked() == [None] * 4
    run = make_run(folder / "run", phase="finished", process=GONE)
    settings = f"[dataset]\nimage_dir = '{cats}'\nresolution = 384\nmax_bucket_reso = 640\n"
    run.config_file.write_text(settings, encoding="utf-8")
    assert asked() == ["384", None, "640", None]
    client.post(f"{page}/report", headers=FROM_HERE)
    assert sizes_of(started.pop()) == ["384", None, "640", None]
    for pair, side in (("[768, 768]", "768"), ("[512, 768]", "627")):  # of the same area
        run.config_file.write_text(settings.replace("384", pair), encoding="utf-8")
        assert asked() == [side, None, "640", None]
    listed(studio, cats, [ListedImage("0.png")], options={"resolution": 1024})
    client.post(f"{page}/report", headers=FROM_HERE)
    assert sizes_of(started.pop()) == ["1024", None, None, None]  # the purpose of the badges


@pytest.mark.parametrize(("options", "pixels"), [({}, 512), ({"resolution": 128}, 128)])
def test_what_is_too_small_is_so_at_a_resolution(client, studio, cats, started, options, pixels):
    listed(studio, cats, [ListedImage("0.png", enlarged=2.0)], options=options)
    page = client.get(address(studio, cats)).text
    assert f"enlarged ×2 at {pixels} pixels" in page
    assert f"1 too small at {pixels} pixels" in page
    assert ("No resolution is known" in page) == (not options)


def test_a_list_of_an_empty_folder_hides_nothing_that_was_added(client, studio, cats, started):
    """The folder was read while it was empty, before the first upload."""
    listed(studio, cats, [])
    page = client.get(address(studio, cats)).text
    assert page.count('class="card"') == 3
    assert 'hx-trigger="load"' in page
    assert "no images here yet" not in page


def test_reading_and_reporting_are_tasks(client, studio, cats, started):
    page = address(studio, cats)
    answer = client.post(
        f"{page}/read",
        data={"resolution": "768", "step": "", "no_upscale": "1", "copies": "1"},
        headers=FROM_HERE,
        follow_redirects=False,
    )
    assert (answer.status_code, answer.headers["location"]) == (303, page)
    derived = str(cats / ".impasto")
    assert started.pop() == [
        "dataset", "list", str(cats), "--out", str(cats / ".impasto" / "studio" / "images.jsonl"),
        "--cache-dir", derived, "--resolution", "768", "--no-upscale", "--copies",
    ]  # fmt: skip
    part = client.post(f"{page}/report", headers={**FROM_HERE, "hx-request": "true"})
    assert 'id="work-report"' in part.text
    assert started.pop()[:3] == ["dataset", "report", str(cats)]
    for value in ("x", "0", "-1", "99999", "1e3", "²"):
        answer = client.post(f"{page}/read", data={"step": value}, headers=FROM_HERE)
        assert answer.status_code == 400, value
        assert "Sides in steps of" in answer.text
    (cats / "config.toml").write_text("[dataset]\nimage_dir = '/'", encoding="utf-8")
    answer = client.post(f"{page}/read", headers=FROM_HERE)
    assert answer.status_code == 409  # a stranger's settings could name other folders
    assert started == []
    assert client.get(f"{page}/progress/words").status_code == 404
    assert client.get(f"{page}/report").status_code == 404
    (cats / ".impasto" / "studio").mkdir(parents=True, exist_ok=True)
    (cats / ".impasto" / "studio" / "report.html").write_text("<p>", encoding="utf-8")
    report = client.get(f"{page}/report")
    assert report.headers["content-disposition"].startswith("attachment")


def test_a_real_list_is_made_and_shown(client, studio, cats):
    page = address(studio, cats)
    client.post(f"{page}/read", headers=FROM_HERE)
    for _ in range(600):
        part = client.get(f"{page}/progress/list?had=0")
        if "data-read" in part.text:
            break
        assert "was not read" not in part.text
        time.sleep(0.1)
    assert "data-read" in part.text  # the page then shows the results
    for process in studio.tasks._started.values():
        process.wait()
    shown = client.get(page).text
    assert "3 without caption" in shown
    assert 'hx-trigger="load"' not in shown


@pytest.mark.parametrize(
    ("code", "words"), [(130, "was stopped"), (143, "was stopped"), (4, "was not read")]
)
def test_a_reading_that_was_stopped_is_not_begun_again_by_the_page(
    client, studio, cats, code, words
):
    page = address(studio, cats)
    task = studio.home / "tasks" / temporary_names.dated_name()
    task.mkdir(parents=True)
    about = {"words": ["dataset", "list"], "back": page, "started_at": time.time() + 9}
    (task / "task.json").write_text(json.dumps(about), encoding="utf-8")
    ended = {"time": 1.0, "kind": "ended", "code": code}
    (task / "events.jsonl").write_text(json.dumps(ended) + "\n", encoding="utf-8")
    part, whole = client.get(f"{page}/progress/list").text, client.get(page).text
    for text in (part, whole):
        assert words in text
        assert "has been read" not in text
        assert 'hx-trigger="load"' not in text
    png(cats / "new.png")
    os.utime(cats, (time.time() + 60, time.time() + 60))
    assert 'hx-trigger="load"' in client.get(page).text


def test_a_dataset_that_is_removed_or_closed_is_named(client, studio, cats, data, started):
    page = address(studio, cats)
    thumb = f"{page}/thumbnails/{address_of([cats], cats / '0.png')}"
    listed(studio, cats, [ListedImage("0.png"), ListedImage("gone.png")])
    assert "no longer exists" in client.get(page).text
    if os.name != "nt" and os.geteuid():
        cats.chmod(0)
        try:
            assert client.get("/data").status_code == 200
            assert client.get(page).status_code in (200, 500)
        finally:
            cats.chmod(0o755)
    shutil.rmtree(cats)
    for path in (page, thumb, f"{page}/report", f"{page}/progress/list"):
        assert client.get(path).status_code == 404, path
    for path in ("read", "report", "upload"):
        assert client.post(f"{page}/{path}", headers=FROM_HERE).status_code == 404, path
    assert client.get("/data").status_code == 200


def test_a_folder_that_may_not_be_read_hides_no_other(client, studio, cats, data, monkeypatch):
    real = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(path)
        return real(path)

    (data / "closed").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    assert "cats" in client.get("/data").text
    assert "no images here yet" in client.get(address(studio, data / "closed")).text


# losses of a run


def run_begun_in(path, place):
    run = make_run(path, phase="finished", process=GONE)
    status = {"phase": "finished", "process": GONE, "folder": str(place)}
    run.status_file.write_text(json.dumps(status), encoding="utf-8")
    return run


def test_the_losses_of_a_run_are_ratios_to_all_at_the_same_noise(
    client, studio, folder, cats, started
):
    run = run_begun_in(folder / "dog", cats.parent)
    rows = [
        ("1", "cats/0.png", "5", "0.5"), ("1", "cats/0.png", "9", "1.5"), ("x",),
        ("2", str(cats / "2.png"), "5", "3"), ("2", "/elsewhere/1.png", "5", "9"),
        ("3", "cats/0.png", "5", "nan"), ("3", '"cats/0.png', "5"),
    ]  # fmt: skip
    table = "step,image,timestep,loss\n" + "\n".join(",".join(row) for row in rows)
    run.image_losses_file.write_text(table, encoding="utf-8")
    found = read_losses(run, cats)
    assert found == {"0.png": pytest.approx((1 / 3.5, 2)), "2.png": pytest.approx((3 / 3.5, 1))}
    listed(studio, cats, [ListedImage(f"{n}.png") for n in range(3)])
    page = client.get(f"{address(studio, cats)}?run={studio.folders.name_of(run)}").text
    assert page.index(">2.png<") < page.index(">0.png<") < page.index(">1.png<")
    assert "0.86 × the usual loss, shown 1×" in page
    other = client.get(f"{address(studio, cats)}?run=0.x").text
    assert "has no image of this dataset" in other


def test_of_a_long_table_of_losses_the_newest_rows_count(folder, cats, monkeypatch):
    monkeypatch.setattr(losses_module, "NEWEST_BYTES", 60)
    run = run_begun_in(folder / "dog", cats.parent)
    old = "1,cats/0.png,5,9\n" * 20
    run.image_losses_file.write_text(old + "2,cats/1.png,5,1\n" * 3, encoding="utf-8")
    assert read_losses(run, cats) == {"1.png": (1.0, 3)}


# thumbnails


@pytest.fixture(scope="module")
def thumbnails():
    made = Thumbnails()
    yield made
    made.close()


def test_a_thumbnail_is_made_once_and_anew_when_the_image_changes(thumbnails, cats):
    derived, image = cats / ".impasto", cats / "0.png"
    Image.new("RGB", (1000, 300), (255, 0, 0)).save(image)
    first = hash_file(derived, cats, image)
    assert thumbnails.request(image, first).result() == ""
    red = thumbnail_of(first)
    with Image.open(red) as made:
        assert made.size == (256, 77)
    written = red.stat().st_mtime_ns
    assert thumbnails.request(image, first).result() == ""
    assert red.stat().st_mtime_ns == written
    Image.new("RGB", (1000, 300), (0, 0, 255)).save(image)
    os.utime(image, ns=(7, 7))
    second = hash_file(derived, cats, image)
    assert thumbnails.request(image, second).result() == ""
    assert thumbnail_of(second) not in (None, red)
    assert not first.exists()
    assert not red.exists()


def test_of_a_changed_image_the_old_thumbnail_goes_unless_the_content_is_the_same(thumbnails, cats):
    derived, image, copied = cats / ".impasto", cats / "0.png", cats / "copy.png"
    shutil.copyfile(image, copied)
    place, of_copy = (hash_file(derived, cats, path) for path in (image, copied))
    for path in (image, copied):
        thumbnails.request(path, hash_file(derived, cats, path)).result()
    made = thumbnail_of(place)
    os.utime(image, ns=(7, 7))  # the same bytes
    assert thumbnails.request(image, hash_file(derived, cats, image)).result() == ""
    assert made.is_file()
    png(image, (99, 9))
    assert thumbnails.request(image, hash_file(derived, cats, image)).result() == ""
    assert not made.exists()
    assert thumbnails.request(copied, of_copy).result() == ""
    assert thumbnail_of(of_copy) == made


def test_a_thumbnail_that_is_there_waits_for_no_other(client, studio, cats, monkeypatch):
    where = f"{address(studio, cats)}/thumbnails"
    there, missing = (f"{where}/{address_of([cats], cats / name)}" for name in ("0.png", "1.png"))
    assert client.get(there).status_code == 200
    asked = []

    def request(_, source, place):
        asked.append(source.name)
        answer = Future()
        answer.set_result("all are busy")
        return answer

    monkeypatch.setattr(Thumbnails, "request", request)
    assert client.get(there).headers["content-type"] == "image/jpeg"
    assert client.get(missing).text == "all are busy"
    assert asked == ["1.png"]


def test_the_strip_of_a_dataset_has_the_version_of_each_image(client, studio, cats):
    place = hash_file(cats / ".impasto", cats, cats / "0.png")
    wanted = f"{address_of([cats], cats / '0.png')}?v={place.stem.partition('-')[2]}"
    assert f"/thumbnails/{wanted}" in client.get("/data").text


def test_a_file_chooser_offers_every_kind_that_is_taken(client, studio, cats):
    page = client.get(address(studio, cats)).text
    offered = re.search('id="files"[^>]* accept="([^"]*)"', page)[1].split(",")
    assert offered == ["image/*", *sorted(EXTENSIONS | CAPTIONS)]


def test_an_image_that_was_renamed_keeps_its_thumbnail(thumbnails, cats):
    """Renamed and copied images keep their thumbnails, which depend on the content."""
    derived, image = cats / ".impasto", cats / "0.png"
    thumbnails.request(image, hash_file(derived, cats, image)).result()
    made = thumbnail_of(hash_file(derived, cats, image))
    os.utime(made, ns=(7, 7))
    (cats / "below").mkdir()
    renamed = image.rename(cats / "below" / "renamed.png")
    shutil.copyfile(renamed, cats / "copy.png")
    for path in (renamed, cats / "copy.png"):
        place = hash_file(derived, cats, path)
        assert thumbnail_of(place) is None
        assert thumbnails.request(path, place).result() == ""
        assert thumbnail_of(place) == made
    assert made.stat().st_mtime_ns == 7
    assert len(list((derived / "thumbnails" / CONTENT).rglob("*.jpg"))) == 1


def test_a_thumbnail_that_was_removed_is_made_again(thumbnails, cats):
    place = hash_file(cats / ".impasto", cats, cats / "0.png")
    thumbnails.request(cats / "0.png", place).result()
    shutil.rmtree(cats / ".impasto" / "thumbnails" / CONTENT)
    assert thumbnail_of(place) is None
    assert thumbnails.request(cats / "0.png", place).result() == ""
    assert thumbnail_of(place).is_file()


@pytest.mark.parametrize("content", ["", "../../x", "a" * 63, "A" * 64, "a" * 65, "\xe4" * 64])
def test_a_hash_of_a_stranger_that_is_none_leads_nowhere(cats, content):
    place = hash_file(cats / ".impasto", cats, cats / "0.png")
    place.parent.mkdir(parents=True)
    place.write_text(content, encoding="utf-8")
    assert thumbnail_of(place) is None


@pytest.mark.skipif(sys.platform == "win32", reason="creating links needs a privilege on Windows")
def test_a_thumbnail_that_is_a_link_out_is_not_shown(thumbnails, cats, tmp_path):
    place = hash_file(cats / ".impasto", cats, cats / "0.png")
    thumbnails.request(cats / "0.png", place).result()
    found = thumbnail_of(place)
    found.unlink()
    found.symlink_to(png(tmp_path / "secret.png"))
    assert thumbnail_of(place) is None
    thumbnails.request(cats / "0.png", place).result()
    assert not thumbnail_of(place).is_symlink()


@pytest.mark.skipif(sys.platform == "win32", reason="creating links needs a privilege on Windows")
@pytest.mark.parametrize("which", ["hashes", "content"])
def test_no_thumbnail_is_written_through_a_link_that_leads_out(thumbnails, cats, tmp_path, which):
    place = hash_file(cats / ".impasto", cats, cats / "0.png")
    content = content_file(place, sha256_of(cats / "0.png"))
    (elsewhere := tmp_path / "elsewhere").mkdir()
    link = place.parent if which == "hashes" else content.parent
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    assert "leads out of the dataset" in thumbnails.request(cats / "0.png", place).result()
    (cats / "0.png").write_bytes(b"no image")  # the reason is written beside its hash
    place = hash_file(cats / ".impasto", cats, cats / "0.png")
    assert thumbnails.request(cats / "0.png", place).result()
    assert list(elsewhere.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="creating links needs a privilege on Windows")
def test_a_reason_of_a_stranger_leads_nowhere_and_is_short(cats, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret " * 10_000, encoding="utf-8")
    place = hash_file(cats / ".impasto", cats, cats / "0.png")
    place.parent.mkdir(parents=True)
    place.with_suffix(".txt").symlink_to(secret)
    assert reason_of(place) == ""
    place.with_suffix(".txt").unlink()
    secret.rename(place.with_suffix(".txt"))
    assert 0 < len(reason_of(place)) <= 2000


def hostile():
    whole = encoded((300, 300), "JPEG")
    huge = bytearray(encoded((8, 8)))
    huge[16:24] = (20_000).to_bytes(4, "big") * 2
    return {
        "empty": (b"", "empty"),
        "cut": (whole[: len(whole) // 2], "truncated"),
        "page": (b"<!doctype html><p>", "HTML"),
        "bomb": (bytes(huge), ""),
        "zeros": (bytes(5000), "zeros"),
        "script": (b"#!/bin/sh\nexit", "not an image"),
    }


@pytest.mark.parametrize("name", hostile())
def test_a_damaged_image_costs_its_thumbnail_alone(thumbnails, cats, name):
    content, words = hostile()[name]
    image = cats / f"{name}.png"
    image.write_bytes(content)
    target = hash_file(cats / ".impasto", cats, image)
    reason = thumbnails.request(image, target).result()
    assert reason
    assert words in reason
    assert reason_of(target) == reason  # which is not determined again
    assert not target.exists()
    good = hash_file(cats / ".impasto", cats, cats / "0.png")
    assert thumbnails.request(cats / "0.png", good).result() == ""


def test_an_image_of_200_megapixels_is_refused_with_a_sentence(thumbnails, cats):
    large = bytearray(encoded((8, 8)))
    large[16:24] = (20_000).to_bytes(4, "big") + (10_000).to_bytes(4, "big")
    large[29:33] = zlib.crc32(bytes(large[12:29])).to_bytes(4, "big")
    (cats / "large.png").write_bytes(large)
    target = hash_file(cats / ".impasto", cats, cats / "large.png")
    assert "over 179 megapixels" in thumbnails.request(cats / "large.png", target).result()
    large[20:24] = (5_000).to_bytes(4, "big")
    large[29:33] = zlib.crc32(bytes(large[12:29])).to_bytes(4, "big")
    (cats / "wide.png").write_bytes(large)
    target = hash_file(cats / ".impasto", cats, cats / "wide.png")
    assert (
        "20000x5000 pixels are too many" in thumbnails.request(cats / "wide.png", target).result()
    )


def test_a_large_image_can_be_uploaded_but_a_bomb_cannot(thumbnails, tmp_path):
    file = tmp_path / "part"
    Image.new("1", (10_000, 7_000)).save(file, "PNG")
    assert thumbnails.check(file, "a.png") == ""
    file.write_bytes(file.read_bytes()[:-600])
    assert "damaged" in thumbnails.check(file, "a.png")
    head = bytearray(encoded())
    head[16:24] = (20_000).to_bytes(4, "big") * 2
    head[29:33] = zlib.crc32(bytes(head[12:29])).to_bytes(4, "big")
    file.write_bytes(head)
    assert "megapixels" in thumbnails.check(file, "a.png")
    file.write_bytes(encoded())
    assert thumbnails.check(file, "a.heic") in ("", heif_advice())


WORKERS = {
    "hangs": ("import time; time.sleep(99)", "took over"),
    "dies": ("import os; os._exit(9)", "ended the process"),
    "babbles": ("print('}{', flush=True); import time; time.sleep(9)", "ended the process"),
}


@pytest.mark.parametrize("kind", WORKERS)
def test_a_worker_that_hangs_or_dies_costs_one_thumbnail(tmp_path, monkeypatch, kind):
    """The worker hangs or dies at images named bad, and responds for others."""
    code, words = WORKERS[kind]
    (tmp_path / "odd_worker.py").write_text(
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    if 'bad' in json.loads(line)['source']:\n"
        f"        {code}\n"
        "    print(json.dumps({'reason': 'answered'}), flush=True)\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    odd = Thumbnails(patience_s=0.1 if kind == "hangs" else 60, module="odd_worker")
    try:
        assert words in odd.check(Path("bad"), "bad.png")
        odd._patience_s = 60
        assert odd.check(Path("good"), "good.png") == "answered"
    finally:
        odd.close()


def test_a_worker_that_ended_when_idle_costs_nothing(tmp_path, monkeypatch):
    """A worker may end between the check and the request: another one responds."""
    (tmp_path / "idle_worker.py").write_text(
        "import pathlib, sys\n"
        "mark = pathlib.Path(__file__).with_name('asked')\n"
        "line = sys.stdin.readline()\n"
        "if mark.exists():\n"
        '    print(\'{"reason": "second"}\', flush=True)\n'
        "mark.touch()\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    odd = Thumbnails(module="idle_worker")
    try:
        assert odd.check(Path("a"), "a.png") == "second"
    finally:
        odd.close()


def test_the_reason_for_no_thumbnail_is_told(client, studio, cats):
    (cats / "cut.png").write_bytes(encoded((300, 300))[:200])
    base = f"{address(studio, cats)}/thumbnails"
    answer = client.get(f"{base}/{address_of([cats], cats / 'cut.png')}")
    assert answer.status_code == 415
    assert "damaged" in answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    assert "damaged" in client.get(address(studio, cats)).text
    good = f"{base}/{address_of([cats], cats / '0.png')}"
    version = hash_file(cats / ".impasto", cats, cats / "0.png").stem.partition("-")[2]
    assert "max-age" in client.get(f"{good}?v={version}").headers["cache-control"]
    assert client.get(f"{good}?v=1-1").headers["cache-control"] == "no-store"
    assert client.get(f"{base}/{name_of('missing.png')}").status_code == 404


# uploads


def send(client, studio, dataset, *sent):
    parts = [("files", (name, content, "application/octet-stream")) for name, content in sent]
    return client.post(f"{address(studio, dataset)}/upload", files=parts, headers=FROM_HERE)


def test_a_name_is_refused_as_it_is_on_the_disk(client, studio, cats):
    """Browsers encode a quote in it as %22."""
    answer = send(client, studio, cats, ('we"ird.png', encoded()))
    assert "<b>we&#34;ird.png</b>: a name must not contain" in answer.text
    assert not [path for path in cats.iterdir() if "ird" in path.name]


def test_a_dataset_without_a_name_is_refused_in_words(client):
    answer = client.post("/data", data={"name": ""}, headers=FROM_HERE)
    assert 'id="name-fault"' in answer.text
    assert "A name is required" in answer.text
    assert not re.search("<input id=.name.[^>]* required", answer.text)  # browsers report it


def test_images_and_captions_are_added_and_nothing_else(client, studio, cats):
    before = (cats / "0.png").read_bytes()
    answer = send(
        client, studio, cats,
        ("new.png", encoded()), ("new.txt", "a dög".encode()), ("0.png", encoded((9, 9))),
        ("new.png", encoded((9, 9))), ("fake.png", b"<!doctype html>"),
        ("cut.png", encoded((300, 300))[:200]),
        ("run.py", b"import os"), ("x.txt", b"\xff\xfe\xfa"), ("bin.txt", b"a\0b"),
        ("empty.png", b""), ("é.caption", b"prose"),
    )  # fmt: skip
    assert answer.status_code == 200
    assert answer.text.count('class="taken"') == 3
    assert answer.text.count("already exists") == 2
    assert "HTML page" in answer.text
    assert (cats / "new.png").read_bytes() == encoded()
    assert (cats / "new.txt").read_text(encoding="utf-8") == "a dög"
    assert (cats / "0.png").read_bytes() == before
    assert sorted(p.name for p in cats.iterdir()) == [
        ".impasto", "0.png", "1.png", "2.png", "new.png", "new.txt", "é.caption",
    ]  # fmt: skip
    assert list((cats / ".impasto" / "uploads").iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["../x.png", "a/b.png", "a\\b.png", "/etc/x.png", "C:\\x\\..", ".x.png", "con.png", "a:b.png",
     "x" * 250 + ".png", " x.png"],
)  # fmt: skip
def test_a_name_with_path_parts_is_refused(client, studio, cats, name):
    assert why_no_name(name)
    answer = send(client, studio, cats, (name, encoded()))
    assert answer.status_code == 200
    assert 'class="refused"' in answer.text
    assert len(list(cats.glob("*.png"))) == 3
    assert not (cats.parent / "x.png").exists()


def receiver(cats, check=lambda path, name: "", **more):
    kind = "multipart/form-data; boundary=xx"
    return UploadReceiver(kind, cats, cats / ".impasto" / "uploads", check, **more)


def body(name, content):
    head = f'--xx\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--xx--\r\n"


def test_an_upload_that_breaks_off_leaves_nothing(cats):
    taken = receiver(cats)
    taken.feed(body("a.png", b"x" * 5000)[:3000])
    waiting = list((cats / ".impasto" / "uploads").iterdir())
    assert len(waiting) == 1
    assert not (cats / "a.png").exists()
    taken.close()
    assert list((cats / ".impasto" / "uploads").iterdir()) == []
    assert taken.outcomes == []


def test_what_a_killed_studio_left_is_removed_by_the_next_upload(cats):
    waiting = cats / ".impasto" / "uploads"
    waiting.mkdir(parents=True)
    name = temporary_names.partial_name(waiting / "a.png").name.replace(
        current_process().token, GONE
    )
    (waiting / name).write_bytes(b"half")
    assert temporary_names.is_stale_partial(waiting / name)
    receiver(cats).close()
    assert list(waiting.iterdir()) == []


def test_a_file_that_is_too_large_is_refused_and_removed(cats):
    taken = receiver(cats, most_bytes=1000)
    content = body("a.png", b"x" * 5000)
    for start in range(0, len(content), 700):
        taken.feed(content[start : start + 700])
    assert "too large" in taken.outcomes[0].reason
    assert not (cats / "a.png").exists()
    taken = receiver(cats)
    taken.feed(body("a.txt", b"x" * ((1 << 20) + 1)))
    assert "1 MiB" in taken.outcomes[0].reason


def test_a_name_that_is_taken_while_a_file_arrives_stays_what_it_is(cats):
    taken = receiver(cats, lambda path, name: (cats / name).write_bytes(b"mine") and "")
    taken.feed(body("a.png", b"theirs"))
    assert "already exists" in taken.outcomes[0].reason
    assert (cats / "a.png").read_bytes() == b"mine"


def test_a_file_gets_its_name_where_there_are_no_hard_links(cats, monkeypatch):
    def refuse(self, target):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    monkeypatch.setattr(Path, "rename", refuse)
    (cats / "part").write_bytes(b"new")
    assert give_name(cats / "part", cats / "a.png") == ""
    assert (cats / "a.png").read_bytes() == b"new"
    (cats / "part").write_bytes(b"newer")
    assert "already exists" in give_name(cats / "part", cats / "a.png")
    assert (cats / "a.png").read_bytes() == b"new"


@given(st.binary(max_size=200), st.integers(1, 50))
def test_any_body_is_taken_or_refused(tmp_path_factory, content, step):
    folder = tmp_path_factory.mktemp("data")
    (folder / ".impasto" / "uploads").mkdir(parents=True)
    taken = receiver(folder)
    sent = b"--xx\r\n" + content
    try:
        for start in range(0, len(sent), step):
            taken.feed(sent[start : start + step])
    except HTTPException as error:
        refused = error.status_code
    else:
        refused = 400
    assert refused == 400
    taken.close()
    assert list((folder / ".impasto" / "uploads").iterdir()) == []


def test_what_is_no_form_is_refused(client, studio, cats):
    upload = f"{address(studio, cats)}/upload"
    for kind in ("", "text/plain", "multipart/form-data"):
        answer = client.post(upload, content=b"x", headers={**FROM_HERE, "content-type": kind})
        assert answer.status_code == 400
    part = client.post(
        upload, files={"other": ("a.png", b"x")}, headers={**FROM_HERE, "hx-request": "true"}
    )
    assert "No file was selected" in part.text
    assert "<html" not in part.text


def test_nothing_is_uploaded_where_the_folder_of_derived_data_leads_out(
    client, studio, cats, tmp_path
):
    (tmp_path / "elsewhere").mkdir()
    (cats / ".impasto").symlink_to(tmp_path / "elsewhere")
    answer = send(client, studio, cats, ("a.png", encoded()))
    assert answer.status_code == 500
    assert "cannot be written" in answer.text
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_folders_of_images_may_hold_images_themselves(data, cats):
    png(data / "x.png")
    folders = Folders([], [data])
    assert [s.path for s in find_datasets(folders)] == [data, cats]
    assert dataset_of(folders, address_of([data], data)) == data
