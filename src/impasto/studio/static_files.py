"""Scripts, styles and icons of the pages, at addresses that change with their content.

A browser keeps them and asks for none of them twice, so a page is there sooner. They are read once:
the studio serves those of the version that it was started as.
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
"""Stated here: on Windows the registry may call a script plain text, which browsers then refuse."""


@dataclass(frozen=True)
class StaticFile:
    """A file that pages refer to.

    Attributes:
        content: Its bytes.
        kind: Its media type.
        version: What changes with its content.
    """

    content: bytes
    kind: str
    version: str


@functools.cache
def static_files() -> Mapping[str, StaticFile]:
    """Find all files that pages load, by name."""
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
    """The address of a file, for templates.

    Raises:
        KeyError: There is no such file.
    """
    return f"{PREFIX}/{name}?v={static_files()[name].version}"
