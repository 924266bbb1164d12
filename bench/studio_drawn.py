"""The time from a run's address to its first drawn curve, in Chromium, against an empty page."""

from __future__ import annotations

import os
import re
import shutil
import statistics
from typing import Any

NOTED = """(() => {
    const hasLine = () => {
        const canvas = document.querySelector(".curve canvas");
        if (!canvas?.width) return false;
        const { width, height } = canvas;
        const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
        for (let n = 0; n < data.length; n += 4) {
            const least = Math.min(data[n], data[n + 1], data[n + 2]);
            const most = Math.max(data[n], data[n + 1], data[n + 2]);
            if (data[n + 3] > 200 && most - least > 60) return true;
        }
        return false;
    };
    const look = () => {
        if (document.querySelector("main h1")) window.firstShown ??= performance.now();
        if (hasLine()) window.firstDrawn = performance.now();
        else requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
})()"""
"""Records when a page has its content and when a chart has a line, which is coloured, in
milliseconds since the navigation.
"""

EMPTY = "/tasks"
PAUSE_MS = 300


def first_drawn(address: str, runs: list[str], lines: int) -> dict[str, str]:
    """Visit each run twice in a browser with cached scripts, and an empty page before each visit.

    Args:
        address: The address that the studio prints.
        runs: The paths of pages of runs that have not been opened before.
        lines: How many lines of metrics each run has, for the names of the rows.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    name = f"from the address to the first drawn curve of {lines:,} lines, in Chromium"
    if program is None:
        return {name: "not measured: chromium is not on the PATH"}
    from playwright.sync_api import sync_playwright

    first, new, again, empty = 0.0, [], [], []
    with sync_playwright() as programs:
        browser = programs.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        page.add_init_script(NOTED)
        page.goto(address)
        page.wait_for_selector("nav")
        for run in runs:
            empty.append(visit(page, at(address, EMPTY), "firstShown"))
            drawn = visit(page, at(address, run), "firstDrawn")
            if run == runs[0]:
                first = drawn
            else:
                new.append(drawn)
            page.wait_for_function("() => performance.getEntriesByName('curves-exact').length")
            page.wait_for_timeout(PAUSE_MS)
            empty.append(visit(page, at(address, EMPTY), "firstShown"))
            again.append(visit(page, at(address, run), "firstDrawn"))
        browser.close()
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load not known"
    return {
        name: f"{span(new)}; again {span(again)}; the very first {first:.0f} ms ({load})",
        "an empty page of the studio, to its first frame": span(empty),
        "the first curve against an empty page": (
            f"{against(new, empty)}; again {against(again, empty)}"
        ),
    }


def visit(page: Any, address: str, moment: str) -> float:
    """Open a page; return the milliseconds until a moment that it records is reached."""
    page.goto(address)
    page.wait_for_function(f"() => window.{moment}")
    return float(page.evaluate(f"window.{moment}"))


def at(address: str, path: str) -> str:
    """Return the address of a page of the studio."""
    return re.sub(r"/\?.*", path, address)


def span(moments: list[float]) -> str:
    """Format the median, the minimum and the maximum."""
    middle = statistics.median(moments)
    return f"{middle:.0f} ms ({min(moments):.0f} to {max(moments):.0f})"


def against(moments: list[float], yardstick: list[float]) -> str:
    """Format the ratio of two medians."""
    return f"{statistics.median(moments) / statistics.median(yardstick):.2f}x"
