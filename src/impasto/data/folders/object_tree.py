"""What is below a folder of an object store, as a disk's folders are listed.

A store has keys and no folders: all keys come in one listing, and what stands before their slashes
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
    """What a listing needs of an `os.DirEntry`."""

    @property
    def name(self) -> str:
        """The last part of the path."""

    @property
    def path(self) -> str:
        """The path of the entry from the root of its store or disk."""

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether the entry is a folder."""

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether the entry is a regular file."""

    def is_symlink(self) -> bool:
        """Whether the entry is a link."""


class ObjectEntry:
    """An object, or a folder of objects.

    Args:
        name: The last part of its path.
        path: The whole path.
        is_folder: Whether other objects are below it.
    """

    __slots__ = ("_is_folder", "name", "path")

    def __init__(self, name: str, path: str, *, is_folder: bool) -> None:
        self.name, self.path, self._is_folder = name, path, is_folder

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002 - as os.DirEntry
        """Whether the entry is a folder."""
        return self._is_folder

    def is_file(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002 - as os.DirEntry
        """Whether the entry is an object."""
        return not self._is_folder

    def is_symlink(self) -> bool:
        """Whether the entry is a link, which a store has none of."""
        return False


class FileTree(Protocol):
    """What is looked up below a folder that is none of a disk."""

    def walk(self) -> Iterator[tuple[str, list[str], list[str]]]:
        """Folders with the names in them, as `os.walk` gives them from the top down."""

    def has(self, path: str) -> bool:
        """Whether there is a file of that path."""

    def stat_image(
        self, path: str, caption_files: tuple[str, str] = ("", ""), crop: str = ""
    ) -> FoundImage:
        """An image with its stamps, and those of the files with its words."""


class ObjectTree:
    """All that is below a folder of an object store.

    Args:
        folder: The folder.

    Raises:
        StorageError: The store cannot be used.
    """

    def __init__(self, folder: str) -> None:
        self._top = top = str(Path(folder))
        found = objects.find(Path(folder))
        self.odd = found.odd
        """Keys that no path can name."""
        self._stored: dict[str, Stored] = {}
        self._entries: dict[str, list[ObjectEntry]] = {top: []}
        for key, stored in found.objects.items():
            above, _, name = key.rpartition("/")
            path = top + os.sep + key.replace("/", os.sep)
            self._stored[path] = stored
            inside = self._folder(top, above)
            inside.append(ObjectEntry(name, path, is_folder=False))

    def walk(self) -> Iterator[tuple[str, list[str], list[str]]]:
        """Folders with the names in them, as `os.walk` gives them from the top down."""
        waiting = [self._top]
        while waiting:
            folder = waiting.pop()
            inside = self._entries.get(folder, [])
            folders = [entry.name for entry in inside if entry.is_dir()]
            yield folder, folders, [entry.name for entry in inside if entry.is_file()]
            waiting += [folder + os.sep + name for name in reversed(folders)]

    def entries(self, folder: str) -> list[ObjectEntry]:
        """What is in a folder, without what is below that."""
        return self._entries.get(folder, [])

    def has(self, path: str) -> bool:
        """Whether there is an object of that path."""
        return path in self._stored

    def stored(self, path: str) -> Stored | None:
        """What the store says of the object of a path; None where there is none."""
        return self._stored.get(path)

    def stat_image(
        self, path: str, caption_files: tuple[str, str] = ("", ""), crop: str = ""
    ) -> FoundImage:
        """An image with the stamps of it and of the objects with its words, and its crop's."""
        stamps: list[int] = []
        for file in (path, *caption_files):
            stored = self._stored[file] if file else Stored(0, 0)
            stamps += [stored.size, stored.identity]
        return FoundImage(path, stamps, caption_files, crop=crop)

    def _folder(self, top: str, above: str) -> list[ObjectEntry]:
        """The entries of a folder, which is made with all folders above it."""
        path = top + os.sep + above.replace("/", os.sep) if above else top
        known = self._entries.get(path)
        if known is None:
            known = self._entries[path] = []
            outer, _, name = above.rpartition("/")
            self._folder(top, outer).append(ObjectEntry(name, path, is_folder=True))
        return known


def tree_of(folder: Path) -> ObjectTree | None:
    """The tree of a folder in an object store; None for a folder of a disk.

    Raises:
        StorageError: The store cannot be used.
    """
    return ObjectTree(str(folder)) if is_remote(folder) else None
