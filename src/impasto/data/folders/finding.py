"""Finds the files that the keys of a metadata file stand for, and nothing outside their folder.

A key is a path as another program or another machine wrote it: relative or absolute, of Windows or
not, with its ending or without, in another Unicode form. A file below the folder is taken if its
path is the end of the key's, or the key the end of its path. All keys of a file are looked up
together, so that the key of an image that is gone does not take another image of the same name.
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
from impasto.data.folders.left_out import LeftOut
from impasto.data.folders.listing import CROP, stat_image
from impasto.data.folders.object_tree import FileTree, tree_of
from impasto.parsing import is_text
from impasto.remote_paths import is_remote, shown

_WINDOWS = re.compile(r"([A-Za-z]:)?[\\/]")
_Names = tuple[str, ...]


class ImageFinder:
    """Finds images by the keys of metadata.

    Args:
        root: The folder that keys are relative to, and that none may lead out of.
        tree: What is in it, where that is no folder of a disk; None looks.
        masks: Folders of masks, in which only what a key names as a whole path is found.
    """

    def __init__(
        self, root: Path, tree: FileTree | None = None, masks: Iterable[Path] = ()
    ) -> None:
        self._root = str(root)
        self._shown = shown(self._root)
        self._tree: FileTree | None = tree_of(root) if tree is None else tree
        self._resolved = os.path.realpath(root)
        self._inside: dict[str, bool] = {}
        self._left_out = LeftOut(masks)
        self._files: _FilesBelow | None = None
        self.remarks: list[str] = []
        """How `find_all` found relative keys that are no paths below the root, in words."""

    def find(self, key: str) -> str | Failure:
        """The path of an image, or why there is none, where this is the only key."""
        return self.find_all([key])[0]

    def find_all(self, keys: Sequence[str]) -> list[str | Failure]:
        """The path of an image, or why there is none, for each key of a metadata file.

        Paths below the root come first, of all keys. What is left is found by the ends of paths:
        absolute keys where what stands before agrees, and relative ones where it is the same for
        all relative keys, and none of them is a path below the root.
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
        """What a key names as a path from the root or of this machine; None if nothing."""
        if not is_text(key):
            return Failure("its name is not text: half a character stands in it")
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
        """An image that was found, with its stamps, and its crop's file."""
        crop = path + CROP
        if self._tree is not None:
            return self._tree.stat_image(path, crop=crop if self._tree.has(crop) else "")
        return stat_image(path, crop=crop if os.path.lexists(crop) else "")

    def _by_absolute(self, keys: Mapping[int, _Names]) -> dict[int, str | Failure]:
        """Keys of other machines, each by the longest end that is a path below the root."""
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
        """Relative keys that begin above the root, or are the ends of paths below it."""
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
                f"are found without it. If that is wrong, give the right image_dir"
            )
        if cut < len(good):
            self.remarks.append(
                f"its names are not paths below {self._shown}; images are found by the ends of "
                f"their paths. If that is wrong, give the right image_dir"
            )

    def _only(self, paths: Sequence[str], *, has_ending: bool) -> str | Failure:
        if len(paths) == 1:
            return self._bounded(paths[0])
        names = ", ".join(shown(path) for path in paths[:3])
        needed = f"path below {self._shown}" if has_ending else "ending"
        return Failure(f"its key fits several files ({names}); give the {needed} in the metadata")

    def _not_this(self, path: str) -> Failure:
        return Failure(
            f"metadata names it, but it is not in {self._shown}; {shown(path)} has the same name, "
            f"and by the other names in the file it is another image"
        )

    def find_unnamed(self, named: set[str]) -> list[str]:
        """The images below the folder that are not among those named."""
        return sorted(set(self._below.paths) - named)

    def _bounded(self, path: str) -> str | Failure:
        """A path below the root by its simplest name, if no link leads out of it."""
        if self._tree is not None:  # which holds nothing else, and no links
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
        """A path that begins as the root does: names below it are the same on every machine."""
        for begin in (os.path.abspath(self._root), self._resolved):  # noqa: PTH100 - hot path
            if path.startswith(begin.rstrip(os.sep) + os.sep):
                below = path[len(begin.rstrip(os.sep)) + 1 :]
                return os.path.normpath(os.path.join(self._root, below))  # noqa: PTH118
        return path

    def _leads_out(self) -> Failure:
        return Failure(
            f"its key leads out of {self._shown}, directly or by a link; give image_dir, the "
            f"folder that holds all the images"
        )


class _FilesBelow:
    """The images below a folder by their paths, each with its ending and without."""

    def __init__(self, root: str, tree: FileTree | None, left_out: LeftOut) -> None:
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
        """The files whose path below the folder a key is."""
        return next((self._whole[k] for k in _spellings(key) if k in self._whole), [])

    def end_of(self, key: _Names) -> tuple[_Names, list[str]] | None:
        """What stands in a key before the longest end that is a file's path, and those files."""
        for spelling in _spellings(key):
            names = spelling.split("/")
            for n in range(len(names)):
                paths = self._whole.get("/".join(names[n:]))
                if paths:
                    return key[:n], paths
        return None

    def longer(self, key: _Names) -> list[str]:
        """The files whose path ends in a key, with folders before it."""
        if self._ends is None:
            self._ends = {}
            for whole, paths in self._whole.items():
                names = whole.split("/")
                for n in range(1, len(names)):
                    self._ends.setdefault("/".join(names[n:]), []).extend(paths)
        return next((self._ends[k] for k in _spellings(key) if k in self._ends), [])


def _agreed(starts: Counter[_Names]) -> set[_Names]:
    """What may stand before paths below the root: of one within another, that of more keys.

    With `C:/set/b.png` found as `b.png`, the folder is `C:/set`, so `C:/set/a/b.png`, whose image
    is gone, is not `b.png` too.
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
    """A key with the ending of its last part in lower case, and as one without an ending."""
    if not key:
        return ()
    stem, ending = os.path.splitext(key[-1])  # noqa: PTH122 - hot path
    return dict.fromkeys("/".join([*key[:-1], last]) for last in (stem + ending.lower(), key[-1]))


def _plain(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)
