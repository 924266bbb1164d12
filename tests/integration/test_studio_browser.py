"""The studio by clicks, in a real browser on a real run; skipped without Chromium."""

import os
import signal

import pytest
from browsing import at, check_all_looks, needs_browser, served, tab_to, wait_for_lines
from runs import StopAt
from runs_made import made_run

from impasto.runs import RunDirectory
from impasto.studio.folders import address_of
from impasto.training.trainer import train

pytestmark = needs_browser


@pytest.fixture
def ended():
    """Collects runs, whose processes are ended with the test, even if it fails."""
    runs = []
    yield runs
    for run in runs:
        if run.state().is_alive:
            os.kill(run.status()["pid"], signal.SIGKILL)


def wait_for_state(page, state):
    page.wait_for_selector(f"#state .state.{state}")


ALL_CURVES_REACH = """step => {
    const charts = [...document.querySelectorAll(".curve")].map(chart => chart.ariaLabel);
    return charts.length > 4 && charts.every(label => +label.match(/ to (\\d+)/)[1] >= step);
}"""


def wait_for_samples(page, steps):
    page.wait_for_function(
        "n => document.querySelector('#step')?.dataset.steps.split(',').length === n", arg=steps
    )


def test_a_killed_run_is_resumed_asked_and_stopped_by_clicks(
    train_config, tmp_path, page, complaints, ended
):
    """Ending the studio ends no training; the run's page can be reached by keyboard."""
    config = train_config(
        output_dir=str(tmp_path / "runs" / "dog"),
        training={"max_steps": 100_000},
        saving={"state_every_steps": 2, "keep_states": 2},
        previews={
            "prompts": ["a ball"],
            "width": 64,
            "height": 64,
            "steps": 1,
            "at_first": True,
            "every_steps": 100_000,  # only requested previews, however long the test takes
        },
    )
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(3))
    run = RunDirectory(config.output_dir)
    ended.append(run)
    with served(tmp_path / "runs") as (address, studio):
        page.goto(address)
        page.wait_for_selector(".run")
        tab_to(page, ".run")
        page.keyboard.press("Enter")
        wait_for_state(page, "failed")
        page.wait_for_selector(".curve canvas")
        wait_for_lines(page)
        check_all_looks(page)
        page.click("button:has-text('Resume')")
        wait_for_state(page, "training")
        page.focus("button:has-text('Preview now')")
        before = page.inner_text("#state .progress")
        page.wait_for_function(
            "text => document.querySelector('#state .progress').innerText !== text", arg=before
        )
        assert page.evaluate("document.activeElement.textContent") == "Preview now"
        page.keyboard.press("Enter")
        page.wait_for_selector("#log :text('preview: done after step')")
        wait_for_samples(page, 2)  # without a reload
        page.focus("#step")
        page.keyboard.press("Home")
        assert page.inner_text("#step-shown") == "0"
        assert page.get_attribute(".pair .shown", "src").split("/")[-2] == "0"
        page.click("button:has-text('Preview now')")
        page.click("#new-samples:visible button")  # older previews stay selected
        wait_for_samples(page, 3)
        step = run.state().step
        page.wait_for_function(ALL_CURVES_REACH, arg=step)
        studio.kill()
        studio.wait()
        assert run.state().is_alive
    with served(tmp_path / "runs") as (address, _):
        page.goto(address)
        page.wait_for_selector("nav")
        complaints.clear()  # the old page polled the new studio, which did not know its cookie
        page.click(".run")
        wait_for_state(page, "training")
        page.click("button:has-text('Stop after this step')")
        wait_for_state(page, "stopped")
        assert run.state().state == "stopped"
        page.click("button:has-text('Resume')")
        wait_for_state(page, "training")
        os.kill(run.status()["pid"], signal.SIGKILL)
        wait_for_state(page, "killed")
        assert "is kept" in page.inner_text("#state")
    assert complaints == []


def test_the_curves_of_a_run_are_fetched_once_and_the_scripts_kept(tmp_path, page, complaints):
    """The head's early fetch and the script use the same address, which browsers compare."""
    run = made_run(tmp_path / "runs" / "dog", losses=[(step, 1 / step) for step in range(1, 50)])
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    with served(tmp_path / "runs") as (address, _):
        page.goto(address)
        page.wait_for_selector("nav")
        for _ in range(2):
            asked.clear()
            page.goto(at(address, f"runs/{address_of([tmp_path / 'runs'], run.path)}"))
            wait_for_lines(page)
            assert len([url for url in asked if "/curves" in url]) == 1
        page.wait_for_timeout(300)
        sizes = page.evaluate(
            "performance.getEntriesByType('resource').filter(r => r.name.includes('/static/'))"
            ".map(r => r.transferSize)"
        )
        assert len(sizes) > 5
        assert not any(sizes), "scripts and styles should come from the browser's cache"
    assert complaints == []


def test_forms_work_at_an_address_of_the_network(tmp_path, page, complaints):
    """At network addresses browsers send fewer request headers, since they do not trust them."""
    (tmp_path / "runs").mkdir()
    with served(tmp_path / "runs", "--listen", "0.0.0.0") as (address, _):
        if address.startswith("http://127."):
            pytest.skip("this machine has only the loopback address")
        page.goto(address)
        page.wait_for_selector("nav")
        page.click("nav >> text=New run")
        page.click("text=Start with the defaults")
        page.wait_for_selector("#f-model-path")
        page.wait_for_selector("#faults")  # through a script's request
    assert complaints == []
