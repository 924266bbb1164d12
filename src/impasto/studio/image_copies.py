"""Facts about image files and copies of them for pages, made by other processes and cached.

The server process decodes no image, since image decoders have bugs that hostile files exploit.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from impasto import files
from impasto.errors import DatasetError, StorageError
from impasto.parsing import read_object
from impasto.studio.folders import leads_out
from impasto.studio.verbs import ask_verb

_PATIENCE_S = 120.0
_AT_ONCE = 2
_NUMBERS = ("width", "height", "size_bytes", "frames")
_OTHERS = {"format": str, "mode": str, "rotated": bool}
_MEDIA_TYPES = ("", "image/jpeg", "image/png", "image/webp")
_KEPT = 400  # maximum number of files in a folder of copies


@dataclass
class Views:
    """Facts about images and copies to show, stored beside a dataset while its files are unchanged.

    Attributes:
        home: The folder for them if the dataset's folder cannot be written.
    """

    home: Path
    _slots: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(_AT_ONCE)
    )

    def facts(self, dataset: Path, image: Path) -> Mapping[str, Any]:
        """Return the facts of `impasto dataset show` about an image: `width`, `media_type`, ...

        Raises:
            RunError: The image cannot be read.
            DatasetError: No folder for the facts can be written.
        """
        file = self._file(dataset, image, ".json")
        found = read_object(file)
        if found is not None and _are_facts(found):
            return found
        with self._slots:
            made: dict[str, Any] = ask_verb(
                ["dataset", "show", image, "--json"], patience_s=_PATIENCE_S
            )
        kept = {k: v for k, v in made.items() if k not in ("crop", "crop_fault", "caption", "tags")}
        with contextlib.suppress(StorageError):
            files.write_json(file, kept, durable=False)
        return kept

    def shown(self, dataset: Path, image: Path, ending: str = ".jpg") -> tuple[Path, str]:
        """Return the file to send to a browser for an image, and its media type.

        It is the image itself if browsers show it as it is trained on, or else an upright copy.

        Raises:
            RunError: The image cannot be read.
            DatasetError: No folder for the copy can be written.
        """
        facts = self.facts(dataset, image)
        if facts["media_type"]:
            return image, str(facts["media_type"])
        copy = self._file(dataset, image, ending)
        if not copy.is_file():
            with self._slots:
                ask_verb(
                    ["dataset", "show", image, "--json", "--view", copy], patience_s=_PATIENCE_S
                )
        return copy, "image/png" if ending == ".png" else "image/jpeg"

    def _file(self, dataset: Path, image: Path, ending: str) -> Path:
        stamp = image.stat()
        text = f"{stamp.st_size} {stamp.st_mtime_ns} ".encode() + os.fsencode(image)
        file = self._folder(dataset) / (hashlib.sha256(text).hexdigest()[:32] + ending)
        if file.is_symlink():  # the maker of the folder put it here; the studio creates no links
            file.unlink()
        return file

    def _folder(self, dataset: Path) -> Path:
        beside = dataset / files.DERIVED_DIR / "views"
        for folder in (beside, self.home):
            try:
                if folder == beside and leads_out(folder, dataset):
                    continue
                folder.mkdir(parents=True, exist_ok=True)
            except OSError:
                continue
            if os.access(folder, os.W_OK):
                _tidy(folder)
                return folder
        raise DatasetError(f"Neither {beside} nor {self.home} can be written.")


def _are_facts(found: Mapping[str, Any]) -> bool:
    """Return whether stored facts have valid types and ranges; their source may be untrusted."""
    return (
        all(isinstance(found.get(name), int) and found[name] > 0 for name in _NUMBERS)
        and found.get("media_type") in _MEDIA_TYPES
        and all(isinstance(found.get(name), kind) for name, kind in _OTHERS.items())
    )


def _tidy(folder: Path) -> None:
    """Remove the oldest files of a folder that has too many."""
    with contextlib.suppress(OSError):
        found = list(folder.iterdir())
        if len(found) > _KEPT:
            for path in sorted(found, key=lambda path: path.stat().st_mtime)[: _KEPT // 2]:
                path.unlink()
