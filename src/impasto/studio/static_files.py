"""Scripts, styles and icons of the pages, at addresses that change with their content.

A browser can cache them for ever, so pages load faster. They are read once, so that the studio
serves the files of the version that was started.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePath

PREFIX = "/static"

_FOLDERS = ("impasto.studio", "impasto.report")
_KINDS = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".LICENSE": "text/plain",
}
"""Media types by extension. They are fixed here since the registry of Windows may map scripts to
plain text, which browsers then refuse."""


@dataclass(frozen=True)
class StaticFile:
    """A file that pages refer to.

    Attributes:
        content: Its bytes.
        kind: Its media type.
        version: A hash of its content.
    """

    content: bytes
    kind: str
    version: str


@functools.cache
def static_files() -> Mapping[str, StaticFile]:
    """Return all files that pages load, by name."""
    found = {}
    for package in _FOLDERS:
        for entry in resources.files(package).joinpath("static").iterdir():
            kind = _KINDS.get(PurePath(entry.name).suffix)
            if kind is not None:
                content = entry.read_bytes()
                version = hashlib.sha256(content).hexdigest()[:12]
                found[entry.name] = StaticFile(content, kind, version)
    return found


def static_address(name: str) -> str:
    """Return the address of a file, for templates.

    Raises:
        KeyError: There is no such file.
    """
    return f"{PREFIX}/{name}?v={static_files()[name].version}"
