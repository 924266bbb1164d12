"""Lists the files of a folder of images: images with their caption files, and unused files.

Unused files that look like images or captions are reported with advice. No file is opened, except
to read the first bytes of files without an extension.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from impasto.canonical import sort_key
from impasto.data.folders import formats
from impasto.data.folders.formats import normalized_name
from impasto.data.folders.found_image import FoundImage as FoundImage
from impasto.data.folders.object_tree import Entry, ObjectTree
from impasto.data.folders.skipped_folders import SkippedFolders
from impasto.data.folders.stamping import stat_image as stat_image
from impasto.member_paths import COMPRESSED_TARS, is_container
from impasto.parsing import is_text, printable
from impasto.remote_paths import is_remote

if TYPE_CHECKING:
    from impasto.data.folders.found import FoundTable

CAPTION, TAGS = ".caption", ".txt"
CROP = ".crop.json"
"""Suffix of the file with an image's crop (`cuts.py`), after the image's full name."""
NOT_TEXT = "its name is not UTF-8, as after unpacking a zip of another system; rename it"
_HEAD = 16
_CAPTION_LIKE = frozenset(
    {".tags", ".tag", ".cap", ".captions", ".text", ".prompt", ".prompts", ".desc", ".description"}
)
_FACE = re.compile(r"_\d+_\d+_\d+_\d+$")
_UNREAD = {
    ".json": "JSON beside an image is not read; put its caption into a .txt, or a metadata file",
}
_UNREAD_OBJECTS = {
    ".npz": "latents beside images in an object store are not read; the images are encoded instead",
}
CONTAINER_BESIDE = (
    "may hold images, but is not read beside image files; give it as the image_dir of a separate "
    "subset"
)
_PACKED = "a compressed tar, which is not read; decompress it to .tar, for example with gunzip"
_ODD_KEY = "its key has a part that is empty or consists of dots; copy it to another key"
_REPEATS = re.compile(r"(\d+)_(.+)$")


class Sidecars(NamedTuple):
    """The extensions of caption files; an empty one means that there are none of this kind."""

    caption: str = CAPTION
    tags: str = TAGS


@dataclass(frozen=True, slots=True)
class Unused:
    """An unused file or folder that looks like images or captions.

    Attributes:
        path: The file or folder.
        reason: Why it is not used, with advice; the same text for all of one kind.
    """

    path: Path
    reason: str


def list_folder(
    folder: str, sidecars: Sidecars, *, recursive: bool, masks: Iterable[Path] = ()
) -> tuple[FoundTable, list[Unused]]:
    """Return the images below a folder in the order of their paths, and what is not used.

    Args:
        folder: The folder.
        sidecars: The extensions of caption files.
        recursive: Whether to list sub-folders; links to folders are not followed.
        masks: Folders of masks, which are skipped.

    Raises:
        StorageError: The folder is in an object store that cannot be used.
    """
    from impasto.data.folders.found import FoundBuilder  # imports NumPy, which the studio avoids

    found = FoundBuilder()
    tree = ObjectTree(folder) if is_remote(folder) else None
    unused = [] if tree is None else [Unused(Path(name), _ODD_KEY) for name in tree.odd]
    waiting, left_out = [folder], SkippedFolders(masks)
    while waiting:
        listing = _Listing(waiting.pop(), sidecars, tree)
        found.add(listing.found())
        unused += listing.unused()
        reasons = {inner: left_out.reason(inner) for inner in listing.folders}
        inner = [name for name, reason in reasons.items() if reason is None]
        unused += [Unused(Path(name), reason) for name, reason in reasons.items() if reason]
        if recursive:
            waiting += inner
            unused += repeat_folders(inner)
        else:
            unused += _not_entered(inner, tree)
    unused.sort(key=lambda item: sort_key(str(item.path)))
    return found.table().sorted_by_path(os.sep), unused


class _Listing:
    """The contents of one folder, without those of its sub-folders.

    Args:
        folder: The folder.
        sidecars: The extensions of caption files.
        tree: The contents of an object store, listed before; None lists a folder of a disk.
    """

    def __init__(self, folder: str, sidecars: Sidecars, tree: ObjectTree | None = None) -> None:
        self._sidecars, self._tree = sidecars, tree
        self._unread_beside = _UNREAD if tree is None else _UNREAD | _UNREAD_OBJECTS
        self._plain_endings = all(ending == ending.lower() for ending in sidecars)
        self.folders: list[str] = []
        self._images: dict[str, str] = {}
        self._has_odd_names = False
        self._others: dict[str, Entry] = {}
        self._faults: list[FoundImage] = []
        self._unused: list[Unused] = []
        self._used: set[str] = set()
        try:
            with _entries_of(folder, tree) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        self._sort(entry)
        except OSError as error:
            reason = f"a folder that cannot be read ({error.strerror or error})"
            self._faults.append(FoundImage(printable(folder), [], fault=reason))

    def _sort(self, entry: Entry) -> None:
        name, path = entry.name, entry.path
        dot = name.rfind(".")
        own = name[dot:] if dot > 0 else ""
        ending = own.lower()
        if not (name.isascii() or is_text(name)):
            self._sort_nameless(entry, ending)
        elif entry.is_dir(follow_symlinks=False):
            self.folders.append(path)
        elif ending in formats.EXTENSIONS:
            self._images[name] = path
        elif ending in formats.UNREAD:
            self._faults.append(FoundImage(path, [], fault=formats.UNREAD[ending]))
        elif entry.is_symlink() and entry.is_dir():
            reason = "a link to a folder, which is not followed; give what it leads to as image_dir"
            self._unused.append(Unused(Path(path), reason))
        else:
            self._others[name] = entry
            self._has_odd_names = self._has_odd_names or own != ending or not name.isascii()

    @cached_property
    def _folded(self) -> dict[str, str]:
        """The other files' names by their normalized spelling."""
        return {normalized_name(name): name for name in sorted(self._others, reverse=True)}

    def _sort_nameless(self, entry: Entry, ending: str) -> None:
        """Sort a name that is not UTF-8, which cannot be in settings, indexes or reports."""
        shown = printable(entry.path)
        if entry.is_dir():
            self._faults.append(FoundImage(shown, [], fault=f"a folder: {NOT_TEXT}"))
        elif ending in formats.EXTENSIONS or ending in formats.UNREAD:
            self._faults.append(FoundImage(shown, [], fault=NOT_TEXT))
        elif ending in self._sidecars:
            self._unused.append(Unused(Path(shown), f"a caption: {NOT_TEXT}"))

    def found(self) -> list[FoundImage]:
        """Return the images with the files that belong to them."""
        look = stat_image if self._tree is None else self._tree.stat_image
        images = [
            look(
                path,
                self._text_files_of(name),
                self._path_of(name + CROP),
            )
            for name, path in self._images.items()
        ]
        return self._faults + images

    def _text_files_of(self, image: str) -> tuple[str, str]:
        """Return the caption files of an image; a face crop may use those of its whole image.

        kohya-ss/sd-scripts, `library/train_util.py`, read_caption: `a_1_2_3_4.png` reads `a.txt`
        if it has no file itself.
        """
        stem = image[: image.rfind(".")]
        caption_files = self._beside(stem), self._beside(stem, tags=True)
        face = None if caption_files[0] or caption_files[1] else _FACE.search(stem)
        if face is not None:
            whole = stem[: face.start()]
            caption_files = self._beside(whole), self._beside(whole, tags=True)
        return caption_files

    def _beside(self, stem: str, *, tags: bool = False) -> str:
        """Return the path of a caption file, in any letter case or Unicode form; empty if none."""
        ending = self._sidecars.tags if tags else self._sidecars.caption
        if not ending:
            return ""
        return self._path_of(stem + ending)

    def _path_of(self, name: str) -> str:
        """Return the path of a file beside images, and mark it as used; empty if there is none."""
        other = self._others.get(name)
        if other is None:
            if not self._has_odd_names and name.isascii() and self._is_plain_ending(name):
                return ""
            name = self._folded.get(normalized_name(name), "")
            other = self._others.get(name)
        if other is None:
            return ""
        self._used.add(name)
        return other.path

    def _is_plain_ending(self, name: str) -> bool:
        """Return whether an extension is in lower case; only those from the settings may not be."""
        return self._plain_endings or name.endswith(CROP)

    def unused(self) -> Iterator[Unused]:
        """Yield the unused files that look like images or captions; call `found` before."""
        yield from self._unused
        rest = self._others.keys() - self._used
        images = set(self._images) if rest else set()
        stems = {normalized_name(os.path.splitext(name)[0] + ".x"): name for name in images}  # noqa: PTH122
        for name in rest:
            packed = _PACKED if name.lower().endswith(COMPRESSED_TARS) else ""
            held = CONTAINER_BESIDE if is_container(name) else packed
            reason = held or self._doubt(name, images, stems)
            if reason:
                yield Unused(Path(self._others[name].path), reason)

    def _doubt(self, name: str, images: set[str], stems: Mapping[str, str]) -> str:
        """Return the remark about an unused file; empty if it needs none."""
        stem, ending = os.path.splitext(name)  # noqa: PTH122 - hot path
        lower = ending.lower()
        beside_image = normalized_name(stem + ".x") in stems
        if stem in images and (lower in {CAPTION, TAGS} or lower in self._sidecars):
            return (
                "not read, because its image's extension is in its name; rename a.png.txt to a.txt"
            )
        if lower in {CAPTION, TAGS} or lower in self._sidecars:
            return self._doubt_of_text(lower, beside_image=beside_image)
        if name.lower().endswith(CROP):
            return f"a crop without its image, not used; its name is the image's, then {CROP}"
        if beside_image and lower in _CAPTION_LIKE:
            return f"looks like captions and is not read; set caption_extension to {lower}"
        if beside_image and lower in self._unread_beside:
            return self._unread_beside[lower]
        if lower == ".jsonl" or (lower == ".json" and stem.lower().startswith("meta")):
            return "looks like a metadata file and is not used; give it as metadata_file"
        if formats.is_odd_ending(ending):
            return "looks like an image, not read because of what follows its extension; rename it"
        if not ending and _has_image_head(self._others[name]):
            return "an image, not read because its name has no extension; rename it"
        return ""

    def _doubt_of_text(self, ending: str, *, beside_image: bool) -> str:
        if not beside_image:
            return "a caption without an image of its name, not used; give both the same name"
        if ending in map(str.lower, self._sidecars):
            return "a caption, not used, because the same name in another letter case is used"
        asked = self._sidecars.caption or self._sidecars.tags
        return f"not read, because caption_extension is {asked}"


