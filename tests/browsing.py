"""The studio in a real browser, for tests; they are skipped where there is no Chromium."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.warm import running

from impasto.runs.queue import Queue
from impasto.runs.queue_devices import runners_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
AXE = Path(__file__).parent / "support" / "axe.min.js"
PATIENCE_MS = 60_000

needs_browser = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path"),
    pytest.mark.timeout(600),
]
"""The marks of a module of tests in a browser: `pytestmark = needs_browser`."""

LOOKS = {
    "light": {},
    "dark": {"color_scheme": "dark"},
    "narrow": {"viewport": {"width": 400, "height": 800}},
}
"""What a page is to be usable in: the arguments of a browser's context."""


@contextmanager
def served(runs, *options, forked=(), **more):
    """The studio as a user starts it; yields the address and the process.

    Of the commands that it starts, those that are named in `forked` are forks, and the others
    interpreters, as a user's are; without names all are forks.
    Further arguments are those of the process, such as `stderr`.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "impasto", "studio", "--runs", str(runs), *map(str, options)],
        stdout=subprocess.PIPE, text=True, encoding="utf-8",
        env=running.with_forks(only=forked), **more,
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


def at(address, path):
    """The address of a page of a studio, for a browser that has opened the printed one."""
    return re.sub(r"\?.*", path.lstrip("/"), address)


def end_queue(folder):
    """End whoever works a queue off, and what is being trained of it."""
    found = Queue(folder)
    running = [holder.owner.pid for holder in runners_of(folder).values()]
    running += [job.run.status()["pid"] for job in found.jobs() if job.run.state().is_alive]
    for pid in running:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")  # longer, and its event loop would be in the way of others
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
    context = browser.new_context()
    opened = context.new_page()
    opened.set_default_timeout(PATIENCE_MS)
    opened.on("response", lambda r: complaints.append(r.url) if r.status >= 400 else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    yield opened
    context.close()


def wait_for_lines(page, selector=".curve canvas"):
    """Wait until a chart has lines, and not its axes alone: pixels of a colour that is no grey."""
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
    """Go to an element by keyboard, as somebody does who has no mouse."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("s => document.activeElement.matches(s)", selector):
            return
    raise AssertionError(f"{selector} is not reached by keyboard")


def check_all_looks(page):
    """Check a page in light, in dark and at 400 pixels; it is light and wide again afterwards."""
    wide = page.viewport_size
    for look in LOOKS.values():
        page.emulate_media(color_scheme=look.get("color_scheme", "light"))
        page.set_viewport_size(look.get("viewport", wide))
        check(page)
    page.set_viewport_size(wide)
    page.emulate_media(color_scheme="light")


TOO_WIDE = """() => document.documentElement.scrollWidth <= innerWidth ? [] :
    ["too wide", ...[...document.querySelectorAll("body *")]
    .filter(e => e.getBoundingClientRect().right > innerWidth || e.scrollWidth > e.clientWidth)
    .map(e => e.outerHTML.slice(0, 160)).slice(-6)]"""
"""What reaches beyond the right edge of a page that scrolls sideways."""


def check(page):
    """No serious fault by axe-core, and no scrolling sideways."""
    if not page.evaluate("'axe' in window"):  # it takes longer to send than to run
        page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run().then(found => found.violations)")
    faults = [(v["id"], v["impact"], [n["html"] for n in v["nodes"]]) for v in found]
    assert faults == []
    until = time.monotonic() + 10
    while (found := page.evaluate(TOO_WIDE)) and time.monotonic() < until:
        page.wait_for_timeout(50)  # charts take the size of a page a moment after it
    assert found == []


def drop_files(page, selector, paths):
    """Drag files from the disk onto an element and drop them there, as the browser gets it."""
    box = page.locator(selector).bounding_box()
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})
    session.detach()


def compare_all(page):
    """Compare all runs, until what differs is shown."""
    page.click("nav >> text=Compare")
    page.wait_for_selector(".choices input")  # a click does not wait for the next page
    for box in page.query_selector_all(".choices input"):
        box.check()
    page.click("button:has-text('Compare')")
    page.wait_for_selector("tr:has-text('training.max_steps')")


def ask_for_a_drawing(page, prompt):
    """Fill the form of a small drawing in two steps."""
    page.fill("#prompt", prompt)
    for name, value in (("width", "64"), ("height", "64"), ("steps", "2")):
        page.fill(f"#{name}", value)


def draw(page):
    """Have it drawn, and wait for it."""
    page.click("button.main")
    page.wait_for_selector(".drawing-card .state.done")
