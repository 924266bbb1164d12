"""Words beside images: which files they are, and whether an image has any.

One rule for tagging, captioning and cleaning: an image has words if anything of a person or a
model is in a `.txt` or `.caption` beside it (in any spelling that some system takes for the same
name), in the file that is about to be written, or in the metadata that is read. Training joins
them all, so words of one kind beside those of another are never written unasked.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from impasto.data.folders.listing import CAPTION, TAGS
from impasto.data.records import ImageRecord
from impasto.parsing import decode_caption

_Names = dict[tuple[str, str], list[str]]


class SidecarLookup:
    """The files with words in folders of images; each folder is listed once.

    Args:
        endings: Endings that count besides `.txt` and `.caption`.
    """

    def __init__(self, *endings: str) -> None:
        self._endings = tuple(dict.fromkeys([TAGS, CAPTION, *map(str.lower, endings)]))
        self._listed: dict[Path, _Names] = {}

    def has_caption(self, record: ImageRecord) -> bool:
        """Whether an image has words of any kind."""
        return bool(record.own_caption_text.strip()) or any(
            has_text(file) for ending in self._endings for file in self._all(record.path, ending)
        )

    def file(self, image: Path, ending: str) -> Path:
        """The file of an image's words of one kind: as it is spelt there, or as it would be."""
        usual = image.with_suffix(ending)
        found = self._all(image, ending)
        return usual if usual in found or not found else found[0]

    def _all(self, image: Path, ending: str) -> list[Path]:
        """Files of that kind beside an image, in other letter case or Unicode form too."""
        names = self._names_in(image.parent)
        found = names.get(_folded(image.stem, ending), [])
        return [image.parent / name for name in found]

    def _names_in(self, folder: Path) -> _Names:
        if folder not in self._listed:
            names: _Names = {}
            try:
                listing = sorted(os.listdir(folder))
            except OSError:
                listing = []
            for name in listing:
                stem, ending = os.path.splitext(name)  # noqa: PTH122 - hot path
                names.setdefault(_folded(stem, ending), []).append(name)
            self._listed[folder] = names
        return self._listed[folder]


def has_text(file: Path) -> bool:
    """Whether a regular file holds more than space; bytes that are no text are words too."""
    try:
        if not file.is_file():
            return False
        return bool(decode_caption(file.read_bytes(), errors="replace").strip())
    except OSError:
        return True  # what cannot be read is somebody's all the same


def _folded(stem: str, ending: str) -> tuple[str, str]:
    return unicodedata.normalize("NFC", stem), ending.lower()
