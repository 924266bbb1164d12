"""Caption files beside images: finding them, and determining whether an image has a caption.

Tagging, captioning and cleaning use one rule: an image has a caption if there is any text from a
person or a model in a `.txt` or `.caption` file beside it (in any spelling that some system regards
as the same name), in the file that is about to be written, or in the metadata that is read.
Training joins them all, so captions of one kind are never written beside another unless requested.
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
    """The caption files in folders of images; each folder is listed once.

    Args:
        endings: File extensions that count in addition to `.txt` and `.caption`.
    """

    def __init__(self, *endings: str) -> None:
        self._endings = tuple(dict.fromkeys([TAGS, CAPTION, *map(str.lower, endings)]))
        self._listed: dict[Path, _Names] = {}

    def has_caption(self, record: ImageRecord) -> bool:
        """Return whether an image has a caption or tags, in metadata or in a caption file."""
        return bool(record.own_caption_text.strip()) or any(
            has_text(file) for ending in self._endings for file in self._all(record.path, ending)
        )

    def file(self, image: Path, ending: str) -> Path:
        """Return the path of an image's caption file: as spelled on disk, or as it would be."""
        usual = image.with_suffix(ending)
        found = self._all(image, ending)
        return usual if usual in found or not found else found[0]

    def _all(self, image: Path, ending: str) -> list[Path]:
        """Return the files with that extension beside an image, in any case or Unicode form."""
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
    """Return whether a regular file has more than whitespace; undecodable bytes count as text.

    True if it cannot be read, so that it is not overwritten.
    """
    try:
        if not file.is_file():
            return False
        return bool(decode_caption(file.read_bytes(), errors="replace").strip())
    except OSError:
        return True  # an unreadable file may have a caption, so it must not be overwritten


def _folded(stem: str, ending: str) -> tuple[str, str]:
    return unicodedata.normalize("NFC", stem), ending.lower()
