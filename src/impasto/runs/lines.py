"""Files of one JSON object per line that grow while they are read: metrics and events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from impasto.parsing import parse_json


def size_of(file: Path) -> int:
    """The bytes of a file; 0 where there is none."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def read_lines(
    file: Path, offset: int = 0, holding: bytes = b""
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The objects from a position in the file on, each with the position after it.

    Damaged lines are skipped, and one that is still being written is left for the next time.

    Args:
        file: The file; nothing comes of one that is not there.
        offset: Bytes to pass over: where an earlier reading ended.
        holding: What a line must hold to be looked at, such as a name in quotes.
    """
    try:
        content = file.open("rb")
    except OSError:
        return
    with content:
        content.seek(offset)
        for line in content:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            found = object_of(line) if holding in line else None
            if found is not None:
                yield offset, found


def read_end(file: Path, size: int) -> str:
    """The last bytes of a file as text; empty where it cannot be read."""
    try:
        with file.open("rb") as content:
            content.seek(max(0, size_of(file) - size))
            return content.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def object_of(line: bytes) -> Mapping[str, Any] | None:
    """The JSON object of a line; None where it is none."""
    try:
        found = parse_json(line.decode("utf-8", errors="replace"))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
