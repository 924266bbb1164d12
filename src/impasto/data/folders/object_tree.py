"""The contents of a folder in an object store, with the interface of a disk's folders.

A store has keys and no folders: one listing returns all keys, and the parts before their slashes
are the folders.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from impasto.data.folders.found_image import FoundImage
from impasto.remote_paths import is_remote
from impasto.storage import objects
from impasto.storage.objects import Stored


class Entry(Protocol):
    """The part of `os.DirEntry` that a listing needs."""

    @property
    def name(self) -> str:
        """The last part of the path."""

    @property
    def path(self) -> str:
        """The path of the entry from the root of its store or disk."""

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether the entry is a folder."""

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether the entry is a regular file."""

    def is_symlink(self) -> bool:
        """Return whether the entry is a symbolic link."""


class ObjectEntry:
    """An object, or a folder of objects.

    Args:
        name: The last part of its path.
        path: The full path.
        is_folder: Whether it is a folder.
    """

    __slots__ = ("_is_folder", "name", "path")

    def __init__(self, name: str, path: str, *, is_folder: bool) -> None:
        self.name, self.path, self._is_folder = name, path, is_folder

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002 - as os.DirEntry
        """Return whether the entry is a folder."""
        return self._is_folder

    def is_file(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002 - as os.DirEntry
        """Return whether the entry is an object."""
        return not self._is_folder

    def is_symlink(self) -> bool:
        """Return False: a store has no links."""
        return False


class FileTree(Protocol):
    """Looks up files below a folder that is not on a disk."""

    def walk(self) -> Iterator[tuple[str, list[str], list[str]]]:
        """Yield folders with the names in them, from the top down, like `os.walk`."""

    def has(self, path: str) -> bool:
        """Return whether a file of this path exists."""

    def stat_image(
        self, path: str, caption_files: tuple[str, str] = ("", ""), crop: str = ""
    ) -> FoundImage:
        """Return an image with the stamps of it and of its caption files."""


class ObjectTree:
    """The contents of a folder in an object store, with all sub-folders.

    Args:
        folder: The folder.

    Raises:
        StorageError: The store cannot be used.
    """

    def __init__(self, folder: str) -> None:
        self._top = top = str(Path(folder))
        found = objects.find(Path(folder))
        self.odd = found.odd
        """Keys that cannot be written as a path."""
        self._stored: dict[str, Stored] = {}
        self._entries: dict[str, list[ObjectEntry]] = {top: []}
        for key, stored in found.objects.items():
            above, _, name = key.rpartition("/")
            path = top + os.sep + key.replace("/", os.sep)
            self._stored[path] = stored
            inside = self._folder(top, above)
            inside.append(ObjectEntry(name, path, is_folder=False))

    def walk(self) -> Iterator[tuple[str, list[str], list[str]]]:
        """Yield folders with the names in them, from the top down, like `os.walk`."""
        waiting = [self._top]
        while waiting:
            folder = waiting.pop()
            inside = self._entries.get(folder, [])
            folders = [entry.name for entry in inside if entry.is_dir()]
            yield folder, folders, [entry.name for entry in inside if entry.is_file()]
            waiting += [folder + os.sep + name for name in reversed(folders)]

    def entries(self, folder: str) -> list[ObjectEntry]:
        """Return the entries of a folder, without those of its sub-folders."""
        return self._entries.get(folder, [])

    def has(self, path: str) -> bool:
        """Return whether an object of this path exists."""
        return path in self._stored

    def stored(self, path: str) -> Stored | None:
        """Return the store's information about the object at a path; None if it does not exist."""
        return self._stored.get(path)

    def stat_image(
        self, path: str, caption_files: tuple[str, str] = ("", ""), crop: str = ""
    ) -> FoundImage:
        """Return an image with the stamps of it and of its caption files, and its crop."""
        stamps: list[int] = []
        for file in (path, *caption_files):
            stored = self._stored[file] if file else Stored(0, 0)
            stamps += [stored.size, stored.identity]
        return FoundImage(path, stamps, caption_files, crop=crop)

    def _folder(self, top: str, above: str) -> list[ObjectEntry]:
        """Return the entries of a folder, which is created with all folders above it."""
        path = top + os.sep + above.replace("/", os.sep) if above else top
        known = self._entries.get(path)
        if known is None:
            known = self._entries[path] = []
            outer, _, name = above.rpartition("/")
            self._folder(top, outer).append(ObjectEntry(name, path, is_folder=True))
        return known


def tree_of(folder: Path) -> ObjectTree | None:
    """Return the tree of a folder in an object store; None for a folder of a disk.

    Raises:
        StorageError: The store cannot be used.
    """
    return ObjectTree(str(folder)) if is_remote(folder) else None
