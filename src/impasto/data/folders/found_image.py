"""One image file found by a listing; `found.py` stores many as columns, and needs NumPy."""

from __future__ import annotations

from typing import NamedTuple


class FoundImage(NamedTuple):
    """An image file, with size and modification time of the image, its caption and its tags.

    If the file cannot be examined, it has a fault, which is the reason, instead of stamps.

    A crop file is only named, and read again by each scan: it is tiny, and a change must never be
    missed, as it could be within one tick of the file system's clock.
    """

    path: str
    stamps: list[int]
    caption_files: tuple[str, str] = ("", "")
    fault: str = ""
    crop: str = ""
