"""Datasets in the studio by clicks, in a real browser; skipped without Chromium."""

import shutil

import pytest
from browsing import at, check_all_looks, drop_files, needs_browser, served, tab_to
from PIL import Image

from impasto.studio.folders import address_of

pytestmark = needs_browser


def drawn(path, seed, size=(300, 200)):
    Image.effect_noise(size, 50 + seed).convert("RGB").save(path)


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "runs").mkdir()
    cats = tmp_path / "data" / "cats"
    cats.mkdir(parents=True)
    for number in range(5):
        drawn(cats / f"cat-{number}.png", number)
    shutil.copy(cats / "cat-1.png", cats / "twin.png")
    (cats / "cat-1.txt").write_text("cat, <b>solo</b>", encoding="utf-8")
    (cats / "broken.jpg").write_bytes(b"")
    return tmp_path


def test_a_dataset_is_made_filled_and_looked_through_by_clicks(folders, page, complaints):
    cats = folders / "data" / "cats"
    drawn(folders / "new.png", 9)
    (folders / "new.txt").write_text("a new one", encoding="utf-8")
    (folders / "fake.png").write_text("<!doctype html>", encoding="utf-8")
    with served(folders / "runs", "--data", folders / "data") as (address, _):
        page.goto(address)
        page.wait_for_selector("nav")
        page.click("nav >> text=Data")
        page.fill("#name", "dogs")
        page.keyboard.press("Enter")
        page.set_input_files("#files", [folders / n for n in ("new.png", "new.txt", "fake.png")])
        page.click("text=Add them")
        page.wait_for_selector("text=2 of 3 files added")
        assert "HTML page" in page.inner_text("#uploaded .refused")
        assert (folders / "data" / "dogs" / "new.png").is_file()
        page.wait_for_selector(".chips")  # the folder was read without a click
        assert page.is_visible("text=2 of 3 files added")
        (folders / "new-2.txt").write_text("later", encoding="utf-8")
        shutil.copy(folders / "new.png", folders / "new-2.png")
        for name, words in (("new-2.png", "1 without caption"), ("new-2.txt", "2 images.")):
            page.set_input_files("#files", folders / name)
            page.click("text=Add them")
            page.wait_for_selector("text=1 of 1 files added")
            page.wait_for_selector(f"text={words}")
        page.wait_for_selector(".chip:has-text('without caption')", state="detached")
        (folders / "data" / "dogs" / "new-2.txt").unlink()
        (folders / "data" / "dogs" / "new-2.png").unlink()
        page.reload()
        page.wait_for_selector("text=1 image.")
        page.wait_for_function("() => document.querySelector('.thumb img').naturalWidth > 0")
        assert page.inner_text(".card .caption") == "a new one"

        page.click("text=All datasets")
        page.wait_for_selector(".dataset:has-text('cats')")
        tab_to(page, f".dataset[href$='{address_of([cats.parent], cats)}']")
        page.keyboard.press("Enter")
        page.wait_for_selector(".chips")
        page.click(".chip:has-text('skipped')")
        page.wait_for_selector("text=1 image of 7.")
        page.wait_for_selector(".no-thumbnail:has-text('the file is empty')")
        page.click(".chip:has-text('7 images')")
        page.wait_for_selector("text=7 images.")
        page.click("summary:has-text('Filter and sort')")
        page.wait_for_selector(".no-thumbnail")
        check_all_looks(page)
        page.check("[name=copies]")
        page.click("button:has-text('Read the folder')")
        page.click(".chip:has-text('2 copies')")
        page.wait_for_selector("text=The same content, group 1")
        assert page.locator(".card .title").all_inner_texts() == ["cat-1.png", "twin.png"]
        page.click("text=Write the health report")
        page.click("a:has-text('Health report of')")
        page.wait_for_selector("h1:has-text('Health of cats')")
        page.wait_for_function("() => document.querySelector('.thumbs img').naturalWidth > 0")
        check_all_looks(page)
        with page.expect_download() as report:
            page.click("text=Download as an HTML page")
        assert report.value.suggested_filename == "cats-report.html"
    assert [url for url in complaints if "/thumbnails/" not in url] == []


def test_images_are_dropped_on_the_page(folders, page, complaints):
    """Files are dragged from the disk, without the file input, and then paged through."""
    names = ["new.png", "second.png"]
    for number, name in enumerate(names):
        drawn(folders / name, number)
    cats = folders / "data" / "cats"
    for number in range(94):
        drawn(cats / f"more-{number}.png", number, (30, 20))
    with served(folders / "runs", "--data", folders / "data") as (address, _):
        page.goto(address)
        page.wait_for_selector("nav")
        page.goto(at(address, "data"))
        page.click(".dataset:has-text('cats')")
        page.wait_for_selector(".chips")
        page.locator("#upload").scroll_into_view_if_needed()
        drop_files(page, "#upload", [folders / name for name in names])
        page.wait_for_selector("text=2 of 2 files added")
        page.wait_for_selector("[rel=next]")
        tab_to(page, "[rel=next]")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=Page 2 of 2")
        page.wait_for_selector(".card:has-text('second.png')")
    assert all((cats / name).read_bytes() == (folders / name).read_bytes() for name in names)
    assert [url for url in complaints if "/thumbnails/" not in url] == []


