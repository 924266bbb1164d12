"""The captions of a dataset as they are on disk, read without opening an image.

Tagging, training and editing read the same files by the same rules (`data/folders/listing.py`).
This module only shows captions, so it stores nothing on disk. For a large dataset, the last reading
is kept in memory for a minute, or until a command writes captions, so that paging is quick.
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
from impasto.studio.folders import address_of

ENDINGS = (TAGS, CAPTION)
"""The extensions of caption files that can be shown, the usual one first."""

_LARGEST = 1 << 20  # bytes; a scan does not accept a larger file as a caption
_KEPT_S = 60.0
_KEPT_FROM = 2000  # images


@dataclass(frozen=True, slots=True)
class ImageCaption:
    """The caption of an image.

    Attributes:
        image: The image.
        name: Its path below the dataset's folder, with slashes.
        text: The caption; empty if the image has none.
        fault: The reason why it cannot be read; empty if it can.
    """

    image: Path
    name: str
    text: str = ""
    fault: str = ""

    @property
    def mark(self) -> str:
        """A hash of the caption text, by which a change of the caption is detected."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()

    def tags(self) -> list[str]:
        """Return the comma-separated parts of all lines, each once."""
        pieces = (p.strip() for line in split_lines(self.text) for p in line.split(","))
        return list(dict.fromkeys(filter(None, pieces)))


@dataclass(frozen=True)
class CaptionFilter:
    """The conditions for a caption to be shown; an empty attribute is no condition.

    Attributes:
        tag: The caption must have this tag.
        without: The caption must not have this tag.
        text: The caption must contain this text; letter case is ignored.
    """

    tag: str = ""
    without: str = ""
    text: str = ""

    def of(self, captions: Iterable[ImageCaption]) -> list[ImageCaption]:
        """Return the captions that match the filter."""
        return [caption for caption in captions if self._holds(caption)]

    def _holds(self, caption: ImageCaption) -> bool:
        if self.text and self.text.casefold() not in caption.text.casefold():
            return False
        if not self.tag and not self.without:
            return True
        tags = caption.tags()
        return (not self.tag or self.tag in tags) and self.without not in tags

    def options(self) -> list[str]:
        """Return the filter as options of `impasto dataset edit`."""
        pairs = {"where-tag": self.tag, "where-not-tag": self.without, "where-text": self.text}
        return [f"--{name}={value}" for name, value in pairs.items() if value]


@dataclass(frozen=True)
class CaptionReading:
    """The captions of a dataset, as they were at one moment.

    Attributes:
        ending: Extension of the caption files that were read.
        captions: Captions of all images in the folder and its subfolders, in the order of their
            paths.
    """

    ending: str
    captions: list[ImageCaption]


class CaptionReader:
    """Reads the captions of datasets, and keeps the last reading of a large one for a minute."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[object, float, str, CaptionReading] | None = None

    def read(self, dataset: Path, ending: str = "") -> CaptionReading:
        """Return the captions of a dataset; for a large one, they may be up to a minute old.

        Args:
            dataset: The folder of the dataset.
            ending: Extension of the caption files: one of `ENDINGS`, or empty for the one that most
                images have.
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
    """Read the captions of a dataset from disk, bypassing the cache of `CaptionReader`."""
    listed, _ = list_folder(str(dataset), Sidecars(), recursive=True)
    found = list(listed.items())
    ending = ending or _usual_ending(found)
    captions = [_caption(dataset, item, ENDINGS.index(ending)) for item in found if _is_shown(item)]
    return CaptionReading(ending, captions)


def read_caption(dataset: Path, image: Path, ending: str) -> ImageCaption | None:
    """Read the caption of one image from disk; return None if the image no longer exists."""
    found, _ = list_folder(str(image.parent), Sidecars(), recursive=False)
    item = next((item for item in found.items() if Path(item.path) == image), None)
    return None if item is None else _caption(dataset, item, ENDINGS.index(ending))


def _usual_ending(found: Iterable[FoundImage]) -> str:
    """Return the extension of most images' caption files; `.txt` if both are equally common."""
    counts = Counter(n for item in found for n, file in enumerate(item.caption_files) if file)
    return CAPTION if counts[0] > counts[1] else TAGS


def count_tags(captions: Iterable[ImageCaption]) -> Counter[str]:
    """Count the captions that contain each tag."""
    return Counter(tag for caption in captions for tag in caption.tags())


def found_tags(counts: Counter[str], typed: str, *, by_name: bool) -> list[tuple[str, int]]:
    """Return the tags that contain a text, ignoring letter case, with their counts.

    They are sorted by name, or else by falling count.
    """
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
    """Return the text of a caption file and an empty fault, or an empty text and the fault."""
    try:
        if file.is_symlink() and not files.is_inside(file, dataset):
            return "", "its caption file is a link that leads out of the dataset"
        if file.stat().st_size > _LARGEST:
            return "", "its caption file is larger than 1 MiB, which is too large for a caption"
        return read_caption_file(file).strip(), ""
    except UnicodeDecodeError:
        return "", "its caption is not UTF-8 text; save it as UTF-8"
    except OSError as error:
        return "", f"its caption cannot be read ({storage_errors.cause_of(error)})"


def _last_edit(dataset: Path) -> Sequence[object]:
    """Return a value that changes when a command writes captions: stamps of its undo records."""
    folder = dataset / files.DERIVED_DIR / "annotations"
    try:
        with os.scandir(folder) as entries:
            return sorted((e.name, e.stat().st_mtime_ns, e.stat().st_size) for e in entries)
    except OSError:
        return ()


def images_near(
    dataset: Path,
    captions: Sequence[ImageCaption],
    chosen: Sequence[ImageCaption],
    alone: ImageCaption,
) -> dict[str, str]:
    """Return the addresses of the images of a filter before and after one.

    Args:
        dataset: The folder of the dataset.
        captions: All captions, in the order of the page.
        chosen: Those that match the filter, in the same order.
        alone: The caption shown alone, which need not match the filter itself.

    Returns:
        `before` and `after`; an empty text where there is no such image.
    """
    positions = {caption.image: number for number, caption in enumerate(captions)}
    here = positions[alone.image]
    before = [caption for caption in chosen if positions[caption.image] < here]
    after = next((caption for caption in chosen if positions[caption.image] > here), None)
    return {
        "before": address_of([dataset], before[-1].image) if before else "",
        "after": address_of([dataset], after.image) if after else "",
    }
