"""The stage of a scan that opens files: reads sizes from headers, and captions beside the images.

Files on a disk are opened one by one. Objects of a store are read many at a time; of an image, only
the first bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from impasto.data.engines.stages import Failure
from impasto.data.folders.found_image import FoundImage
from impasto.data.pixels import images
from impasto.data.pixels.member_files import read_beginnings, read_caption, read_many_captions
from impasto.member_paths import TarMember, is_member, member_of
from impasto.parsing import decode_caption, split_lines
from impasto.remote_paths import is_remote
from impasto.storage import objects

_LARGEST_CAPTION = 2**20  # bytes; a caption has a few hundred


class Probe:
    """Stage that turns files into [width, height, rotated, caption, tags]."""

    def __call__(self, batch: Sequence[FoundImage]) -> list[list[Any] | Failure]:
        """Probe a batch of files; a file that cannot be read is a failure with its reason.

        Raises:
            StorageError: The files are in an object store that cannot be used.
        """
        if not any(is_remote(item.path) for item in batch):
            return [_outcome(_probe, item) for item in batch]
        read = _beginnings([item.path for item in batch], objects.HEADER_BYTES)
        caption_files = [file for item in batch for file in item.caption_files if file]
        read |= _beginnings(
            [file for file in caption_files if not is_member(file)], _LARGEST_CAPTION + 1
        )
        read |= read_many_captions(
            [file for file in caption_files if is_member(file)], _LARGEST_CAPTION + 1
        )
        return [_outcome(partial(_probe_object, read), item) for item in batch]


def _beginnings(names: Iterable[str], size: int) -> dict[str, bytes | Exception]:
    """Read the first bytes of objects and of files in tars, by name, or the error of each.

    Names are text, since Windows paths do not distinguish `a` from `A`. An image in a table is left
    out: it is read with its row.
    """
    members = {name: member_of(name) for name in names}
    once = [name for name, member in members.items() if member is None]
    read = objects.read_beginnings(list(map(Path, once)), size)
    found: dict[str, bytes | Exception] = dict(zip(once, read, strict=True))
    in_tars = {name: m for name, m in members.items() if isinstance(m, TarMember)}
    beginnings = read_beginnings(list(in_tars.values()), size)
    return found | {name: beginnings[member] for name, member in in_tars.items()}


def _outcome(probe: Callable[[FoundImage], list[Any]], item: FoundImage) -> list[Any] | Failure:
    try:
        return probe(item)
    except (images.UnreadableImageError, OSError) as error:
        return images.failure_of(error)


def _probe(item: FoundImage) -> list[Any]:
    size, rotated = images.read_header(Path(item.path))
    caption, tags = (_read_caption(file) if file else "" for file in item.caption_files)
    return [size.width, size.height, int(rotated), caption, tags]


def _probe_object(read: Mapping[str, bytes | Exception], item: FoundImage) -> list[Any]:
    """Probe an object of a store, from the first bytes of the image and its caption files."""
    beginning = _content(read, item.path) if item.path in read else None
    size, rotated = images.read_header(Path(item.path), beginning)
    caption, tags = (
        _caption_of(file, _content(read, file)) if file else "" for file in item.caption_files
    )
    return [size.width, size.height, int(rotated), caption, tags]


def _content(read: Mapping[str, bytes | Exception], name: str) -> bytes:
    """Return the bytes that were read of an object.

    Raises:
        OSError: The object could not be read.
        UnreadableImageError: A caption is missing from its JSON, or malformed.
    """
    content = read[name]
    if isinstance(content, Exception):
        raise content
    return content


def _read_caption(path: str) -> str:
    """Return the lines of a caption file that are not blank.

    Raises:
        UnreadableImageError: As for `_caption_of`.
    """
    if is_member(path):
        return _caption_of(path, read_caption(path, _LARGEST_CAPTION + 1))
    with open(path, "rb") as file:  # noqa: PTH123 - hot path
        return _caption_of(path, file.read(_LARGEST_CAPTION + 1))


def _caption_of(path: str, content: bytes) -> str:
    """Return the lines of a caption file's content that are not blank.

    Raises:
        UnreadableImageError: The caption is in another encoding, such as Latin-1, which cannot be
            recognised; or far too large.
    """
    if len(content) > _LARGEST_CAPTION:
        raise images.UnreadableImageError(
            f"its caption {os.path.basename(path)} has over {_LARGEST_CAPTION >> 20} MiB, too "  # noqa: PTH119
            f"large for a caption; rename it if it is not one"
        )
    try:
        text = decode_caption(content)
    except UnicodeDecodeError as error:
        raise images.UnreadableImageError(
            f"its caption {os.path.basename(path)} is not UTF-8 text "  # noqa: PTH119 - hot path
            f"(byte {error.start}); save it as UTF-8"
        ) from error
    return "\n".join(line for line in map(str.strip, split_lines(text)) if line)
