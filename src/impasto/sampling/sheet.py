"""Combines images into one grid, with labels at its rows and columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

MOST_PIXELS = 100_000_000
"""Maximum pixels of a sheet; the images of larger grids are made smaller. Pillow refuses to open
images of more than 179 million as a possible attack."""

_GAP = 4
_WHITE, _BLACK = (255, 255, 255), (20, 20, 20)
_LONGEST_LABEL = 80


def draw_sheet(
    cells: Mapping[tuple[int, int], Path], rows: Sequence[str] = (), columns: Sequence[str] = ()
) -> Image.Image:
    """Lay images out by row and column on white; cells are as large as the largest image.

    Args:
        cells: Row and column -> the file of the image; at least one.
        rows: Label to the left of each row; empty for no labels.
        columns: Label above each column; empty for no labels.
    """
    sizes = [_size_of(file) for file in cells.values()]
    width, height = max(w for w, _ in sizes), max(h for _, h in sizes)
    across, down = 1 + max(c for _, c in cells), 1 + max(r for r, _ in cells)
    scale = min(1.0, math.sqrt(MOST_PIXELS / (width * height * across * down)))
    width, height = max(1, int(width * scale)), max(1, int(height * scale))
    font = ImageFont.load_default(max(12, min(width, height) // 16))
    left = max((_text_size(label, font)[0] for label in rows), default=0)
    top = max((_text_size(_fitted(label, font, width), font)[1] for label in columns), default=0)
    left, top = left + 2 * _GAP if rows else 0, top + 2 * _GAP if columns else 0
    whole = (left + across * (width + _GAP) - _GAP, top + down * (height + _GAP) - _GAP)
    sheet = Image.new("RGB", whole, _WHITE)
    pen = ImageDraw.Draw(sheet)
    for column, label in enumerate(columns):
        pen.text((left + column * (width + _GAP), _GAP), _fitted(label, font, width), _BLACK, font)
    for row, label in enumerate(rows):
        pen.text((_GAP, top + row * (height + _GAP)), _short(label), _BLACK, font)
    for (row, column), file in cells.items():
        with Image.open(file) as image:
            small = image.convert("RGB")
            if scale < 1:
                small = small.resize(
                    (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
                )
            sheet.paste(small, (left + column * (width + _GAP), top + row * (height + _GAP)))
    return sheet


def _size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


def _short(label: str) -> str:
    line = " ".join(label.split())
    return line if len(line) <= _LONGEST_LABEL else f"{line[: _LONGEST_LABEL - 1]}…"


def _fitted(label: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """Break a label into lines that are no wider than a column, as far as its words allow."""
    lines: list[str] = []
    for word in _short(label).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def _text_size(label: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> tuple[int, int]:
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    text = label if "\n" in label else _short(label)
    _, _, right, bottom = pen.multiline_textbbox((0, 0), text, font)
    return math.ceil(right), math.ceil(bottom)
