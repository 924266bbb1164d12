"""Small JSON files of what was found out before, with a hash: a damaged one is as good as none.

All of it is derived from the images and only saves time, so nothing in it is believed that was
not written so: a flipped bit would else be another size or another caption.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from impasto import files
from impasto.parsing import parse_json, read_text


def write_cached(file: Path, version: list[Any], content: Any) -> None:
    """Write JSON with a hash of it, durably; nothing within `files.dry_run`.

    Args:
        file: Where.
        version: What it belongs to: of another version, it is not read again.
        content: Lists, dictionaries, text, whole numbers.

    Raises:
        StorageError: It could not be written.
    """
    if not files.writes_caches():
        return
    text = files.json_text(content)
    head = json.dumps({"version": version, "sha256": _hash(text)}, ensure_ascii=False)
    files.write_text(file, f'{head[:-1]}, "content": {text}}}')


def recall(file: Path, version: list[Any]) -> Any:
    """What was written, or None: it is not there, damaged, or of another version."""
    try:
        stored = parse_json(read_text(file))
        if stored["version"] != version:
            return None
        content = stored["content"]
        whole = stored["sha256"] == _hash(files.json_text(content))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return content if whole else None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
