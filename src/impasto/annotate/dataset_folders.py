"""The folders of a dataset that may hold captions, so that journals stay valid if they are moved.

A journal records a file by the dataset folder that it is in and the path below: `DatasetFile`. A
dataset, including its journals, may come from an untrusted source, so no entry may lead out of
those folders, by its text or by a link, nor to a file that cannot hold captions.
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
    """A file of captions or tags in a dataset.

    Attributes:
        root: The index of the dataset folder that it is in; `NAMED` is the metadata file that the
            user named, wherever it is.
        file: Its path below that folder, with slashes; for a named file its name.
    """

    root: int
    file: str


@dataclass(frozen=True)
class DatasetFolders:
    """The folders of a dataset in which captions may be written, and the folder of its journals.

    Attributes:
        roots: The folders of the dataset, in the order of its settings.
        journals: The folder of the journals.
        named: A metadata file that the user named, which may be anywhere.
    """

    roots: tuple[Path, ...]
    journals: Path
    named: Path | None = None

    @classmethod
    def around(cls, journals: Path) -> DatasetFolders:
        """Return the dataset whose journals are in a folder, in `.impasto` or directly."""
        above = journals.parent
        return cls((above.parent if above.name == files.DERIVED_DIR else above,), journals)

    def file_below(self, path: Path) -> DatasetFile | None:
        """Return the dataset file for a path, with links resolved; None outside of the dataset."""
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
        """Return the path of a dataset file, with links resolved in its folder only.

        Raises:
            RunError: The file is outside of the dataset, or is a metadata file that must be named.
        """
        if spot.root == NAMED:
            if self.named is None:
                raise RunError(
                    f"The last change was to the metadata file {spot.file}, which is not in the "
                    f"dataset. Add --metadata and its path. Nothing was changed."
                )
            if self.named.name != spot.file:
                raise RunError(
                    f"The last change was to a metadata file called {spot.file}, and --metadata "
                    f"names {self.named}. Nothing was changed."
                )
            return files.real_path(self.named)
        reason = why_not_a_caption_file(spot.file)
        if not 0 <= spot.root < len(self.roots):
            reason = f"it is in folder {spot.root + 1} of the dataset, which has fewer"
        if reason:
            raise RunError(
                f"The notes in {self.journals} name {spot.file[:200]!r}, which undo does not "
                f"change: {reason}. Nothing was changed. Notes that came with another person's "
                f"dataset can be deleted."
            )
        return files.real_path(self.roots[spot.root]) / spot.file

    def require_own_journals(self) -> None:
        """Check that the folder of journals is not reached by a link out of the dataset.

        A dataset from an untrusted source may contain links.

        Raises:
            RunError: The folder appears to be in the dataset, and a link leads out of it.
        """
        plain = os.path.abspath(self.journals)  # noqa: PTH100 - links are not followed
        seems = [r for r in self.roots if Path(plain).is_relative_to(os.path.abspath(r))]  # noqa: PTH100
        if seems and not any(files.is_inside(self.journals, root) for root in self.roots):
            raise RunError(
                f"{self.journals} leads out of the dataset by a link, so no notes for undo are "
                "stored there, and no captions are written. Remove the link, or set cache_dir to "
                "the folder it leads to."
            )

    def needs_name(self, file: Path) -> bool:
        """Return whether undo needs the path of a metadata file, as it is outside the dataset."""
        spot = self.file_below(file)
        return spot is not None and spot.root == NAMED

    def name_of(self, image: Path) -> str:
        """Return the name of an image in journals, which stays the same if the dataset is moved."""
        for number, root in enumerate(self.roots):
            if image.is_relative_to(root):
                return f"{number}:{image.relative_to(root).as_posix()}"
        return image.as_posix()

    def why_not_written(self, path: Path) -> str:
        """Return why captions must not be written to a file; empty if they may be."""
        if self.named is not None and path == self.named:
            return ""
        reason = why_not_written(path, self.roots)
        if reason or self.file_below(path) is not None:
            return reason
        return f"{path.name} is hidden or an image; no captions are written there"


def why_not_a_caption_file(below: str) -> str:
    """Return why a path below a folder cannot be a caption file; empty if it can."""
    plain, windows = PurePosixPath(below), PureWindowsPath(below)
    if plain.is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        return "it leads out of the dataset"
    if not plain.parts or "\0" in below or plain.as_posix() != below:
        return "it is not a path"
    if any(name.startswith(".") for name in plain.parts):
        return "it is hidden"
    if plain.suffix.lower() in EXTENSIONS:
        return "it is an image"
    if any(len(os.fsencode(name)) > temporary_names.LONGEST_NAME for name in plain.parts):
        return "its name is too long"
    return ""


def normalize_ending(text: str) -> str:
    """Return the extension of caption files with its dot, from user input.

    Raises:
        ValueError: Files with that extension cannot hold captions; with the reason.
    """
    ending = f".{text.strip().lstrip('.')}"
    if ending == "." or set('/\\:*?"<>|\0') & set(ending) or why_not_a_caption_file(f"a{ending}"):
        raise ValueError(
            f"{text!r} cannot be the extension of caption files; expected one such as .txt"
        )
    if ending.lower() in METADATA:
        raise ValueError(
            f"{ending} is the extension of metadata files, which hold the captions of all images"
        )
    return ending
