"""From a folder of images to a drawing with the trained model, by clicks, in a real browser."""

import shutil

import pytest
from browsing import (
    ask_for_a_drawing,
    compare_all,
    draw,
    drop_files,
    end_queue,
    needs_browser,
    served,
)

from impasto.demo.recipe import PICTURES
from impasto.runs import RunDirectory
from impasto.runs.drawings import DrawFolder
from impasto.studio.folders import HOME

pytestmark = needs_browser
SHORT = {
    "dataset.resolution": "64", "dataset.min_bucket_reso": "64", "previews.width": "64",
    "previews.height": "64", "previews.steps": "2",
}  # fmt: skip
"""Settings of a run that takes almost no time."""


@pytest.fixture
def folders(tmp_path, nano_model):
    for name in ("runs", "data"):
        (tmp_path / name).mkdir()
    shutil.copytree(nano_model, tmp_path / "models" / "base")
    yield tmp_path
    end_queue(tmp_path / "queue")
    drawings = DrawFolder(tmp_path / "runs" / HOME / "drawings")
    drawings.path.mkdir(parents=True, exist_ok=True)
    drawings.stop_worker()


def test_from_images_to_a_drawing_by_clicks(folders, page, complaints):
    """Images are dropped in, captions edited, two runs trained and compared, and one drawn with."""
    images = sorted(PICTURES.glob("*.webp"))[:4]
    names = ("data", "models", "queue")
    options = [word for name in names for word in (f"--{name}", folders / name)]
    with served(folders / "runs", *options) as (address, _):
        page.goto(address)
        page.wait_for_selector("nav")
        page.click("nav >> text=Data")
        page.fill("#name", "icons")
        page.keyboard.press("Enter")
        page.locator("#upload").scroll_into_view_if_needed()
        drop_files(page, "#upload", [*images, *(image.with_suffix(".txt") for image in images)])
        page.wait_for_selector("text=8 of 8 files added")
        page.wait_for_selector(".chips")

        page.click("a:has-text('Captions')")
        page.click("label:has-text('that match the filter') input")
        page.fill("input[name=what]", "in ink")
        page.click("button:has-text('Preview')")
        page.click("button:has-text('Apply to 4 captions')")
        page.wait_for_selector("#task-shown .state.done")
        captions = sorted((folders / "data" / "icons").glob("*.txt"))
        assert all(c.read_text(encoding="utf-8").strip().endswith(", in ink") for c in captions)

        page.click("nav >> text=New run")
        page.check("input[value=style]")
        page.fill("#data", str(folders / "data" / "icons"))
        page.fill("#model", str(folders / "models" / "base"))
        page.click("text=Make settings >> nth=0")
        page.fill("#f-training-max_steps", "2")
        page.fill("#f-previews-prompts", "a sun")
        for field, value in SHORT.items():
            page.fill("#find", field)
            page.locator(f"#f-{field.replace('.', '-')}").fill(value)
        page.fill("#find", "fit_check")  # it would take longer than all the rest
        page.select_option("#f-training-fit_check", "false")
        page.fill("#find", "")
        page.fill("#f-output_dir", str(folders / "runs" / "ink"))
        page.click("text=Start now")
        page.wait_for_url("**/runs/**")
        page.wait_for_selector("#state .state.finished")
        first = RunDirectory(folders / "runs" / "ink")
        assert first.state().step == 2

        page.click("text=Duplicate with changes")
        page.fill("#f-training-max_steps", "1")
        page.dblclick("text=Add to the queue")
        page.wait_for_selector("#answer :text('Added to the queue as job 1')")
        page.click("nav >> text=Queue")
        page.on("dialog", lambda dialog: dialog.accept())  # the first run may not have ended yet
        page.click(".queue-device button:has-text('Start working')")
        page.wait_for_selector(".queue-job .state.done")
        second = RunDirectory(folders / "runs" / "ink-2")
        assert second.state().step == 1

        compare_all(page)
        page.wait_for_selector("#curves canvas")

        page.click("nav >> text=Draw")
        ask_for_a_drawing(page, "a sun, in ink")
        chosen = page.locator("#model option:has-text('ink')").first.get_attribute("value")
        page.select_option("#model", chosen)
        draw(page)
        assert page.locator(".drawing-card img").first.evaluate("image => image.naturalWidth") == 64
    assert [text for text in complaints if "/thumbnails/" not in text] == []
