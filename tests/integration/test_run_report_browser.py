"""The page of a run in a real browser: it fits a phone, and its charts can be enlarged.

If this failed, the charts would be unreadable on phones, where they are often read first.
"""

import pytest
from browsing import LOOKS, check, needs_browser
from runs_made import made_run

from impasto.report.page import write_report

pytestmark = needs_browser


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    losses = [(step, 1 / step) for step in range(1, 31)]
    run = made_run(tmp_path_factory.mktemp("made") / "dog", losses=losses)
    for step, loss in ((0, 0.5), (15, 0.3), (30, 0.25)):
        run.append_metrics({
            "step": step, "validation_loss": loss, "validation_images": [loss, loss + 0.01],
            "validation_se": 0.005, "training_sample_loss": 0.9 * loss, "time": 1.0,
        })  # fmt: skip
    return write_report(run).as_uri()


@pytest.mark.parametrize("look", LOOKS)
def test_the_charts_fit_and_open(browser, page_file, look):
    context = browser.new_context(**LOOKS[look])
    page = context.new_page()
    page.goto(page_file)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    loss = page.locator("#loss")
    drawn = ".narrow" if look == "narrow" else ".wide"
    assert loss.locator(drawn).is_visible()
    assert loss.locator("svg:visible").count() == 1
    assert page.locator("#gap .narrow").is_visible()
    loss.get_by_text("Larger").click()
    assert loss.locator(".wide").is_visible()
    box = loss.bounding_box()
    assert (box["x"], box["y"]) == (0, 0)
    assert box["width"] >= page.evaluate("document.documentElement.clientWidth") - 1
    loss.get_by_text("Close").click()
    assert loss.locator(drawn).is_visible()
    check(page)
    context.close()
