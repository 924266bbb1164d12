"""Removes shards' tensors whose keys were never written, since a process was killed in between.

Nothing would find them again, so they would take disk space permanently. `Shards` removes them when
it is pruned.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from impasto import temporary_names
from impasto.storage import claims, objects

LEFT_AFTER_S = 3600.0
"""Seconds after which no process can still be about to write the keys, even on another machine."""

_TENSORS = re.compile(r"(?P<shard>([0-9a-f]{2}/)?shard-[^/]+)\.safetensors")


def remove_from_disk(folders: Sequence[Path]) -> int:
    """Remove tensors without keys from folders of shards, and return their bytes."""
    removed = 0
    for folder in folders:
        tensors = folder.glob("shard-*.safetensors")
        orphans = [file for file in tensors if not os.path.lexists(file.with_suffix(".json"))]
        now = temporary_names.disk_time(folder) if orphans else 0.0
        for orphan in orphans:
            with contextlib.suppress(OSError):  # Windows cannot remove a mapped file
                status = orphan.stat()
                if now - status.st_mtime > LEFT_AFTER_S:
                    orphan.unlink()
                    removed += status.st_size
    return removed


def remove_from_store(folder: Path) -> int:
    """Remove tensors without keys from a folder in an object store, and return their bytes.

    Raises:
        StorageError: The store cannot be used.
    """
    found, removed = objects.find(folder).objects, 0
    matches = filter(None, map(_TENSORS.fullmatch, found))
    orphans = [match[0] for match in matches if f"{match['shard']}.json" not in found]
    now = claims.clock_of(folder) if orphans else 0.0
    for key in orphans:
        written = claims.modified_at(folder / key)
        if written is not None and now - written > LEFT_AFTER_S:
            objects.remove(folder / key)
            removed += found[key].size
    return removed