FOLDERS = {"set/1_cat/a.png": 1, "set/1_dog/a.png": 2, "set/below/deep/c.png": 3}


def test_a_folder_is_chosen_whole(folders, page, complaints):
    """Subfolders are included; two files of the same name stay two, each with its own caption."""
    for name, seed in FOLDERS.items():
        (folders / name).parent.mkdir(parents=True, exist_ok=True)
        drawn(folders / name, seed)
        (folders / name).with_suffix(".txt").write_text(name, encoding="utf-8")
    (folders / "set" / "notes.pdf").write_bytes(b"%PDF")
    (folders / "set" / ".hidden.png").write_bytes(b"x")
    dogs = folders / "data" / "dogs"
    with served(folders / "runs", "--data", folders / "data") as (address, _):
        page.goto(address)
        page.wait_for_selector("nav")
        page.click("text=New dataset")
        page.fill("#name", "dogs")
        page.keyboard.press("Enter")
        page.set_input_files("#folder", folders / "set")
        page.click("text=Add them")
        page.wait_for_selector(
            "text=6 of 6 files added. 2 were left out, since they are neither images nor captions"
        )
        assert {p.name: p.read_text(encoding="utf-8") for p in dogs.glob("*.txt")} == {
            "a.txt": "set/1_cat/a.png",
            "set 1_dog a.txt": "set/1_dog/a.png",
            "c.txt": "set/below/deep/c.png",
        }
        assert (dogs / "set 1_dog a.png").read_bytes() == (folders / "set/1_dog/a.png").read_bytes()
    assert complaints == []


DROP = """(names) => {
  const file = (path) => ({
    isFile: true, name: path.split("/").pop(), fullPath: "/" + path,
    file: (done, failed) => path.includes("closed") ? failed(new DOMException("no"))
      : done(new File([path], path.split("/").pop())),
  });
  const folder = (path, inside) => ({
    isFile: false, isDirectory: true, name: path.split("/").pop(), fullPath: "/" + path,
    createReader: () => {
      const left = [...inside];
      return { readEntries: (done) => done(left.splice(0, 100)) };
    },
  });
  const many = Array.from({ length: names }, (_, n) => file(`top/many/${n}.txt`));
  const top = folder("top", [file("top/closed.txt"), folder("top/many", many)]);
  const items = [top, file("beside.txt")].map((entry) => ({ webkitGetAsEntry: () => entry }));
  const drop = new Event("drop", { bubbles: true, cancelable: true });
  drop.dataTransfer = { items, files: [] };
  document.getElementById("upload").dispatchEvent(drop);
}"""


FULL = '<li class="refused"><b>a.txt</b>: The disk is full: it could not be written.</li>'


def test_dropped_folders_are_walked_and_nothing_is_sent_to_a_full_disk(folders, page):
    """Browsers list a hundred entries at a time; unreadable files are named.

    The first refusal reports a full disk, and no further files are sent.
    """
    names = ["a.txt", "b.txt", "c.txt"]
    for name in names:
        (folders / name).write_text(name, encoding="utf-8")
    asked = []

    def refuse(route):
        asked.append(route.request.url)
        route.fulfill(status=500, content_type="text/html", body=FULL)

    with served(folders / "runs", "--data", folders / "data") as (address, _):
        page.goto(address)
        page.wait_for_selector("nav")
        page.goto(at(address, "data"))
        page.click(".dataset:has-text('cats')")
        page.wait_for_selector(".chips")
        page.evaluate(DROP, 101)
        page.wait_for_selector("text=102 of 102 files added.")
        assert page.inner_text("#uploaded .refused") == "closed.txt: cannot be read"
        there = {path.name for path in (folders / "data" / "cats").glob("*.txt")}
        assert there == {"cat-1.txt", "beside.txt", *(f"{n}.txt" for n in range(101))}

        page.route("**/upload", refuse)
        page.set_input_files("#files", [folders / name for name in names])
        page.click("text=Add them")
        page.wait_for_selector(
            "text=0 of 3 files added. 1 was refused, for the reasons below. 2 were not sent"
        )
        assert page.locator("#uploaded li").all_inner_texts() == [
            "a.txt: The disk is full: it could not be written."
        ]
    assert len(asked) == 1
