"""The lines of `metrics.jsonl`: one JSON object per logged step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from impasto import files
from impasto.parsing import parse_json
from impasto.runs.schema import fault_in


def append_metrics(file: Path, record: dict[str, Any]) -> None:
    """Append one line and flush it to the operating system at once.

    Raises:
        StorageError: The disk is full or the file cannot be written.
    """
    files.append_text(file, files.json_text(record) + "\n")


def read_metrics(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines; one that is cut off or damaged is skipped."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                record = parse_json(line)
            except ValueError:
                continue
            if not fault_in(record, file.name) and "step" in record:
                yield record


def truncate_metrics(file: Path, step: int) -> None:
    """Remove the lines after `step`, since a resumed run is about to repeat those steps."""
    kept = [record for record in read_metrics(file) if record["step"] <= step]
    files.write_text(file, "".join(files.json_text(record) + "\n" for record in kept))
