"""The usual places of the masks of a folder of images: `cats-masks` beside `cats`, for example.

`impasto dataset mask` and the studio write them there, and `impasto new`, `train --plan` and the
studio's pages search there; training itself reads `mask_dir` only. Does not import NumPy.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from impasto import files
from impasto.data.folders import formats
from impasto.data.folders.formats import normalized_name

_BEHIND = "-masks"
_INSIDE = ".masks"
_CAPTION_ENDINGS = (".txt", ".caption")


def usual_mask_folders(images: Path) -> tuple[Path, Path]:
    """Return where the masks of a folder of images may be: beside it, and in a hidden sub-folder.

    The second, in which no scan finds images, is for folders whose parent folder is not writable.
    """
    whole = Path(os.path.abspath(images))  # noqa: PTH100 - `..` has no name to append to
    return whole.with_name(f"{whole.name}{_BEHIND}"), whole / _INSIDE


@dataclass(frozen=True)
class MaskNames:
    """The names of the masks in a folder, to determine which images have one.

    Attributes:
        folder: The folder of masks.
        names: Sub-folder, with slashes -> the stems of the images in it.
    """

    folder: Path
    names: dict[str, frozenset[str]] = field(default_factory=dict)

    def has(self, image: str) -> bool:
        """Return whether an image has a mask, by its relative path or by its bare name.

        Args:
            image: The path of the image below the folder of images, with slashes.
        """
        path = PurePosixPath(image)
        stem = _stem_of(path.name)
        return any(stem in self.names.get(one, ()) for one in (str(path.parent), "."))


def mask_names(images: Path, within: Sequence[Path]) -> MaskNames | None:
    """Return the names of the masks in the usual folder of an image folder; None if it has none.

    Args:
        images: The folder of images.
        within: Only folders of masks inside one of these, with links resolved, are read.
    """
    for folder in usual_mask_folders(images):
        is_ours = any(files.is_inside(folder, one) for one in within)
        names = _names_below(folder) if is_ours and folder.is_dir() else {}
        if any(names.values()):
            return MaskNames(folder, names)
    return None


def is_of_masks(names: Iterable[str], images: Path) -> bool:
    """Return whether a folder holds masks of another folder's images, and is not itself a dataset.

    A folder with captions is a dataset. Otherwise it is a folder of masks if one of its images has
    the name of an image in the other folder, or if it has no images.

    Args:
        names: The names of the files in it.
        images: The folder of images that the masks would belong to.
    """
    own = {name for name in names if not name.startswith(".")}
    if not images.is_dir() or any(name.lower().endswith(_CAPTION_ENDINGS) for name in own):
        return False
    masks = {_stem_of(name) for name in own if _is_image(name)}
    return not masks or not masks.isdisjoint(_stems_in(images))


def images_of_masks(folder: Path) -> Path | None:
    """Return the folder of images that a folder of masks is named after; None for other names."""
    name = folder.name.removesuffix(_BEHIND)
    return folder.with_name(name) if name and name != folder.name else None


def _names_below(folder: Path) -> dict[str, frozenset[str]]:
    found = {}
    for above, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        stems = frozenset(_stem_of(name) for name in names if _is_image(name))
        found[Path(above).relative_to(folder).as_posix()] = stems
    return found


def _stems_in(folder: Path) -> set[str]:
    try:
        return {_stem_of(name) for name in os.listdir(folder) if _is_image(name)}
    except OSError:
        return set()


def _stem_of(name: str) -> str:
    return os.path.splitext(normalized_name(name))[0]  # noqa: PTH122 - hot path


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in formats.EXTENSIONS  # noqa: PTH122 - hot path
