"""An open page when its browser is closed, or its run renamed; in a real browser."""

import json
import re

import pytest
from browsing import PATIENCE_MS, at, needs_browser, served
from runs_made import made_run

from impasto.locks import FolderLock
from impasto.owners import current_process
from impasto.studio.folders import address_of

pytestmark = needs_browser


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def test_a_browser_that_was_closed_finds_everything_again(runs, browser):
    """Typed values and the run's progress are found again: the server has stored no session."""
    run = made_run(runs / "dog", losses=[(1, 0.5)])
    with served(runs) as (address, _):
        context = browser.new_context()
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("nav")
        page.click("nav >> text=New run")
        page.click("text=Start with the defaults")
        with page.expect_response(lambda answer: "some-model" in (answer.request.post_data or "")):
            page.fill("#f-model-path", "owner/some-model")  # sent automatically after a short delay
        draft = re.search(r"/new/[\w-]+", page.url)[0]
        context.close()

        said = {"phase": "finished", "step": 7, "total_steps": 9}
        run.status_file.write_text(json.dumps(said), encoding="utf-8")
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        assert page.goto(at(address, draft)).status == 403, "a new browser has no cookie"
        page.goto(address)
        page.wait_for_selector(".run:has-text('7 of 9 steps')")
        page.goto(at(address, draft))
        assert page.input_value("#f-model-path") == "owner/some-model"
        context.close()


def test_a_run_that_is_renamed_while_it_is_shown_is_not_said_to_train(runs, page):
    """The open page reports the renaming itself, and the list shows the run's new name."""
    path = made_run(
        runs / "dog", losses=[(1, 0.5)], phase="training", process=current_process().token
    ).path
    with served(runs) as (address, _), FolderLock(path, "training", lambda holder: None):
        page.goto(address)
        page.wait_for_selector("nav")
        page.click(".run")
        page.wait_for_selector("#state .state.training")
        path.rename(runs / "cat")
        page.wait_for_selector("#state .state.training", state="detached")
        assert page.query_selector("#state button") is None, "no process can receive a request"
        page.click("nav >> text=Runs")
        page.wait_for_selector(".run:has-text('cat') .state.training")
        assert page.locator(".run").count() == 1
        answer = page.goto(at(address, f"runs/{address_of([runs], runs / 'dog')}"))
        assert answer.status == 404
        (runs / "cat").rename(path)  # the lock is released through its path
