"""The studio by clicks, in a real browser on a real run; skipped where there is no Chromium."""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from runs import StopAt

from impasto.runs import RunDirectory
from impasto.training.trainer import train

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
AXE = Path(__file__).parent.parent / "support" / "axe.min.js"
PATIENCE_MS = 60_000

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path"),
    pytest.mark.timeout(600),
]


@contextmanager
def served(folder):
    """The studio as a user starts it; yields the address and the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "impasto", "studio", "--runs", str(folder)],
        stdout=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    try:
        for line in process.stdout:
            if line.startswith("http://"):
                yield line.strip(), process
                return
        raise AssertionError("the studio ended")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as programs:
        started = programs.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def complaints():
    return []


@pytest.fixture
def page(browser, complaints):
    opened = browser.new_context().new_page()
    opened.set_default_timeout(PATIENCE_MS)
    opened.on("response", lambda r: complaints.append(r.url) if r.status >= 400 else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    return opened


@pytest.fixture
def ended():
    """Runs whose processes are ended with the test, whatever becomes of it."""
    runs = []
    yield runs
    for run in runs:
        if run.state().is_alive:
            os.kill(run.status()["pid"], signal.SIGKILL)


def wait_for_state(page, state):
    page.wait_for_selector(f"#state .state.{state}")


def test_a_killed_run_is_resumed_asked_and_stopped_by_clicks(
    train_config, tmp_path, page, complaints, ended
):
    """And ending the studio ends no training."""
    config = train_config(
        output_dir=str(tmp_path / "runs" / "dog"),
        training={"max_steps": 100_000},
        saving={"state_every_steps": 2, "keep_states": 2},
        previews={"prompts": ["a ball"], "width": 64, "height": 64, "steps": 1, "at_first": True},
    )
    with pytest.raises(ZeroDivisionError):
        train(config, StopAt(3))
    run = RunDirectory(config.output_dir)
    ended.append(run)
    with served(tmp_path / "runs") as (address, studio):
        page.goto(address)
        page.click(".run")
        wait_for_state(page, "failed")
        page.wait_for_selector(".curve canvas")
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
        page.wait_for_selector("#new-samples:visible")
        page.click("#new-samples a")
        page.wait_for_selector(".pair img")
        chosen = page.get_attribute("#step", "data-steps").split(",")
        assert len(chosen) == 2
        page.focus("#step")
        page.keyboard.press("Home")
        assert page.inner_text("#step-shown") == "0"
        assert page.get_attribute(".pair .shown", "src").split("/")[-2] == "0"
        studio.kill()
        studio.wait()
        assert run.state().is_alive
    with served(tmp_path / "runs") as (address, _):
        page.goto(address)
        page.click(".run")
        wait_for_state(page, "training")
        page.click("button:has-text('Stop after this step')")
        wait_for_state(page, "interrupted")
        assert run.state().state == "interrupted"
        page.click("button:has-text('Resume')")
        wait_for_state(page, "training")
        os.kill(run.status()["pid"], signal.SIGKILL)
        wait_for_state(page, "killed")
        assert "is kept" in page.inner_text("#state")
    assert complaints == []


@pytest.mark.parametrize(
    "look", [{}, {"color_scheme": "dark"}, {"viewport": {"width": 400, "height": 800}}],
    ids=["light", "dark", "narrow"],
)  # fmt: skip
def test_pages_have_no_serious_fault_for_anybody(train_config, tmp_path, browser, look):
    """By axe-core, at any width without scrolling sideways, and by keyboard."""
    config = train_config(
        output_dir=str(tmp_path / "runs" / "dog"),
        validation={"split": 0.25, "every_steps": 2},
        previews={"prompts": ["a ball", "b"], "width": 64, "height": 64, "steps": 1},
    )
    train(config)
    with served(tmp_path / "runs") as (address, _):
        context = browser.new_context(**look)
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector(".run")
        check(page)
        tab_to(page, ".run")
        page.keyboard.press("Enter")
        page.wait_for_selector(".curve canvas")
        check(page)
        page.goto(re.sub(r"\?.*", "runs/0.missing", address))
        page.wait_for_selector("text=Not possible")
        check(page)
        context.close()


def tab_to(page, selector, most=40):
    """Go to an element by keyboard, as somebody does who has no mouse."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("s => document.activeElement.matches(s)", selector):
            return
    raise AssertionError(f"{selector} is not reached by keyboard")


def check(page):
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run().then(found => found.violations)")
    faults = [(v["id"], v["impact"], [n["html"] for n in v["nodes"]]) for v in found]
    assert faults == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
