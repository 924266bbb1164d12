"""The caption files of a dataset's images: reads them, selects some, and changes them together.

`editing.py` changes texts; this module finds the files that hold them, and those that the user
selected.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from impasto.annotate.dataset_folders import DatasetFolders
from impasto.annotate.editing import Operation, applied, tags_of
from impasto.annotate.substitution import LONGEST, SubstitutionError
from impasto.data.folders.beside import SidecarLookup
from impasto.data.folders.listing import CAPTION, TAGS
from impasto.data.records import ImageRecord, SkippedFile
from impasto.errors import DatasetError
from impasto.parsing import read_caption_file
from impasto.storage_errors import cause_of

NOT_OWN = (
    "its caption is not in a separate file, but in metadata or in the file that contains the image"
)


@dataclass(frozen=True)
class CaptionFile:
    """The caption of an image as it is in a file; empty if the file does not exist.

    Attributes:
        image: The image.
        name: The image's name in journals (`DatasetFolders.name_of`).
        shown: The image's path below its folder, with slashes.
        file: The caption file, which may not exist.
        text: The caption, without surrounding space.
        others: Further images with the same caption file, as `shown`: `a.png` beside `a.jpg`.
    """

    image: Path
    name: str
    shown: str
    file: Path
    text: str
    others: tuple[str, ...] = ()

    @property
    def images(self) -> frozenset[str]:
        """The paths of all images with this caption file, below their folder."""
        return frozenset({self.shown, *self.others})


@dataclass(frozen=True)
class CaptionChoice:
    """A filter of captions: selects those that meet every condition.

    Attributes:
        with_tags: Tags that the caption must have.
        without_tags: Tags that it must not have.
        containing: Texts that it must contain, in any letter case.
        images: Paths of images below their folders; None means all.
    """

    with_tags: Sequence[str] = ()
    without_tags: Sequence[str] = ()
    containing: Sequence[str] = ()
    images: frozenset[str] | None = None

    def of(self, captions: Iterable[CaptionFile], separator: str) -> list[CaptionFile]:
        """Return the selected captions.

        Raises:
            DatasetError: A selected image is not among them.
        """
        found = [c for c in captions if self.images is None or c.images & self.images]
        missing = (self.images or frozenset()).difference(*(c.images for c in found))
        if missing:
            raise DatasetError(
                f"{len(missing)} of the selected images cannot be edited: they are not in "
                f"the dataset, or were skipped. The first is {min(missing)!r}. Nothing was "
                f"written. Give their paths below the folder of images, with slashes."
            )
        return [caption for caption in found if self._holds(caption.text, separator)]

    def _holds(self, text: str, separator: str) -> bool:
        if self.containing:
            folded = text.casefold()
            if not all(wanted.casefold() in folded for wanted in self.containing):
                return False
        if not self.with_tags and not self.without_tags:
            return True
        tags = tags_of(text, separator)
        return tags.issuperset(self.with_tags) and tags.isdisjoint(self.without_tags)


@dataclass(frozen=True)
class CaptionChange:
    """A caption before and after an edit."""

    caption: CaptionFile
    after: str


def find_captions(
    records: Sequence[ImageRecord], folders: DatasetFolders, ending: str
) -> tuple[list[CaptionFile], list[SkippedFile]]:
    """Return the captions of all images, each file once, and the files that cannot be edited.

    Args:
        records: The images.
        folders: The dataset.
        ending: The extension of the caption files, such as `.txt`.
    """
    beside = SidecarLookup(ending)
    found: dict[Path, CaptionFile] = {}
    skipped: dict[Path, SkippedFile] = {}
    for record in records:
        file = beside.file(record.path, ending)
        if file in found:
            others = (*found[file].others, record.file_name)
            found[file] = replace(found[file], others=others)
        if file in found or file in skipped:
            continue
        text, reason = "", folders.why_not_written(file)
        if not reason:
            text, reason = _read(record, file, ending, beside)
        if reason:
            skipped[file] = SkippedFile(file, reason)
        else:
            name = folders.name_of(record.path)
            found[file] = CaptionFile(record.path, name, record.file_name, file, text)
    return list(found.values()), list(skipped.values())


def has_words_elsewhere(record: ImageRecord, ending: str, beside: SidecarLookup) -> bool:
    """Return whether an image without a caption file of an extension has that caption elsewhere.

    Text in its `.txt` or `.caption` does not count for a third extension.
    """
    own = {TAGS: record.tags, CAPTION: record.caption}
    if ending not in own and any(beside.file(record.path, usual).is_file() for usual in own):
        return False
    return bool(own.get(ending, record.own_caption_text).strip())


def changes_of(
    captions: Sequence[CaptionFile],
    operations: Sequence[Operation],
    separator: str,
    done: Collection[str] = (),
) -> list[CaptionChange]:
    """Return the edited captions that differ from the present ones.

    Args:
        captions: The present captions.
        operations: The changes, in order.
        separator: The separator between tags.
        done: Names of images to skip, since an interrupted run of the edit has changed them.

    Raises:
        DatasetError: A regular expression takes too long, or a caption would become too long.
    """
    left = [caption for caption in captions if caption.name not in done]
    try:
        texts = applied(operations, [caption.text for caption in left], separator)
    except SubstitutionError as error:
        raise DatasetError(
            f"The regular expression was stopped at {left[error.number].file}: {error.reason}. "
            f"Nothing was written. Choose a simpler pattern; nested repeats such as (a+)+ never "
            f"finish on some texts."
        ) from error
    pairs = zip(left, texts, strict=True)
    changes = [CaptionChange(caption, text) for caption, text in pairs if text != caption.text]
    for change in changes:
        if len(change.after.encode("utf-8")) >= LONGEST:
            raise DatasetError(
                f"{change.caption.file} would have over {LONGEST >> 20} MiB, too large for a "
                f"caption: training would skip the image. Nothing was written."
            )
    return changes


def _read(record: ImageRecord, file: Path, ending: str, beside: SidecarLookup) -> tuple[str, str]:
    """Return the caption in a file, and the reason if it cannot be edited, else an empty one."""
    if not os.path.lexists(file):
        return "", NOT_OWN if has_words_elsewhere(record, ending, beside) else ""
    try:
        if file.stat().st_size > LONGEST:
            return "", f"it has over {LONGEST >> 20} MiB, too large for a caption"
        return read_caption_file(file).strip(), ""
    except UnicodeDecodeError:
        return "", "it is not UTF-8 text; save it as UTF-8"
    except OSError as error:
        return "", f"it cannot be read ({cause_of(error)})"
