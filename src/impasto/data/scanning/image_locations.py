"""Lists the images of a location: files of a folder, or images inside tars or tables."""

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
    """List the images of a location, and the files there that are not used.

    Args:
        location: A folder, or a tar or table, or several by wildcards.
        subset: How the images are used.
        sidecars: The extensions of caption files.
        columns: The columns of tables.
        index: A file to store results in between scans; None stores nothing.
        progress: Shows progress.
        engine: Runs the work on files.
        recursive: Also search sub-folders.

    Raises:
        DatasetError: A pattern matches no file, or files of several kinds.
        StorageError: The location is in an object store that cannot be used.
    """
    with no_cycle_collection():
        found, unused = _list_files(location, subset, sidecars, recursive=recursive)
    containers = _containers_of(location, found, recursive=recursive)
    if containers is None:
        return found, unused
    from impasto.data.containers.container_listing import (
        list_containers,  # imports tarfile, which only tars need
    )

    inside, others = list_containers(containers, sidecars, columns, index, progress, engine)
    rest = [item for item in unused if item.reason != CONTAINER_BESIDE]
    return join_found([found, inside]), rest + others


def _list_files(
    folder: Path, subset: Subset, sidecars: Sidecars, *, recursive: bool
) -> tuple[FoundTable, list[Unused]]:
    """List the image files of a folder; none if the location names tars or tables."""
    if is_named(folder):
        return found_of([]), []
    masks = [subset.masks.folder] if subset.masks and subset.masks.folder else []
    found, unused = list_folder(str(folder), sidecars, recursive=recursive, masks=masks)
    if subset.repeats == 1:
        unused[:0] = repeat_folders([str(absolute(folder))])
    return found, unused


def _containers_of(folder: Path, found: FoundTable, *, recursive: bool) -> Containers | None:
    """Return the tars or tables that hold a location's images; None if images are plain files.

    A folder with usable image files counts as one of plain files, whatever else is in it.
    """
    if is_named(folder):
        return named_containers(folder)
    if len(found) and not found.has("fault").all():
        return None
    return containers_below(folder, recursive=recursive)


def require_folder(folder: Path, what: str = "image folder") -> None:
    """Check that a folder exists; in an object store, any folder passes.

    Args:
        folder: The folder.
        what: What to call it in the message.

    Raises:
        DatasetError: The folder is missing, or a file.
    """
    if not is_remote(folder) and not folder.is_dir():
        fault = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DatasetError(
            f"The {what} {folder} {fault}. Give the path of the folder that holds your "
            f"{'masks' if 'masks' in what else 'images'}."
        )


def require_images(location: Path) -> None:
    """Check that a folder of images exists, or the folder of a tar or table of them.

    Raises:
        DatasetError: The folder is missing, or a file.
    """
    if not is_named(location):
        require_folder(location)
    elif not is_remote(location) and not location.parent.is_dir():
        raise DatasetError(f"{location} is in a folder that does not exist. Check its path.")
