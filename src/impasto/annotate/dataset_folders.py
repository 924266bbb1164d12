"""Where the words of a dataset are, so that notes of changes hold wherever its folder is moved.

A file is noted by the folder of the dataset that it is in and the path below: `DatasetFile`. A
dataset may come from a stranger, notes included, so that none leads out of those folders, neither
by its text nor by a link on the way, and never to what cannot be words.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from impasto import files, temporary_names
from impasto.data.pixels.images import EXTENSIONS
from impasto.errors import RunError
from impasto.write_targets import why_not_written

NAMED = -1
METADATA = frozenset({".json", ".jsonl"})


@dataclass(frozen=True)
class DatasetFile:
    """A file of captions or tags beside an image.

    Attributes:
        root: The number of the dataset's folder that it is in; `NAMED` is the metadata file that
            the user named, wherever it is.
        file: Its path below, with slashes; of a named file its name.
    """

    root: int
    file: str


@dataclass(frozen=True)
class DatasetFolders:
    """Where words of a dataset may be, and where the notes of changes are kept.

    Attributes:
        roots: The folders of the dataset, in the order of its settings.
        journals: Folder of the notes.
        named: A metadata file that the user named, which may be anywhere.
    """

    roots: tuple[Path, ...]
    journals: Path
    named: Path | None = None

    @classmethod
    def around(cls, journals: Path) -> DatasetFolders:
        """The dataset of one folder in which notes are kept, in `.impasto` or directly."""
        above = journals.parent
        return cls((above.parent if above.name == files.DERIVED_DIR else above,), journals)

    def file_below(self, path: Path) -> DatasetFile | None:
        """Where a file really is, after links; None outside of the dataset."""
        real = files.real_path(path)
        for number, root in enumerate(self.roots):
            base = files.real_path(root)
            if real.is_relative_to(base):
                below = real.relative_to(base).as_posix()
                if not why_not_a_caption_file(below):
                    return DatasetFile(number, below)
        if self.named is not None and real == files.real_path(self.named):
            return DatasetFile(NAMED, self.named.name)
        return None

    def file_of(self, spot: DatasetFile) -> Path:
        """The file that a spot stands for, without any link on the way.

        Raises:
            RunError: The spot leads out of the dataset, or the file has to be named.
        """
        if spot.root == NAMED:
            if self.named is None:
                raise RunError(
                    f"The last change was to the metadata file {spot.file}, which is not in the "
                    f"dataset. Name it: add --metadata and its path. Nothing was touched."
                )
            if self.named.name != spot.file:
                raise RunError(
                    f"The last change was to a metadata file called {spot.file}, and --metadata "
                    f"names {self.named}. Nothing was touched."
                )
            return files.real_path(self.named)
        reason = why_not_a_caption_file(spot.file)
        if not 0 <= spot.root < len(self.roots):
            reason = f"it is in folder {spot.root + 1} of the dataset, which has fewer"
        if reason:
            raise RunError(
                f"The notes in {self.journals} name {spot.file[:200]!r}, which undo does not "
                f"touch: {reason}. Nothing was touched. Notes that came with somebody else's data "
                f"set can be deleted."
            )
        return files.real_path(self.roots[spot.root]) / spot.file

    def require_own_journals(self) -> None:
        """Make sure that notes go where they seem to go: a stranger's dataset may hold links.

        Raises:
            RunError: The folder of notes is in the dataset, and a link leads it out.
        """
        plain = os.path.abspath(self.journals)  # noqa: PTH100 - links are not followed
        seems = [r for r in self.roots if Path(plain).is_relative_to(os.path.abspath(r))]  # noqa: PTH100
        if seems and not any(files.is_inside(self.journals, root) for root in self.roots):
            raise RunError(
                f"{self.journals} leads out of the dataset by a link, so no notes for undo are "
                f"kept there, and no words are written. Remove the link, or give the folder it "
                f"leads to as cache_dir."
            )

    def needs_name(self, file: Path) -> bool:
        """Whether undo has to be told where a metadata file is: it is outside of the dataset."""
        spot = self.file_below(file)
        return spot is not None and spot.root == NAMED

    def name_of(self, image: Path) -> str:
        """What an image is called in notes, wherever the dataset is moved."""
        for number, root in enumerate(self.roots):
            if image.is_relative_to(root):
                return f"{number}:{image.relative_to(root).as_posix()}"
        return image.as_posix()

    def why_not_written(self, path: Path) -> str:
        """Why words are not written to a file; empty where they may be."""
        if self.named is not None and path == self.named:
            return ""
        reason = why_not_written(path, self.roots)
        if reason or self.file_below(path) is not None:
            return reason
        return f"{path.name} is hidden or an image; no captions are written there"


def why_not_a_caption_file(below: str) -> str:
    """Why a path below a folder cannot be a file of words; empty where it can."""
    plain, windows = PurePosixPath(below), PureWindowsPath(below)
    if plain.is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        return "it leads out of the dataset"
    if not plain.parts or "\0" in below or plain.as_posix() != below:
        return "it is no path"
    if any(name.startswith(".") for name in plain.parts):
        return "it is hidden"
    if plain.suffix.lower() in EXTENSIONS:
        return "it is an image"
    if any(len(os.fsencode(name)) > temporary_names.LONGEST_NAME for name in plain.parts):
        return "its name is too long"
    return ""


def normalize_ending(text: str) -> str:
    """The ending of files with words, with its dot, from what somebody typed.

    Raises:
        ValueError: Files of that ending are no words; with the reason.
    """
    ending = f".{text.strip().lstrip('.')}"
    if ending == "." or set('/\\:*?"<>|\0') & set(ending) or why_not_a_caption_file(f"a{ending}"):
        raise ValueError(
            f"{text!r} cannot be the ending of caption files; expected one such as .txt"
        )
    if ending.lower() in METADATA:
        raise ValueError(
            f"{ending} is the ending of metadata files, which hold the words of all images"
        )
    return ending
