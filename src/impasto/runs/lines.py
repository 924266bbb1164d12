"""Files of one JSON object per line that grow while they are read: metrics and events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from impasto.parsing import parse_json


def size_of(file: Path) -> int:
    """Return the size of a file in bytes; 0 if it does not exist."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def read_lines(
    file: Path, offset: int = 0, holding: bytes = b""
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the objects after a position in the file, each with the position after it.

    Damaged lines are skipped, and one that is still being written is left for the next call.

    Args:
        file: The file; if it does not exist, nothing is yielded.
        offset: Bytes to skip: the position at which an earlier call ended.
        holding: Text that a line must contain to be parsed, such as a quoted key.
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
    """Return the last bytes of a file as text; empty if it cannot be read."""
    try:
        with file.open("rb") as content:
            content.seek(max(0, size_of(file) - size))
            return content.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def object_of(line: bytes) -> Mapping[str, Any] | None:
    """Return the JSON object of a line; None if it is not one."""
    try:
        found = parse_json(line.decode("utf-8", errors="replace"))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
