"""The camera of `take_screenshots.py`: a page in several looks, as small PNGs."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

SIZE = {"width": 1100, "height": 780}
LOOKS = {
    "": {"viewport": SIZE},
    "-dark": {"viewport": SIZE, "color_scheme": "dark"},
    "-narrow": {"viewport": {"width": 400, "height": 780}},
}
"""The window and colour scheme of each look, by its suffix of the file name: light, dark, phone."""

MOST_BYTES = 120_000
WHOLE_PX = 4000
"""The maximum height in pixels of a screenshot of a whole page, from its top."""

SHOWN_FOLDER = "/home/ada"
"""The path shown in screenshots instead of the folder that they were taken in."""

RENAMED = """([from, to]) => {
    const undo = [];
    const rename = (place, key) => {
        const real = place[key];
        undo.push(() => { place[key] = real; });
        place[key] = real.replaceAll(from, to);
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        if (walker.currentNode.data.includes(from)) rename(walker.currentNode, "data");
    }
    for (const field of document.querySelectorAll("input, textarea")) {
        for (const key of ["value", "placeholder"]) {
            if (field.type !== "file" && field[key]?.includes(from)) rename(field, key);
        }
    }
    return () => undo.forEach(putBack => putBack());
}"""
"""Replaces one path by another in all visible text; returns a function that undoes it."""

ALL_LOADED = """() => [...document.images].every(image => image.complete
    || image.getBoundingClientRect().top > innerHeight || !image.checkVisibility())"""
"""Waits for images in the window only: the others load when they are scrolled into view."""

END = (
    "Math.ceil(document.querySelector('main').lastElementChild.getBoundingClientRect().bottom) + 20"
)
"""Returns where the content ends, in pixels from the top of the window."""


@dataclass(frozen=True)
class Camera:
    """Takes screenshots of a page in the requested looks.

    Attributes:
        page: The page.
        out: The folder for the screenshots.
        workplace: The folder whose path is hidden.
        only: Names of the screenshots to write; None writes all of them, of whole pages and of any
            size in bytes.
    """

    page: Page
    out: Path
    workplace: Path
    only: frozenset[str] | None

    def take(self, name: str, at: str = "") -> None:
        """Write the requested screenshots of the window's content, in all looks.

        Args:
            name: Their name, without the suffixes of the looks.
            at: A selector of the element to scroll to the top; without it, the top of the page.
        """
        for look in LOOKS:
            if self.only is not None and name + look not in self.only:
                continue
            settings = LOOKS[look]
            self.page.set_viewport_size(settings["viewport"])
            self.page.emulate_media(color_scheme=settings.get("color_scheme", "light"))
            self.page.mouse.move(0, 0)  # away from anything with a hover effect
            self.page.evaluate("document.activeElement?.blur()")
            self._scroll(at)
            self.page.wait_for_timeout(700)  # charts are redrawn
            self.page.wait_for_function(ALL_LOADED)
            renamed = self.page.evaluate_handle(RENAMED, [str(self.workplace), SHOWN_FOLDER])
            target = self.out / f"{name}{look}.png"
            taken = self._whole() if self.only is None else self._window()
            renamed.evaluate("putBack => putBack()")  # forms must send the real paths
            target.write_bytes(taken if self.only is None else small_png(taken))
            print(f"{target}: {target.stat().st_size:,} bytes")
        self.page.set_viewport_size(SIZE)
        self.page.emulate_media(color_scheme="light")

    def _window(self) -> bytes:
        shown = {"x": 0, "y": 0, **self.page.viewport_size}
        shown["height"] = min(shown["height"], self.page.evaluate(END))
        return self.page.screenshot(clip=shown)

    def _whole(self) -> bytes:
        """Return the whole page from its top, at its full width, so that overflow is visible."""
        width, height = self.page.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        )
        shown = {"x": 0, "y": 0, "width": width, "height": min(height, WHOLE_PX)}
        return self.page.screenshot(clip=shown, full_page=True)

    def _scroll(self, at: str) -> None:
        if at:
            self.page.locator(at).first.evaluate("node => node.scrollIntoView({block: 'start'})")
            self.page.mouse.wheel(0, -16)
        else:
            self.page.evaluate(
                "[document.scrollingElement, ...document.querySelectorAll('main *')]"
                ".forEach(node => { node.scrollTop = 0; })"
            )


def small_png(taken: bytes) -> bytes:
    """Return the image as a PNG with as many colours as fit into `MOST_BYTES`.

    Raises:
        ValueError: It is larger even with 32 colours.
    """
    picture = Image.open(io.BytesIO(taken)).convert("RGB")
    for colours in (256, 128, 64, 32):
        out = io.BytesIO()
        picture.quantize(colours).save(out, "PNG", optimize=True)
        if out.tell() <= MOST_BYTES:
            return out.getvalue()
    raise ValueError(f"the screenshot is too large: {out.tell():,} bytes")
