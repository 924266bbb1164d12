"""What captions were when an edit of them was previewed, so that no others are changed by it.

Between a preview and its being applied somebody may write captions, or add images that a filter
holds for. Such captions are left as they are, and named.
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

_CHANGED = "it was changed after the preview, and is left as it is"
_GONE = "its image is not there any more, or can no longer be edited"


Marks = Mapping[str, Sequence[str]]
"""Name of an image -> the hash of its caption as it was previewed, and the caption's file."""


def marks_of(changes: Iterable[CaptionChange]) -> Marks:
    """What tells later whether the captions that an edit would change are as they are now."""
    return {c.caption.name: [_mark(c.caption), str(c.caption.file)] for c in changes}


def note_preview(file: Path, changes: Iterable[CaptionChange]) -> None:
    """Write the captions that an edit would change to a file, by their hashes.

    Raises:
        StorageError: It cannot be written.
    """
    files.write_json(file, marks_of(changes), durable=False)


def read_preview(file: Path) -> Marks:
    """What `note_preview` has written.

    Raises:
        ConfigError: The file is missing or damaged.
    """
    marks = read_object(file)
    if marks is None or not all(isinstance(m, list) and len(m) == 2 for m in marks.values()):
        raise ConfigError(f"--previewed {file}: no preview has been noted there. Preview again.")
    return marks


def as_previewed(
    marks: Marks,
    changes: Sequence[CaptionChange],
    captions: Sequence[CaptionFile],
    done: Collection[str],
) -> tuple[list[CaptionChange], list[SkippedFile]]:
    """The changes that were previewed, and the captions that are not as they were then.

    Args:
        marks: Of the captions that were previewed.
        changes: What the edit does to the captions that are there now.
        captions: All captions that are there now.
        done: Names of images that the edit has had already.
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
