"""The queue by clicks, in a real browser on a real run; skipped without Chromium."""

import pytest
import tomli_w
from browsing import at, end_queue, needs_browser, served, tab_to

from impasto.runs.queue import Queue

pytestmark = needs_browser


@pytest.fixture
def queue(tmp_path):
    """A queue whose runner is ended with the test."""
    (tmp_path / "runs").mkdir()
    found = Queue(tmp_path / "queue")
    yield found
    end_queue(found.folder)


def test_jobs_are_added_moved_trained_and_stopped_by_clicks(
    run_values, tmp_path, page, complaints, queue
):
    """A running queue is found again after the studio was killed."""
    endless = {"training": {**run_values["training"], "max_steps": 100_000}}
    values = run_values | endless | {"output_dir": str(tmp_path / "runs" / "dog")}
    options = ("--queue", queue.folder)
    with served(tmp_path / "runs", *options) as (address, studio):
        page.goto(address)
        page.wait_for_selector("nav")
        page.goto(at(address, "queue"))
        page.fill("#text", tomli_w.dumps(values))
        page.dblclick("button:has-text('Add to the queue')")  # takes one click
        page.wait_for_selector("#job-1 .state.waiting")
        page.click("#job-1 button:has-text('Repeat')")
        page.wait_for_selector("#job-2")
        tab_to(page, "#job-2 button")
        page.keyboard.press("Enter")
        page.wait_for_selector(".queue-job:first-child#job-2")
        page.click("#job-1 button:has-text('Pause')")
        page.wait_for_selector("#job-1 .state.paused")
        page.dblclick(".queue-device button:has-text('Start working')")
        page.wait_for_selector("#job-2 .state.working")
        assert "A process is starting on device" in page.inner_text("#asked")
        assert page.locator(".queue-job").count() == 2
        page.wait_for_selector("#job-2 progress")
        studio.kill()
        studio.wait()
    with served(tmp_path / "runs", *options) as (address, _):
        page.goto(address)
        page.wait_for_selector("nav")
        complaints.clear()  # the old page polled the new studio, which did not know its cookie
        page.goto(at(address, "queue"))
        page.wait_for_selector("#job-2 .state.working")
        page.click(".queue-device button:has-text('Stop')")
        page.wait_for_selector(".queue-device button:has-text('Start working')")
        page.wait_for_selector("#job-2 .state.waiting")
        assert "It continues from step" in page.inner_text("#job-2")
        page.on("dialog", lambda dialog: dialog.accept())
        page.click("#job-2 button:has-text('Remove')")
        page.wait_for_selector("#job-2", state="detached")
        assert queue.jobs()[0].number == 1
        assert (tmp_path / "runs" / "dog-2").is_dir()
    assert complaints == []