def repeat_folders(folders: list[str]) -> Iterator[Unused]:
    """Yield folders whose names specify repeats, as in `10_cat`, which only subsets support."""
    for folder in folders:
        match = _REPEATS.match(os.path.basename(folder))  # noqa: PTH119 - hot path
        if match and int(match.group(1)) > 1:
            reason = (
                "its name specifies repeats in kohya's way, but its images are used once. Give it "
                "as a subset with num_repeats, or the folder above it as train_data_dir"
            )
            yield Unused(Path(folder), reason)


def _entries_of(folder: str, tree: ObjectTree | None) -> AbstractContextManager[Iterable[Entry]]:
    """Return a context manager with the entries of a folder, of a disk or of an object store."""
    return os.scandir(folder) if tree is None else nullcontext(tree.entries(folder))


def _not_entered(folders: list[str], tree: ObjectTree | None) -> Iterator[Unused]:
    for folder in folders:
        try:
            with _entries_of(folder, tree) as entries:
                has_images = any(
                    os.path.splitext(entry.name)[1].lower() in formats.EXTENSIONS  # noqa: PTH122
                    or is_container(entry.name)
                    for entry in entries
                )
        except OSError:
            continue
        if has_images:
            reason = (
                "a sub-folder with images, or tars or tables of them, not read because recursive "
                "is off; give it as a subset, or set recursive = true"
            )
            yield Unused(Path(folder), reason)


def _has_image_head(entry: Entry) -> bool:
    try:
        if not entry.is_file():
            return False
        if is_remote(entry.path):  # a remark is not worth a request per file
            return False
        with open(entry.path, "rb") as file:  # noqa: PTH123 - hot path
            return formats.looks_like_image(file.read(_HEAD))
    except OSError:
        return False
