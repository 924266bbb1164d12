"""Reads the previews of a run for pages; damaged files are left out."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from impasto import presence
from impasto.parsing import is_text
from impasto.runs import RunDirectory, step_name

_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Preview:
    """A preview for a page.

    Attributes:
        width: Its width in pixels.
        prompt: The prompt stored in its file; empty if there is none.
        content: The bytes of a PNG file.
    """

    width: int
    prompt: str
    content: bytes

    @property
    def url(self) -> str:
        """The image as a data URL."""
        return "data:image/png;base64," + base64.b64encode(self.content).decode("ascii")


def read_preview(path: Path, *, with_texts: bool) -> Preview | None:
    """Read a preview; None if it is damaged. Without `with_texts`, its file has no prompt."""
    if not presence.is_file(path):  # reading a FIFO would block for ever
        return None
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            prompt = str(image.info.get("parameters", "")).partition("\n")[0]
            pixels = image.convert("RGB")
    except _DAMAGE:
        return None
    if not with_texts:
        plain = io.BytesIO()
        Image.frombytes(pixels.mode, pixels.size, pixels.tobytes()).save(plain, "PNG")
        content = plain.getvalue()
    return Preview(pixels.width, prompt, content)


def parameters_of(path: Path) -> str:
    """Read the text `parameters` of A1111 in a PNG file: prompt, seed, size; empty if missing.

    Equal texts mean equal prompts and seeds. Only the head of the file is read.
    """
    if not presence.is_file(path):
        return ""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return str(image.info.get("parameters", ""))
    except _DAMAGE:
        return ""


def newest_previews(
    run: RunDirectory, steps: Sequence[int] | None = None
) -> tuple[int, list[str]] | None:
    """Return the newest step that has previews, and their file names; None if no step has any.

    Args:
        run: The run that drew them.
        steps: The steps to search, in ascending order; None for all sampled steps of the run.
    """
    for step in reversed(run.sampled_steps() if steps is None else steps):
        if names := preview_names(run, step):
            return step, names
    return None


def preview_names(run: RunDirectory, step: int) -> list[str]:
    """Return the names of a run's preview files at a step."""
    try:
        names = sorted(path.name for path in (run.samples / step_name(step)).glob("*.png"))
    except OSError:
        return []
    return [name for name in names if not name.startswith(".") and is_text(name)]
