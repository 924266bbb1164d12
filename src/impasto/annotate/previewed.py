"""Records captions at the preview of an edit, so that captions changed since are not edited.

Between preview and edit, captions may be changed, or images added that a filter selects. Such
captions are left unchanged and reported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from impasto import files
from impasto.annotate.caption_files import CaptionChange, CaptionFile
from impasto.data.records import SkippedFile
from impasto.errors import ConfigError
from impasto.parsing import read_object

_CHANGED = "it was changed after the preview, and is left unchanged"
_GONE = "its image no longer exists, or can no longer be edited"


Marks = Mapping[str, Sequence[str]]
"""Name of an image -> the hash of its caption at the preview, and the caption file."""


def marks_of(changes: Iterable[CaptionChange]) -> Marks:
    """Return the marks by which captions can be checked later for changes."""
    return {c.caption.name: [_mark(c.caption), str(c.caption.file)] for c in changes}


def note_preview(file: Path, changes: Iterable[CaptionChange]) -> None:
    """Write the marks of the captions that an edit would change to a file.

    Raises:
        StorageError: The file cannot be written.
    """
    files.write_json(file, marks_of(changes), durable=False)


def read_preview(file: Path) -> Marks:
    """Return the marks that `note_preview` has written.

    Raises:
        ConfigError: The file is missing or damaged.
    """
    marks = read_object(file)
    if marks is None or not all(isinstance(m, list) and len(m) == 2 for m in marks.values()):
        raise ConfigError(f"--previewed {file}: no preview is recorded there. Preview again.")
    return marks


def as_previewed(
    marks: Marks,
    changes: Sequence[CaptionChange],
    captions: Sequence[CaptionFile],
    done: Collection[str],
) -> tuple[list[CaptionChange], list[SkippedFile]]:
    """Return the changes that were previewed, and the captions that differ from the preview.

    Args:
        marks: The marks of the previewed captions.
        changes: The changes that the edit makes to the present captions.
        captions: All present captions.
        done: Names of images that the edit has changed already.
    """
    now = {caption.name: caption for caption in captions}
    kept, odd = [], dict[str, SkippedFile]()
    for change in changes:
        caption = change.caption
        if marks.get(caption.name, [""])[0] == _mark(caption):
            kept.append(change)
        else:
            odd[caption.name] = SkippedFile(caption.file, _CHANGED)
    for name, (mark, place) in marks.items():
        if name in done or name in odd:
            continue
        if name not in now:
            odd[name] = SkippedFile(Path(str(place)), _GONE)
        elif _mark(now[name]) != mark:
            odd[name] = SkippedFile(now[name].file, _CHANGED)
    return kept, list(odd.values())


def _mark(caption: CaptionFile) -> str:
    return hashlib.sha256(caption.text.encode("utf-8", "surrogatepass")).hexdigest()
