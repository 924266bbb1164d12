"""One image file that a listing found; as columns they are in `found.py`, which needs numpy."""

from __future__ import annotations

from typing import NamedTuple


class FoundImage(NamedTuple):
    """An image file, and size and time of change of it, its caption and its tags.

    Instead of them, the reason why the file cannot even be looked at.

    A file with its crop is named, and read anew by each scan: it is tiny, and one that was changed
    must never pass for one that was not, as within the same tick of the file system's clock.
    """

    path: str
    stamps: list[int]
    caption_files: tuple[str, str] = ("", "")
    fault: str = ""
    crop: str = ""
