"""The studio in a real browser; tests that use it are skipped without Chromium."""

import asyncio
import json
import os
import re
import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.warm import running

from impasto.runs.queue import Queue
from impasto.runs.queue_devices import runners_of
from impasto.studio.folders import HOME

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
AXE = Path(__file__).parent / "support" / "axe.min.js"
PATIENCE_MS = 60_000

needs_browser = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not on the PATH"),
    pytest.mark.timeout(600),
]
"""The marks of a module of browser tests: `pytestmark = needs_browser`."""

LOOKS = {
    "light": {},
    "dark": {"color_scheme": "dark"},
    "narrow": {"viewport": {"width": 400, "height": 800}},
}
"""The contexts in which a page must be usable: arguments of `browser.new_context`."""


PLAIN_DRAWING = "--disable-gpu", "--disable-software-rasterizer"
"""Stops Chromium from emulating a GPU in software: no page needs one."""

STUDIO = """
from functools import partial
from impasto.cli.main import main
from impasto.studio import core
core.Studio = partial(core.Studio, look_every_s=0.1)
main()
"""
"""A program that runs the studio, polling a shown run ten times as often."""

MACHINE = {
    "facts": {"gpus": [], "memory_gib": 8}, "free_memory_gib": 4, "free_disk_gib": 9, "advice": [],
}  # fmt: skip
"""The machine facts that a studio caches; detecting them would take a second."""


@contextmanager
def served(runs, *options, forked=(), errors=None):
    """Run the studio in a separate process; yield its address and the process.

    If `forked` names commands, the studio's processes for these are forks and those of other
    commands are fresh interpreters, as a user's are; without names, all are forks.

    Args:
        runs: The folder of runs.
        options: Further command-line options.
        errors: The file descriptor that it writes errors to.
    """
    machine = runs / HOME / "machine.json"
    machine.parent.mkdir(parents=True, exist_ok=True)
    machine.write_text(json.dumps(MACHINE), encoding="utf-8")
    read, written = os.pipe()
    process = running.start(
        "-c", STUDIO, "studio", "--runs", runs, *options,
        env=running.forking(only=forked), output=written, errors=errors,
    )  # fmt: skip
    os.close(written)
    try:
        with open(read, encoding="utf-8") as output:  # noqa: PTH123
            for line in output:
                if line.startswith("http://"):
                    yield line.strip(), process
                    return
        raise AssertionError("the studio ended")
    finally:
        process.kill()
        process.communicate()


def at(address, path):
    """Return a studio page's address, for a browser that has opened the printed one."""
    return re.sub(r"\?.*", path.lstrip("/"), address)


def end_queue(folder):
    """Stop the workers of a queue, and the training that they run."""
    found = Queue(folder)
    running = [holder.owner.pid for holder in runners_of(folder).values()]
    running += [job.run.status()["pid"] for job in found.jobs() if job.run.state().is_alive]
    for pid in running:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def chromium():
    """Launch one Chromium for the session, with the event loop that communicates with it.

    The loop is marked as running during browser tests only: it would break other tests.
    """
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as programs:
        started = programs.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", *PLAIN_DRAWING]
        )
        loop = asyncio.get_running_loop()
        asyncio._set_running_loop(None)
        yield started, loop
        asyncio._set_running_loop(loop)
        started.close()


@pytest.fixture(scope="module")
def browser(chromium):
    started, loop = chromium
    asyncio._set_running_loop(loop)
    yield started
    asyncio._set_running_loop(None)


POLL_OFTEN = "{ const every = setInterval; setInterval = (work, ms) => every(work, ms / 10); }"
"""Makes pages poll ten times as often for the parts that they update every second or two."""


@contextmanager
def opened_page(browser, complaints=None):
    """Open a page in a new browser context; its errors are appended to `complaints`."""
    context = browser.new_context()
    context.add_init_script(POLL_OFTEN)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    noted = [] if complaints is None else complaints
    page.on("response", lambda answer: noted.append(answer.url) if answer.status >= 400 else None)
    page.on("pageerror", lambda error: noted.append(str(error)))
    yield page
    context.close()


