"""The page "Draw" by clicks, with a separate worker; skipped without Chromium."""

import shutil

import pytest
from browsing import LOOKS, at, check, needs_browser, served

from impasto.runs.drawings import DrawFolder
from impasto.studio.folders import HOME

pytestmark = needs_browser


@pytest.fixture
def folders(tmp_path, nano_model):
    (tmp_path / "runs").mkdir()
    for name in ("nano", "other"):
        shutil.copytree(nano_model, tmp_path / "models" / name)
    return tmp_path


@pytest.fixture
def drawings(folders):
    """The folder of drawings; its worker is ended with the test, even if it fails."""
    folder = DrawFolder(folders / "runs" / HOME / "drawings")
    yield folder
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.stop_worker()


def fill(page):
    page.fill("#prompt", "a red ball")
    for name, value in (("width", "64"), ("height", "64"), ("steps", "2"), ("seed", "7")):
        page.fill(f"#{name}", value)
    assert not page.is_checked("#random_seed"), "typing a seed turns the random seed off"
    page.select_option("#model", label="nano")


def test_images_are_drawn_by_clicks_and_the_worker_ends(folders, drawings, page, complaints):
    """Every page visited on the way is accessible in all looks."""
    with served(folders / "runs", "--models", folders / "models") as (address, _):
        page.goto(address)
        page.wait_for_selector("nav")
        page.click("nav >> text=Draw")
        fill(page)
        page.fill("#width", "100")
        page.click("button.main")
        page.wait_for_selector("#fault-width")
        assert page.input_value("#prompt") == "a red ball"
        check(page)
        complaints.clear()  # a refused form returns 422
        page.fill("#width", "64")
        page.select_option("#other_model", label="other")
        page.click("summary:has-text('Grid')")
        page.select_option("#y_kind", "guidance")
        page.fill("#y_values", "1, 7")
        page.click("button.main")
        page.wait_for_selector(".drawing-card .state.done")
        again = page.locator("a:has-text('Use these settings again')").first
        assert again.get_attribute("href").endswith("&seed=same")
        assert page.locator(".grid-sheet img").count() == 4
        assert page.locator(".grid-sheet thead th").all_inner_texts() == ["nano", "other"]
        assert page.locator(".grid-sheet tbody th").all_inner_texts() == [
            "Guidance 1",
            "Guidance 7",
        ]
        with page.expect_download() as download:
            page.click("text=Download as one image")
        assert download.value.suggested_filename.endswith("-grid.png")
        assert page.input_value("#y_values") == "1\n7"  # the form keeps the requested values
        for look in LOOKS.values():
            page.emulate_media(color_scheme=look.get("color_scheme", "light"))
            page.set_viewport_size(look.get("viewport", {"width": 1280, "height": 800}))
            check(page)
        page.click(".drawing-card .words a")
        page.wait_for_selector("h1:has-text('Drawing of')")
        check(page)
        page.goto(at(address, "draw"))
        page.click("button:has-text('Stop it now')")
        page.wait_for_selector("#drawings")
        page.click("button:has-text('Delete')")
        page.wait_for_selector("text=Drawings are listed here")
        assert drawings.all() == []
    assert complaints == []
