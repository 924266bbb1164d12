"""Lines around captions, as in the `textual_inversion_templates` of A1111's trainer."""

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
    """Lines from which one is chosen each time an image is shown.

    Attributes:
        lines: Lines with `[filewords]` for the caption, and `[name]` for `name`.
        name: The name of what is trained, such as an embedding.
    """

    lines: tuple[str, ...]
    name: str

    def around(self, caption: str, seed: int, *keys: int | str) -> str:
        """Return the caption in one of the lines, the same for the same keys.

        An empty caption, or one without any lines, is returned unchanged.
        """
        if not caption or not self.lines:
            return caption
        line = self.lines[int(derive_rng(seed, "template", *keys).integers(len(self.lines)))]
        return line.replace(NAME, self.name).replace(CAPTION, caption)


def read_templates(lines: Sequence[str], file: Path | None, name: str) -> CaptionTemplates:
    """Return the given lines and those of a file.

    Raises:
        ConfigError: The file is missing or has no lines, or a line has other words in brackets.
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
            raise ConfigError(f"The template file {file} has no lines.")
        found += own
    for line in found:
        rest = line.replace(CAPTION, "").replace(NAME, "")
        if "[" in rest or CAPTION not in line:
            raise ConfigError(
                f"The template {line!r} is invalid: it needs {CAPTION} for the caption, may have "
                f"{NAME}, and no other word in brackets."
            )
    return CaptionTemplates(tuple(found), name)
