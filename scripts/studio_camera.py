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
"""How a picture is taken, by what its name ends with: light, dark, on a phone."""

MOST_BYTES = 150_000
SHOWN_FOLDER = "/home/ada"
"""What stands in the pictures in place of the folder that they were taken in."""

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
"""Puts another path in place of a real one in all that is shown; returns what puts it back."""

ALL_LOADED = """() => [...document.images].every(image => image.complete
    || image.getBoundingClientRect().top > innerHeight || !image.checkVisibility())"""
"""Images that are not in the window are loaded when they come there."""

END = (
    "Math.ceil(document.querySelector('main').lastElementChild.getBoundingClientRect().bottom) + 20"
)
"""Where the content ends, in pixels from the top of the window."""


@dataclass(frozen=True)
class Camera:
    """Takes pictures of a page in the looks that are asked for.

    Attributes:
        page: What is photographed.
        out: The folder for the pictures.
        workplace: The folder whose path is not to be shown.
        only: Names of the pictures that are written; all of them if there are none.
    """

    page: Page
    out: Path
    workplace: Path
    only: frozenset[str]

    def take(self, name: str, *looks: str, at: str = "") -> None:
        """Write a picture of what is in the window, in light and in the looks that are named.

        Args:
            name: Its name, without what the looks add.
            looks: Keys of `LOOKS`, beside the light one.
            at: A selector of what is to stand at the top; the page's own top without it.
        """
        for look in ("", *looks):
            if self.only and name + look not in self.only:
                continue
            settings = LOOKS[look]
            self.page.set_viewport_size(settings["viewport"])
            self.page.emulate_media(color_scheme=settings.get("color_scheme", "light"))
            self.page.mouse.move(0, 0)  # nothing is pointed at
            self.page.evaluate("document.activeElement?.blur()")
            self._scroll(at)
            self.page.wait_for_timeout(700)  # charts are drawn anew
            self.page.wait_for_function(ALL_LOADED)
            renamed = self.page.evaluate_handle(RENAMED, [str(self.workplace), SHOWN_FOLDER])
            target = self.out / f"{name}{look}.png"
            shown = {"x": 0, "y": 0, **self.page.viewport_size}
            shown["height"] = min(shown["height"], self.page.evaluate(END))
            taken = self.page.screenshot(clip=shown)
            renamed.evaluate("putBack => putBack()")  # forms are sent with the real paths
            target.write_bytes(small_png(taken))
            print(f"{target}: {target.stat().st_size:,} bytes")
        self.page.set_viewport_size(SIZE)
        self.page.emulate_media(color_scheme="light")

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
    """The same picture with as many colours as fit into `MOST_BYTES`.

    Raises:
        ValueError: It is larger even with 32 colours.
    """
    picture = Image.open(io.BytesIO(taken)).convert("RGB")
    for colours in (256, 128, 64, 32):
        out = io.BytesIO()
        picture.quantize(colours).save(out, "PNG", optimize=True)
        if out.tell() <= MOST_BYTES:
            return out.getvalue()
    raise ValueError(f"the picture has {out.tell():,} bytes")
