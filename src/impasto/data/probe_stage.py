"""The stage of a scan that opens files: sizes from headers, and the words beside the images.

Files of a disk are opened one by one. Objects of a store come many at a time, and of images only
the beginnings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from impasto.data import images
from impasto.data.found_image import FoundImage
from impasto.data.stages import Failure
from impasto.parsing import decode_caption, split_lines
from impasto.remote_paths import is_remote
from impasto.storage import objects

_LARGEST_CAPTION = 2**20  # bytes; a caption has some hundreds


class Probe:
    """Stage: files -> [width, height, rotated, caption, tags] of each."""

    def __call__(self, batch: Sequence[FoundImage]) -> list[list[Any] | Failure]:
        """Probe a batch of files; what cannot be read is a failure with its reason.

        Raises:
            StorageError: They are in an object store that cannot be used.
        """
        if not any(is_remote(item.path) for item in batch):
            return [_outcome(_probe, item) for item in batch]
        read = _beginnings([item.path for item in batch], objects.HEADER_BYTES)
        words = [file for item in batch for file in item.words if file]
        read |= _beginnings(words, _LARGEST_CAPTION + 1)
        return [_outcome(partial(_probe_object, read), item) for item in batch]


def _beginnings(names: Iterable[str], size: int) -> dict[str, bytes | OSError]:
    """The first bytes of objects by their names: paths of Windows do not tell `a` from `A`."""
    once = list(dict.fromkeys(names))
    return dict(zip(once, objects.read_beginnings(list(map(Path, once)), size), strict=True))


def _outcome(probe: Callable[[FoundImage], list[Any]], item: FoundImage) -> list[Any] | Failure:
    try:
        return probe(item)
    except (images.UnreadableImageError, OSError) as error:
        return images.failure_of(error)


def _probe(item: FoundImage) -> list[Any]:
    size, rotated = images.read_header(Path(item.path))
    caption, tags = (_read_caption(file) if file else "" for file in item.words)
    return [size.width, size.height, int(rotated), caption, tags]


def _probe_object(read: Mapping[str, bytes | OSError], item: FoundImage) -> list[Any]:
    """Probe an object of a store, by the first bytes of it and of its words."""
    size, rotated = images.read_header(Path(item.path), _content(read, item.path))
    caption, tags = (_caption_of(file, _content(read, file)) if file else "" for file in item.words)
    return [size.width, size.height, int(rotated), caption, tags]


def _content(read: Mapping[str, bytes | OSError], name: str) -> bytes:
    """What was read of an object.

    Raises:
        OSError: It could not be read.
    """
    content = read[name]
    if isinstance(content, OSError):
        raise content
    return content


def _read_caption(path: str) -> str:
    """The lines of a file that are not blank.

    Raises:
        UnreadableImageError: As for `_caption_of`.
    """
    with open(path, "rb") as file:  # noqa: PTH123 - hot path
        return _caption_of(path, file.read(_LARGEST_CAPTION + 1))


def _caption_of(path: str, content: bytes) -> str:
    """The lines that are not blank of a file with words.

    Raises:
        UnreadableImageError: It is in another encoding, such as Latin-1, which cannot be told; or
            far too large.
    """
    if len(content) > _LARGEST_CAPTION:
        raise images.UnreadableImageError(
            f"its caption {os.path.basename(path)} has over {_LARGEST_CAPTION >> 20} MiB, which no "  # noqa: PTH119
            f"words have; give it another name if it is something else"
        )
    try:
        text = decode_caption(content)
    except UnicodeDecodeError as error:
        raise images.UnreadableImageError(
            f"its caption {os.path.basename(path)} is not UTF-8 text "  # noqa: PTH119 - hot path
            f"(byte {error.start}); save it as UTF-8"
        ) from error
    return "\n".join(line for line in map(str.strip, split_lines(text)) if line)
