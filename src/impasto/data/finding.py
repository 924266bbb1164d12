"""Finds the files that the keys of a metadata file stand for, and nothing outside their folder.

A key is a path as another program or another machine wrote it: relative or absolute, of Windows or
not, with its ending or without, in another Unicode form. A file below the folder is taken if its
path is the end of the key's, or the key the end of its path.
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

from impasto.data import formats
from impasto.data.stages import Failure
from impasto.parsing import is_text

_WINDOWS = re.compile(r"([A-Za-z]:)?[\\/]")


class PictureFinder:
    """Finds pictures by the keys of metadata.

    Args:
        root: The folder that keys are relative to, and that none may lead out of.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._resolved = os.path.realpath(root)
        self._inside: dict[str, bool] = {}
        self._below: _FilesBelow | None = None

    def find(self, key: str) -> str | Failure:
        """The path of a picture, or why there is none."""
        if not is_text(key):
            return Failure("its name is not text: half a character stands in it")
        slashed = key.replace("\\", "/")
        for name in dict.fromkeys([key, slashed]):
            path = os.path.join(self._root, name)  # noqa: PTH118 - hot path
            if os.path.isfile(path):  # noqa: PTH113 - hot path
                return self._bounded(path)
        if ".." in slashed.split("/"):
            return self._leads_out()
        if self._below is None:
            self._below = _FilesBelow(self._root)
        from_top = os.path.isabs(key) or _WINDOWS.match(key) is not None  # noqa: PTH117
        parts = [part for part in slashed.split("/") if part not in {"", "."}]
        found = self._below.find(parts, from_top=from_top)
        return found if isinstance(found, Failure) else self._bounded(found)

    def unnamed(self, named: set[str]) -> list[str]:
        """The pictures below the folder that are not among those named."""
        if self._below is None:
            self._below = _FilesBelow(self._root)
        return sorted(set(self._below.paths) - named)

    def _bounded(self, path: str) -> str | Failure:
        """A path below the root by its simplest name, if no link leads out of it."""
        folder = os.path.dirname(path)  # noqa: PTH120 - hot path
        if folder not in self._inside:
            self._inside[folder] = self._is_inside(folder)
        if not self._inside[folder] or (os.path.islink(path) and not self._is_inside(path)):  # noqa: PTH114
            return self._leads_out()
        plain = self._from_root(os.path.normpath(path))
        if ".." in path and not (os.path.exists(plain) and os.path.samefile(path, plain)):  # noqa: PTH110, PTH121
            return self._leads_out()
        return plain

    def _is_inside(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real == self._resolved or real.startswith(self._resolved.rstrip(os.sep) + os.sep)

    def _from_root(self, path: str) -> str:
        """A path that begins as the root does: names below it are the same on every machine."""
        begin = os.path.abspath(self._root)  # noqa: PTH100 - hot path
        if os.path.isabs(self._root) or not path.startswith(begin + os.sep):  # noqa: PTH117
            return path
        return os.path.normpath(os.path.join(self._root, path[len(begin) + 1 :]))  # noqa: PTH118

    def _leads_out(self) -> Failure:
        return Failure(
            f"its key leads out of {self._root}, directly or by a link; give image_dir, the folder "
            f"that holds all the images"
        )


class _FilesBelow:
    """The images below a folder, by their names and by those without ending."""

    def __init__(self, root: str) -> None:
        self._root = root
        self.paths: list[str] = []
        self._names: dict[str, list[tuple[list[str], str]]] = {}
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            below = os.path.relpath(folder, root)
            above = [_plain(part) for part in Path(below).parts]
            for name in sorted(names):
                stem, ending = os.path.splitext(name)  # noqa: PTH122 - hot path
                if ending.lower() in formats.EXTENSIONS and not name.startswith("."):
                    path = os.path.normpath(os.path.join(folder, name))  # noqa: PTH118 - hot path
                    self.paths.append(path)
                    for spelling in (_plain(stem) + ending.lower(), _plain(stem)):
                        self._names.setdefault(spelling, []).append(([*above, spelling], path))

    def find(self, parts: list[str], *, from_top: bool) -> str | Failure:
        """The one file whose path ends a key of another machine, or ends in a relative key."""
        for last in dict.fromkeys(_spellings(parts[-1]) if parts else ()):
            key = [*map(_plain, parts[:-1]), last]
            fitting = [
                (own, path)
                for own, path in self._names.get(last, [])
                if own == key[-len(own) :] or (not from_top and own[-len(key) :] == key)
            ]
            if fitting:
                most = max(own == key or (from_top and len(own)) for own, _ in fitting)
                return _only(
                    [p for own, p in fitting if (own == key or (from_top and len(own))) == most]
                )
        return Failure(f"metadata names it, but it is not in {self._root}")


def _only(fitting: list[str]) -> str | Failure:
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(fitting[:3])
    return Failure(f"its key fits several files ({names}); give the ending in the metadata")


def _spellings(name: str) -> tuple[str, str]:
    """A last part as a whole name, ending in lower case, and as one without ending."""
    stem, ending = os.path.splitext(name)  # noqa: PTH122 - hot path
    return _plain(stem) + ending.lower(), _plain(name)


def _plain(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)
