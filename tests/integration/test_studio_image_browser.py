"""The page of one image by mouse and by keyboard, in a real browser."""

import base64
import os

import pytest
from browsing import at, needs_browser, served, tab_to
from PIL import Image

from impasto.data.pixels.cuts import cut_beside

pytestmark = needs_browser
TINT = (
    "([x, y]) => document.getElementById('mask').getContext('2d').getImageData(x, y, 1, 1).data[3]"
)
"""Returns the strength of the mask's tint at a position, from 0 to 255."""


@pytest.fixture
def cats(tmp_path):
    cats = tmp_path / "data" / "cats"
    cats.mkdir(parents=True)
    (tmp_path / "runs").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (400, 200), (200, 90, 30)).save(cats / name)
    (cats / "b.txt").write_text("a cat", encoding="utf-8")
    return cats


def encoded(path):
    return "0." + base64.urlsafe_b64encode(os.fsencode(path)).decode().rstrip("=")


def opened(page, address, name):
    page.goto(address)
    page.wait_for_selector("header nav")  # the first request only sets the cookie
    page.goto(at(address, f"data/{encoded('cats')}/images/{encoded(name)}"))
    page.wait_for_selector("#bucket:has-text('Bucket')")
    page.wait_for_function("() => document.querySelector('#stage img').complete")


def rectangle(page):
    return [int(page.input_value(f"[name={name}]")) for name in ("x", "y", "width", "height")]


def drag(page, begin, end):
    """Drag from one position of the image to another, both as fractions of its sides."""
    stage = page.locator("#stage").bounding_box()
    for (x, y), act in ((begin, page.mouse.down), (end, page.mouse.up)):
        page.mouse.move(stage["x"] + x * stage["width"], stage["y"] + y * stage["height"], steps=4)
        act()


def test_a_crop_by_mouse_and_keyboard_and_a_mask_by_brush(cats, tmp_path, page, complaints):
    with served(tmp_path / "runs", "--data", tmp_path / "data") as (address, _):
        opened(page, address, "a.png")
        assert rectangle(page) == [0, 0, 400, 200]
        drag(page, (0.25, 0.1), (0.75, 0.9))
        drawn = rectangle(page)
        assert drawn == pytest.approx([100, 20, 200, 160], abs=3)
        drag(page, (0.5, 0.5), (0.6, 0.5))
        moved = rectangle(page)
        assert moved[0] == pytest.approx(drawn[0] + 40, abs=3)
        assert moved[1:] == drawn[1:]
        drag(page, (0.845, 0.89), (1.2, 0.6))  # a corner, beyond the edge
        assert sum(rectangle(page)[::2]) == 400
        page.evaluate("document.activeElement.blur()")
        tab_to(page, "#crop-box")
        before = rectangle(page)
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("Shift+ArrowUp")
        after = rectangle(page)
        assert after == [before[0] - 4, before[1], before[2], before[3] - 4]
        page.keyboard.press("Control+ArrowRight")
        assert rectangle(page)[0] == after[0] + 1
        asked = []
        page.once("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
        page.click("#after", no_wait_after=True)
        while not asked:
            page.wait_for_timeout(10)
        assert asked == ["beforeunload"], "a drawn rectangle must not be lost unsaved"
        assert rectangle(page)[0] == after[0] + 1
        page.select_option("#shape", "1")
        page.wait_for_selector("#bucket:has-text('512x512')")
        chosen = rectangle(page)
        assert chosen[2] == chosen[3]
        page.click("button:has-text('Save crop')")
        page.wait_for_selector("button:has-text('Use the whole image')")
        box = cut_beside(cats / "a.png").box
        assert [box.left, box.top, *box.size.wh] == chosen == rectangle(page)
        page.check("[value=erase]")
        page.fill("#brush", "50")
        drag(page, (0.05, 0.5), (0.3, 0.5))
        page.click("text='Leave the rectangle out'")
        page.click("#undo")
        page.click("#save-mask")
        page.wait_for_selector("#mask-said:has-text('Saved in')")
        with Image.open(tmp_path / "data" / "cats-masks" / "a.png") as mask:
            assert mask.size == (400, 200)
            assert (mask.getpixel((40, 100)), mask.getpixel((40, 10))) == (0, 255)
            assert mask.getpixel((350, 100)) == 255
        page.click("button:has-text('Use the whole image')")
        page.wait_for_selector("#stage.loaded")
        assert cut_beside(cats / "a.png") is None
        assert [page.evaluate(TINT, place) for place in ([40, 100], [350, 100])] == [255, 0]
        page.click("#after")
        page.wait_for_selector("h1:has-text('b.png')")
        page.click("button:has-text('Show as in training')")
        page.wait_for_selector("#showings li:has-text('a cat')")
    assert complaints == []


def test_what_is_painted_or_undone_after_a_save_is_not_called_saved(
    cats, tmp_path, page, complaints
):
    held = []
    file = tmp_path / "data" / "cats-masks" / "a.png"

    def hold(route):
        held.append(route)

    with served(tmp_path / "runs", "--data", tmp_path / "data") as (address, _):
        opened(page, address, "a.png")
        page.route("**/mask", hold)
        page.check("[value=erase]")
        page.fill("#brush", "50")
        drag(page, (0.05, 0.5), (0.3, 0.5))
        page.click("#save-mask")
        drag(page, (0.7, 0.5), (0.9, 0.5))  # while it is being saved
        assert page.is_disabled("#save-mask")
        while not held:
            page.wait_for_timeout(10)
        held.pop().continue_()
        page.wait_for_selector("#mask-said:has-text('Saved in')")
        assert "Later changes are not saved yet" in page.inner_text("#mask-said")
        page.unroute("**/mask")
        page.click("#save-mask")
        page.wait_for_selector("#mask-said:has-text('Saved in'):not(:has-text('not saved yet'))")
        assert page.is_disabled("#save-mask")
        page.click("#undo")
        assert page.inner_text("#mask-said") == "Not saved yet."
        page.click("#save-mask")
        page.wait_for_selector("#mask-said:has-text('Saved in')")
        with Image.open(file) as mask:
            assert (mask.getpixel((40, 100)), mask.getpixel((320, 100))) == (0, 255)
    assert complaints == []
