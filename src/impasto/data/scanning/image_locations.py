"""Lists the images of a location, whether they are files of a folder or inside tars or tables."""

from __future__ import annotations

from pathlib import Path

from impasto.data.containers.containers import (
    Columns,
    Containers,
    containers_below,
    named_containers,
)
from impasto.data.engines.engine import Engine
from impasto.data.folders.found import FoundTable, found_of, join_found
from impasto.data.folders.listing import (
    CONTAINER_BESIDE,
    Sidecars,
    Unused,
    list_folder,
    repeat_folders,
)
from impasto.data.records import no_cycle_collection
from impasto.data.subsets import Subset
from impasto.errors import DatasetError
from impasto.member_paths import is_named
from impasto.progress import Progress
from impasto.remote_paths import absolute, is_remote


def list_location(
    location: Path,
    subset: Subset,
    sidecars: Sidecars,
    columns: Columns,
    index: Path | None,
    progress: Progress | None,
    engine: Engine,
    *,
    recursive: bool,
) -> tuple[FoundTable, list[Unused]]:
    """The images of a location, and what of it is not used.

    Args:
        location: A folder, or a tar or table, or several by wildcards.
        subset: How the images are used.
        sidecars: The endings of the files with the words.
        columns: The columns of tables.
        index: A file to keep results in between scans; None keeps nothing.
        progress: Where to show how far it is.
        engine: Runs what is done.
        recursive: Also look in sub-folders.

    Raises:
        DatasetError: Names stand for no file, or for files of several kinds.
        StorageError: The location is in an object store that cannot be used.
    """
    with no_cycle_collection():
        found, unused = _list_files(location, subset, sidecars, recursive=recursive)
    containers = _containers_of(location, found, recursive=recursive)
    if containers is None:
        return found, unused
    from impasto.data.containers.container_listing import (
        list_containers,  # tarfile, for images in tars alone
    )

    inside, others = list_containers(containers, sidecars, columns, index, progress, engine)
    rest = [item for item in unused if item.reason != CONTAINER_BESIDE]
    return join_found([found, inside]), rest + others


def _list_files(
    folder: Path, subset: Subset, sidecars: Sidecars, *, recursive: bool
) -> tuple[FoundTable, list[Unused]]:
    """The image files of a folder; none where the location names tars or tables."""
    if is_named(folder):
        return found_of([]), []
    masks = [subset.masks.folder] if subset.masks and subset.masks.folder else []
    found, unused = list_folder(str(folder), sidecars, recursive=recursive, masks=masks)
    if subset.repeats == 1:
        unused[:0] = repeat_folders([str(absolute(folder))])
    return found, unused


def _containers_of(folder: Path, found: FoundTable, *, recursive: bool) -> Containers | None:
    """The tars or tables with the images of a location; None where images are plain files.

    A folder with image files is one of image files, whatever else is in it.
    """
    if is_named(folder):
        return named_containers(folder)
    if len(found) and not found.has("fault").all():
        return None
    return containers_below(folder, recursive=recursive)


def require_folder(folder: Path, what: str = "image folder") -> None:
    """Make sure that a folder is there; in an object store, whatever has keys below it.

    Args:
        folder: It.
        what: What it is called.

    Raises:
        DatasetError: It is missing, or a file.
    """
    if not is_remote(folder) and not folder.is_dir():
        fault = "is a file, not a folder" if folder.exists() else "is not there"
        raise DatasetError(
            f"The {what} {folder} {fault}. Give the path of the folder that holds your "
            f"{'masks' if 'masks' in what else 'images'}."
        )


def require_images(location: Path) -> None:
    """Make sure that a folder of images, or a tar or table of them, is there.

    Raises:
        DatasetError: It is missing, or something else.
    """
    if not is_named(location):
        require_folder(location)
    elif not is_remote(location) and not location.parent.is_dir():
        raise DatasetError(f"{location} is in a folder that is not there. Check its path.")
