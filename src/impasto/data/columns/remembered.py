"""Small JSON cache files with a hash of their content; a damaged file is ignored.

The content is derived from the images and only saves time. Without the hash, a flipped bit could
pass as another size or another caption.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from impasto import files
from impasto.parsing import parse_json, read_text


def write_cached(file: Path, version: list[Any], content: Any) -> None:
    """Write JSON with its hash, durably; nothing within `files.dry_run`.

    Args:
        file: The file to write.
        version: The version of the content; a reader with another version ignores the file.
        content: Lists, dictionaries, texts and integers.

    Raises:
        StorageError: It could not be written.
    """
    if not files.writes_caches():
        return
    text = files.json_text(content)
    head = json.dumps({"version": version, "sha256": _hash(text)}, ensure_ascii=False)
    files.write_text(file, f'{head[:-1]}, "content": {text}}}')


def recall(file: Path, version: list[Any]) -> Any:
    """Return a cache file's content; None if it is missing, damaged, or of another version."""
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
