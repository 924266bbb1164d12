"""The previews of a run as pages show them: whole or not at all."""

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
    """A preview as it stands in a page.

    Attributes:
        width: Pixels.
        prompt: The prompt in its file; empty where it has none.
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
    """A preview, without the prompt in its file unless `with_texts`; None if it is not whole."""
    if not presence.is_file(path):  # a FIFO would wait for ever
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
    """What A1111 calls `parameters` in a PNG file: prompt, seed, size; empty where there is none.

    The same text means the same prompt and seed. Only the head of the file is read.
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
    """The newest step that has previews, and their files; None where no step has any.

    Args:
        run: The run that drew them.
        steps: The steps to look at, in their order; without them all that the run has drawn at.
    """
    for step in reversed(run.sampled_steps() if steps is None else steps):
        if names := preview_names(run, step):
            return step, names
    return None


def preview_names(run: RunDirectory, step: int) -> list[str]:
    """The files of previews that a run drew at a step."""
    try:
        names = sorted(path.name for path in (run.samples / step_name(step)).glob("*.png"))
    except OSError:
        return []
    return [name for name in names if not name.startswith(".") and is_text(name)]
