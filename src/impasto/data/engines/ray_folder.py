"""The temporary folder of a Ray started by Impasto: logs, sockets, objects that RAM cannot hold."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from impasto.owners import current_process, parse_process_token

_PREFIX, _OWNER = "impasto-ray-", "owner"
_SHORT = "/tmp"  # paths of sockets may have 107 bytes, of which Ray uses 64
_LONGEST = 20


@contextlib.contextmanager
def ray_folder() -> Iterator[Path]:
    """Provide a folder until the context exits; also remove the folders of killed processes."""
    parent = _parent()
    _remove_leftovers(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        (folder / _OWNER).write_text(current_process().token, encoding="utf-8")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parent() -> Path:
    usual = tempfile.gettempdir()
    too_long = os.name == "posix" and len(os.fsencode(usual)) > _LONGEST
    return Path(_SHORT if too_long and os.access(_SHORT, os.W_OK) else usual)


def _remove_leftovers(parent: Path) -> None:
    """Remove the folders of processes that have ended; a folder without an owner file is kept."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            owner = parse_process_token((folder / _OWNER).read_text(encoding="utf-8"))
            if owner is not None and owner.is_running() is False:
                shutil.rmtree(folder, ignore_errors=True)
