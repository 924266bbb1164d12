"""Finds the image files that the keys of a metadata file refer to, and none outside their folder.

A key is a path from another program or machine: relative or absolute, of Windows or not, with or
without its extension, in any Unicode form. A file below the folder matches if its path is the end
of the key's, or the key the end of its path. All keys of a file are looked up together, so that
the key of a missing image does not match another image of the same name.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from impasto.data.engines.stages import Failure
from impasto.data.folders import formats
from impasto.data.folders.found_image import FoundImage
from impasto.data.folders.listing import CROP, stat_image
from impasto.data.folders.object_tree import FileTree, tree_of
from impasto.data.folders.skipped_folders import SkippedFolders
from impasto.parsing import is_text
from impasto.remote_paths import is_remote, shown

_WINDOWS = re.compile(r"([A-Za-z]:)?[\\/]")
_Names = tuple[str, ...]


class ImageFinder:
    """Finds images by the keys of a metadata file.

    Args:
        root: The folder that keys are relative to; no key may lead out of it.
        tree: The contents of the folder, if it is not on a disk; None determines it from `root`.
        masks: Folders of masks; their images are found only by keys that are complete paths.
    """

    def __init__(
        self, root: Path, tree: FileTree | None = None, masks: Iterable[Path] = ()
    ) -> None:
        self._root = str(root)
        self._shown = shown(self._root)
        self._tree: FileTree | None = tree_of(root) if tree is None else tree
        self._resolved = os.path.realpath(root)
        self._inside: dict[str, bool] = {}
        self._left_out = SkippedFolders(masks)
        self._files: _FilesBelow | None = None
        self.remarks: list[str] = []
        """How `find_all` found relative keys that are not paths below the root, for the user."""

    def find(self, key: str) -> str | Failure:
        """Return the path of an image, or the reason if it is not found, for a single key."""
        return self.find_all([key])[0]

    def find_all(self, keys: Sequence[str]) -> list[str | Failure]:
        """Return for each key of a metadata file the path of an image, or why it is not found.

        Keys that are paths below the root are resolved first. The others are matched by the ends of
        paths: absolute keys if the folders before the match agree with those of other keys;
        relative keys if these folders are the same for all of them, and no relative key is a path
        below the root.
        """
        self.remarks = []
        found = {n: outcome for n, key in enumerate(keys) if (outcome := self._exactly(key))}
        relative = [n for n, key in enumerate(keys) if not _is_from_top(key)]
        exact = next((keys[n] for n in relative if isinstance(found.get(n), str)), None)
        absolute = [n for n in range(len(keys)) if _is_from_top(keys[n]) and n not in found]
        found |= self._by_absolute({n: _names(keys[n]) for n in absolute})
        if exact is None:
            found |= self._by_relative({n: _names(keys[n]) for n in relative}, found)
        missing = Failure(f"metadata names it, but it is not in {self._shown}")
        return [found.get(n, missing) for n in range(len(keys))]

    @property
    def _below(self) -> _FilesBelow:
        if self._files is None:
            self._files = _FilesBelow(self._root, self._tree, self._left_out)
        return self._files

    def _exactly(self, key: str) -> str | Failure | None:
        """Return the image whose path (absolute, or below the root) is the key; None if none is."""
        if not is_text(key):
            return Failure(
                "its name is not valid text: it has half a character (half a surrogate pair)"
            )
        slashed = key.replace("\\", "/")
        if is_remote(key):
            key = slashed = str(Path(key))
        for name in dict.fromkeys([key, slashed]):
            path = name if is_remote(name) else os.path.join(self._root, name)  # noqa: PTH118
            if self._is_file(path):
                return self._bounded(path)
        if ".." in slashed.split("/"):
            return self._leads_out()
        paths = [] if _is_from_top(key) else self._below.whole(_names(key))
        return self._only(paths, has_ending=_has_ending(_names(key))) if paths else None

    def _is_file(self, path: str) -> bool:
        if self._tree is None:
            return os.path.isfile(path)  # noqa: PTH113 - hot path
        return self._tree.has(os.path.normpath(path))

    def stat_image(self, path: str) -> FoundImage:
        """Return an image that was found, with its stamps and its crop file."""
        crop = path + CROP
        if self._tree is not None:
            return self._tree.stat_image(path, crop=crop if self._tree.has(crop) else "")
        return stat_image(path, crop=crop if os.path.lexists(crop) else "")

    def _by_absolute(self, keys: Mapping[int, _Names]) -> dict[int, str | Failure]:
        """Match keys from other machines by their longest end that is a path below the root."""
        fitting = {n: fit for n, names in keys.items() if (fit := self._below.end_of(names))}
        agreed = _agreed(Counter(start for start, _ in fitting.values()))
        return {
            n: self._only(paths, has_ending=_has_ending(keys[n]))
            if start in agreed
            else self._not_this(paths[0])
            for n, (start, paths) in fitting.items()
        }

    def _by_relative(
        self, keys: Mapping[int, _Names], found: Mapping[int, str | Failure]
    ) -> dict[int, str | Failure]:
        """Match relative keys that begin above the root, or are the ends of paths below it."""
        left = {n: names for n, names in keys.items() if n not in found}
        taken = {path for path in found.values() if isinstance(path, str)}
        fitting = {n: fit for n, names in left.items() if (fit := self._below.end_of(names))}
        starts = Counter(start for start, _ in fitting.values())
        low, high = min(left.values(), default=()), max(left.values(), default=())
        common = [s for s in starts if s == low[: len(s)] == high[: len(s)]]
        start = max(common, key=lambda s: (starts[s], -len(s)), default=None)
        outcomes: dict[int, str | Failure] = {}
        for n, names in left.items():
            own, cut = fitting.get(n, (None, []))
            longer = [path for path in self._below.longer(names) if path not in taken]
            paths = [*(cut if own == start else []), *longer]
            if paths:
                outcomes[n] = self._only(paths, has_ending=_has_ending(names))
            elif cut:
                outcomes[n] = self._not_this(cut[0])
        self._remark(start, outcomes, fitting)
        return outcomes

    def _remark(
        self,
        start: _Names | None,
        outcomes: Mapping[int, str | Failure],
        fitting: Mapping[int, tuple[_Names, list[str]]],
    ) -> None:
        good = [n for n, outcome in outcomes.items() if isinstance(outcome, str)]
        cut = sum(n in fitting and fitting[n][0] == start for n in good)
        if cut and start is not None:
            self.remarks.append(
                f"its names begin with {'/'.join(start)}/, which is not in {self._shown}; images "
                f"were found without it. If that is wrong, correct image_dir"
            )
        if cut < len(good):
            self.remarks.append(
                f"its names are not paths below {self._shown}; images were found by the ends of "
                f"their paths. If that is wrong, correct image_dir"
            )

    def _only(self, paths: Sequence[str], *, has_ending: bool) -> str | Failure:
        if len(paths) == 1:
            return self._bounded(paths[0])
        names = ", ".join(shown(path) for path in paths[:3])
        needed = f"path below {self._shown}" if has_ending else "file extension"
        return Failure(
            f"its key matches several files ({names}); give the {needed} in the metadata"
        )

    def _not_this(self, path: str) -> Failure:
        return Failure(
            f"metadata names it, but it is not in {self._shown}; {shown(path)} has the same name, "
            f"but judging by the other names in the file it is a different image"
        )

    def find_unnamed(self, named: set[str]) -> list[str]:
        """Return the images below the folder that are not in `named`."""
        return sorted(set(self._below.paths) - named)

    def _bounded(self, path: str) -> str | Failure:
        """Return a path below the root, normalized; a Failure if a link leads out of it."""
        if self._tree is not None:  # which has no links, and nothing outside the root
            return os.path.normpath(path)
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
        """Return a path that begins with the root as given: names below it are then portable."""
        for begin in (os.path.abspath(self._root), self._resolved):  # noqa: PTH100 - hot path
            if path.startswith(begin.rstrip(os.sep) + os.sep):
                below = path[len(begin.rstrip(os.sep)) + 1 :]
                return os.path.normpath(os.path.join(self._root, below))  # noqa: PTH118
        return path

    def _leads_out(self) -> Failure:
        return Failure(
            f"its key leads out of {self._shown}, directly or by a link; set image_dir to the "
            f"folder that holds all the images"
        )


class _FilesBelow:
    """The images below a folder by path, each with and without its file extension."""

    def __init__(self, root: str, tree: FileTree | None, left_out: SkippedFolders) -> None:
        self._root = root
        self.paths: list[str] = []
        self._whole: dict[str, list[str]] = {}
        self._ends: dict[str, list[str]] | None = None
        for folder, folders, names in os.walk(root) if tree is None else tree.walk():
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith(".")
                and (tree is not None or left_out.reason(os.path.join(folder, name)) is None)  # noqa: PTH118
            )
            below = os.path.relpath(folder, root)
            above = "".join(f"{_plain(level)}/" for level in Path(below).parts)
            for name in sorted(names):
                stem, ending = os.path.splitext(name)  # noqa: PTH122 - hot path
                if ending.lower() in formats.EXTENSIONS and not name.startswith("."):
                    path = os.path.normpath(os.path.join(folder, name))  # noqa: PTH118 - hot path
                    self.paths.append(path)
                    for spelling in (_plain(stem) + ending.lower(), _plain(stem)):
                        self._whole.setdefault(above + spelling, []).append(path)

    def whole(self, key: _Names) -> list[str]:
        """Return the files whose path relative to the folder is the key."""
        return next((self._whole[k] for k in _spellings(key) if k in self._whole), [])

    def end_of(self, key: _Names) -> tuple[_Names, list[str]] | None:
        """Return what precedes the longest end of a key that is a file's path, and those files.

        None if no end of the key is the path of a file.
        """
        for spelling in _spellings(key):
            names = spelling.split("/")
            for n in range(len(names)):
                paths = self._whole.get("/".join(names[n:]))
                if paths:
                    return key[:n], paths
        return None

    def longer(self, key: _Names) -> list[str]:
        """Return the files whose path ends with the key, below at least one further folder."""
        if self._ends is None:
            self._ends = {}
            for whole, paths in self._whole.items():
                names = whole.split("/")
                for n in range(1, len(names)):
                    self._ends.setdefault("/".join(names[n:]), []).extend(paths)
        return next((self._ends[k] for k in _spellings(key) if k in self._ends), [])


def _agreed(starts: Counter[_Names]) -> set[_Names]:
    """Return the prefixes to accept; of two nested ones, that of more keys.

    With `C:/set/b.png` found as `b.png`, the folder is `C:/set`, so `C:/set/a/b.png`, whose image
    is missing, is not `b.png` too.
    """
    above = {start: [start[:n] for n in range(len(start))] for start in starts}
    most_below: Counter[_Names] = Counter()
    for start, others in above.items():
        for other in others:
            most_below[other] = max(most_below[other], starts[start])
    return {
        start
        for start, count in starts.items()
        if most_below[start] <= count and all(starts[other] < count for other in above[start])
    }


def _is_from_top(key: str) -> bool:
    return os.path.isabs(key) or is_remote(key) or _WINDOWS.match(key) is not None  # noqa: PTH117


def _names(key: str) -> _Names:
    return tuple(
        _plain(name) for name in key.replace("\\", "/").split("/") if name not in {"", "."}
    )


def _has_ending(key: _Names) -> bool:
    return bool(key) and os.path.splitext(key[-1])[1].lower() in formats.EXTENSIONS  # noqa: PTH122


def _spellings(key: _Names) -> Iterable[str]:
    """Return a key with its extension in lower case, and the unchanged key."""
    if not key:
        return ()
    stem, ending = os.path.splitext(key[-1])  # noqa: PTH122 - hot path
    return dict.fromkeys("/".join([*key[:-1], last]) for last in (stem + ending.lower(), key[-1]))


def _plain(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)
