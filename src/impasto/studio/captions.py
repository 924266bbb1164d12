"""The captions of a dataset as they are on disk, read without opening an image.

Whoever tags, trains or edits reads the same files by the same rules (`data/folders/listing.py`);
here they are only shown, so nothing is remembered on disk. Of a large dataset the last reading is
kept for a minute, or until a command writes captions, so that going from page to page is quick.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from impasto import files, storage_errors
from impasto.data.folders.listing import CAPTION, TAGS, FoundImage, Sidecars, list_folder
from impasto.parsing import read_caption_file, split_lines

ENDINGS = (TAGS, CAPTION)
"""The endings of files with captions that can be shown, the usual one first."""

_LARGEST = 1 << 20  # bytes; a scan takes no larger file for a caption
_KEPT_S = 60.0
_KEPT_FROM = 2000  # images


@dataclass(frozen=True, slots=True)
class ImageCaption:
    """The caption of an image.

    Attributes:
        image: The image.
        name: Its path below the dataset's folder, with slashes.
        text: The caption; empty where there is none.
        fault: Why it cannot be read; else empty.
    """

    image: Path
    name: str
    text: str = ""
    fault: str = ""

    @property
    def mark(self) -> str:
        """What tells this caption from another one."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()

    def tags(self) -> list[str]:
        """The parts of all lines between commas, each once."""
        pieces = (p.strip() for line in split_lines(self.text) for p in line.split(","))
        return list(dict.fromkeys(filter(None, pieces)))


@dataclass(frozen=True)
class CaptionFilter:
    """Which captions are shown; what is empty does not count.

    Attributes:
        tag: They have this tag.
        without: They do not have this one.
        text: This text is in them, in any letter case.
    """

    tag: str = ""
    without: str = ""
    text: str = ""

    def of(self, captions: Iterable[ImageCaption]) -> list[ImageCaption]:
        """The captions that are shown."""
        return [caption for caption in captions if self._holds(caption)]

    def _holds(self, caption: ImageCaption) -> bool:
        if self.text and self.text.casefold() not in caption.text.casefold():
            return False
        if not self.tag and not self.without:
            return True
        tags = caption.tags()
        return (not self.tag or self.tag in tags) and self.without not in tags

    def options(self) -> list[str]:
        """Spell the filter as options of `impasto dataset edit`."""
        pairs = {"where-tag": self.tag, "where-not-tag": self.without, "where-text": self.text}
        return [f"--{name}={value}" for name, value in pairs.items() if value]


@dataclass(frozen=True)
class CaptionReading:
    """The captions of a dataset, as they were at one moment.

    Attributes:
        ending: Of the files that they were read from.
        captions: Of all images in the folder and below, in the order of their paths.
    """

    ending: str
    captions: list[ImageCaption]


class CaptionReader:
    """Reads the captions of datasets."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[object, float, str, CaptionReading] | None = None

    def read(self, dataset: Path, ending: str = "") -> CaptionReading:
        """The captions of a folder; of a large one perhaps those of a minute ago.

        Args:
            dataset: The folder.
            ending: Of the files: one of `ENDINGS`, or empty for the one that most images have.
        """
        key = (dataset, _last_edit(dataset))
        with self._lock:
            last = self._last
        if last is not None and last[0] == key:
            _, read_at, asked, reading = last
            if ending in (asked, reading.ending) and time.monotonic() - read_at < _KEPT_S:
                return reading
        found = read_captions(dataset, ending)
        if len(found.captions) >= _KEPT_FROM:
            with self._lock:
                self._last = (key, time.monotonic(), ending, found)
        return found


def read_captions(dataset: Path, ending: str = "") -> CaptionReading:
    """Read the captions of a dataset from the disk, whatever a `CaptionReader` remembers."""
    listed, _ = list_folder(str(dataset), Sidecars(), recursive=True)
    found = list(listed.items())
    ending = ending or _usual_ending(found)
    captions = [_caption(dataset, item, ENDINGS.index(ending)) for item in found if _is_shown(item)]
    return CaptionReading(ending, captions)


def read_caption(dataset: Path, image: Path, ending: str) -> ImageCaption | None:
    """Read the caption of one image from the disk; None where the image is not there any more."""
    found, _ = list_folder(str(image.parent), Sidecars(), recursive=False)
    item = next((item for item in found.items() if Path(item.path) == image), None)
    return None if item is None else _caption(dataset, item, ENDINGS.index(ending))


def _usual_ending(found: Iterable[FoundImage]) -> str:
    """The ending that most images have words in; `.txt` if it is undecided."""
    counts = Counter(n for item in found for n, file in enumerate(item.caption_files) if file)
    return CAPTION if counts[0] > counts[1] else TAGS


def count_tags(captions: Iterable[ImageCaption]) -> Counter[str]:
    """In how many captions each tag is."""
    return Counter(tag for caption in captions for tag in caption.tags())


def found_tags(counts: Counter[str], typed: str, *, by_name: bool) -> list[tuple[str, int]]:
    """The tags that have a text in them, in any letter case, with their counts."""
    wanted = typed.casefold()
    rows = [row for row in counts.items() if wanted in row[0].casefold()]
    if by_name:
        return sorted(rows, key=lambda row: row[0].casefold())
    return sorted(rows, key=lambda row: (-row[1], row[0].casefold()))


def _is_shown(item: FoundImage) -> bool:
    return not item.fault or "caption" in item.fault


def _caption(dataset: Path, item: FoundImage, ending: int) -> ImageCaption:
    image = Path(item.path)
    name = image.relative_to(dataset).as_posix()
    if item.fault:
        return ImageCaption(image, name, fault=item.fault)
    file = item.caption_files[1 - ending]
    if not file:
        return ImageCaption(image, name)
    text, fault = _read(Path(file), dataset)
    return ImageCaption(image, name, text, fault)


def _read(file: Path, dataset: Path) -> tuple[str, str]:
    """The words in a file, and why they are not shown."""
    try:
        if file.is_symlink() and not files.is_inside(file, dataset):
            return "", "its caption is a link that leads out of the dataset"
        if file.stat().st_size > _LARGEST:
            return "", "its caption has over 1 MiB, too large for a caption"
        return read_caption_file(file).strip(), ""
    except UnicodeDecodeError:
        return "", "its caption is not UTF-8 text; save it as UTF-8"
    except OSError as error:
        return "", f"its caption cannot be read ({storage_errors.cause_of(error)})"


def _last_edit(dataset: Path) -> Sequence[object]:
    """What changes when words are written by a command: the newest notes for undo."""
    folder = dataset / files.DERIVED_DIR / "annotations"
    try:
        with os.scandir(folder) as entries:
            return sorted((e.name, e.stat().st_mtime_ns, e.stat().st_size) for e in entries)
    except OSError:
        return ()