@pytest.fixture
def complaints():
    return []


@pytest.fixture
def page(browser, complaints):
    with opened_page(browser, complaints) as opened:
        yield opened


def wait_for_lines(page, selector=".curve canvas"):
    """Wait until a chart shows lines besides its axes: pixels of a colour other than grey."""
    page.wait_for_function(
        """selector => {
            const canvas = document.querySelector(selector);
            if (!canvas || !canvas.width) return false;
            const { width, height } = canvas;
            const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
            let coloured = 0;
            for (let n = 0; n < data.length; n += 4) {
                const [r, g, b] = [data[n], data[n + 1], data[n + 2]];
                if (data[n + 3] > 200 && Math.max(r, g, b) - Math.min(r, g, b) > 60) coloured += 1;
            }
            return coloured > 40;
        }""",
        arg=selector,
    )


def tab_to(page, selector, most=40):
    """Move the focus to an element with the Tab key, as a user without a mouse does."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("s => document.activeElement.matches(s)", selector):
            return
    raise AssertionError(f"{selector} cannot be reached by keyboard")


FAULTS = """async which => {
    const options = { resultTypes: ["violations"], preload: false };
    const found = await axe.run(document, which ? { ...options, runOnly: which } : options);
    const faults = found.violations.map(v => [v.id, v.impact, v.nodes.map(node => node.html)]);
    const root = document.documentElement;
    return root.scrollWidth <= innerWidth ? faults : [...faults, ["too wide",
        ...[...document.querySelectorAll("body *")]
        .filter(e => e.getBoundingClientRect().right > innerWidth || e.scrollWidth > e.clientWidth)
        .map(e => e.outerHTML.slice(0, 160)).slice(-6)]];
}"""
"""Returns axe-core's violations on a page, and elements beyond its right edge if it scrolls."""


def check_all_looks(page):
    """Check a page in light, in dark and at 400 pixels; it is light and wide again afterwards.

    In dark only the colours differ, so axe-core checks only colours there.
    """
    wide = page.viewport_size
    check(page)
    page.emulate_media(**LOOKS["dark"])
    check(page, ["color-contrast", "link-in-text-block"])
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(LOOKS["narrow"]["viewport"])
    check(page)
    page.set_viewport_size(wide)


def check(page, which=None):
    """Require no violation by axe-core, of all rules or of `which`, and no horizontal scrolling."""
    if not page.evaluate("'axe' in window"):  # sending it takes longer than running it
        page.context.add_init_script(path=AXE)  # for the following pages
        page.evaluate(AXE.read_text(encoding="utf-8"))
    until = time.monotonic() + 10
    while found := page.evaluate(FAULTS, which):
        assert [fault[0] for fault in found] == ["too wide"], found
        assert time.monotonic() < until, found
        page.wait_for_timeout(50)  # charts follow the page's size after a short delay


def drop_files(page, selector, paths):
    """Drag files from the disk onto an element and drop them, with the browser's events."""
    box = page.locator(selector).bounding_box()
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})
    session.detach()


def compare_all(page):
    """Compare all runs, and wait until the differences are shown."""
    page.click("nav >> text=Compare")
    page.wait_for_selector(".choices input")  # a click does not wait for navigation
    for box in page.query_selector_all(".choices input"):
        box.check()
    page.click("button:has-text('Compare')")
    page.wait_for_selector("tr:has-text('training.max_steps')")


def ask_for_a_drawing(page, prompt):
    """Fill in the form of a small drawing in two steps."""
    page.fill("#prompt", prompt)
    for name, value in (("width", "64"), ("height", "64"), ("steps", "2")):
        page.fill(f"#{name}", value)


def draw(page):
    """Start the drawing, and wait for its image."""
    page.click("button.main")
    page.wait_for_selector(".drawing-card .state.done")
