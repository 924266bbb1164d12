"""Lines around captions, as A1111's trainer has them in its `textual_inversion_templates`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from impasto.errors import ConfigError
from impasto.parsing import read_text, split_lines
from impasto.randomness import derive_rng
from impasto.storage_errors import cause_of

CAPTION, NAME = "[filewords]", "[name]"


@dataclass(frozen=True)
class CaptionTemplates:
    """Lines of which one is taken each time an image is shown.

    Attributes:
        lines: With `[filewords]` for the caption and `[name]` for `name`.
        name: What is trained.
    """

    lines: tuple[str, ...]
    name: str

    def around(self, caption: str, seed: int, *keys: int | str) -> str:
        """The caption in one of the lines; the same for the same keys. An empty one stays empty."""
        if not caption or not self.lines:
            return caption
        line = self.lines[int(derive_rng(seed, "template", *keys).integers(len(self.lines)))]
        return line.replace(NAME, self.name).replace(CAPTION, caption)


def read_templates(lines: Sequence[str], file: Path | None, name: str) -> CaptionTemplates:
    """Lines as given, and those of a file.

    Raises:
        ConfigError: The file is missing or has no line, or a line names something else.
    """
    found = [line.strip() for line in lines]
    if file is not None:
        try:
            text = read_text(file)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"The template file {file} cannot be read: {cause_of(error)}."
            ) from error
        own = [line.strip() for line in split_lines(text) if line.strip()]
        if not own:
            raise ConfigError(f"The template file {file} has no line in it.")
        found += own
    for line in found:
        rest = line.replace(CAPTION, "").replace(NAME, "")
        if "[" in rest or CAPTION not in line:
            raise ConfigError(
                f"The template {line!r} does not fit: it needs {CAPTION} for the caption, may have "
                f"{NAME}, and knows no other word in brackets."
            )
    return CaptionTemplates(tuple(found), name)
