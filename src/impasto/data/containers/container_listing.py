"""Lists the images inside tars and tables, as `listing.py` lists those of a folder.

The index of a tar's headers is cached with the tar's size and modification time, so a second scan
reads none of the tar. Tables' columns are read by each scan.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from impasto.canonical import sort_key
from impasto.data.columns.keyed import KeyedTable
from impasto.data.containers.containers import Columns, Container, Containers
from impasto.data.containers.tar_members import IndexTars, TarIndex, images_of_tar
from impasto.data.engines.engine import LOCAL, Engine
from impasto.data.engines.stages import Failure, chunks
from impasto.data.folders.finding import ImageFinder
from impasto.data.folders.found import STAMPS, FoundBuilder, FoundTable
from impasto.data.folders.found_image import FoundImage
from impasto.data.folders.listing import Sidecars, Unused
from impasto.errors import StorageError
from impasto.member_paths import TAR, TableCell, member_of, path_in_table, plain
from impasto.progress import Progress, SilentProgress, counted

if TYPE_CHECKING:
    from impasto.data.containers.image_tables import TableFacts

_VERSION = [1]
_SCHEMA = pa.schema(
    [
        ("path", pa.large_string()),
        ("size_bytes", pa.int64()),
        ("stamp", pa.int64()),
        ("members", pa.large_binary()),
    ]
)


def list_containers(
    containers: Containers,
    sidecars: Sidecars,
    columns: Columns,
    index: Path | None,
    progress: Progress | None = None,
    engine: Engine = LOCAL,
) -> tuple[FoundTable, list[Unused]]:
    """Return the images in some files, file by file in their order, and what is not used.

    Args:
        containers: The files.
        sidecars: The extensions of caption files in tars.
        columns: The columns of tables; `caption` is also a key in the JSON files of tars.
        index: The indexes of tars are cached beside this file; None caches nothing.
        progress: Shows progress and what kind of files they are.
        engine: Runs the stages.

    Raises:
        StorageError: They are in an object store that cannot be used.
    """
    progress = progress or SilentProgress()
    found = FoundBuilder()
    found.add(containers.faults)
    unused = list(containers.unused)
    if containers.ending == TAR and columns.image is not None:
        reason = "image_column has no effect on tars, whose images are files"
        unused += [Unused(Path(container.path), reason) for container in containers.files]
    if containers.ending == TAR:
        listing: _Tars | _Tables = _Tars(index, sidecars, columns)
    else:
        listing = _Tables(columns)
    listing.prepare(containers.files, progress, engine)
    number = 0
    for container in containers.files:
        images, others = listing.images(container)
        found.add(images)
        unused += others
        number += sum(not image.fault for image in images)
    said = counted(number, "images are")
    progress.note(f"{said} inside {containers.described}, and read in place.")
    unused.sort(key=lambda item: sort_key(str(item.path)))
    return found.table(), unused


class _Tars:
    """The images inside tars.

    Args:
        index: Their indexes are cached beside this file; None caches nothing.
        sidecars: The extensions of caption files.
        columns: `caption` is the key of captions in JSON files, if set.
    """

    def __init__(self, index: Path | None, sidecars: Sidecars, columns: Columns) -> None:
        file = None if index is None else index.with_name(f"tars-{index.name}")
        self._known = KeyedTable(file, _SCHEMA, _VERSION, None)
        self._sidecars, self._field = sidecars, columns.caption
        self._faults: dict[str, str] = {}
        self._packed: dict[str, bytes] = {}

    def prepare(self, files: Sequence[Container], progress: Progress, engine: Engine) -> None:
        """Read the headers of those tars whose index is not cached, or out of date."""
        remembered = self._known.look_up([container.path for container in files])
        for path, *stamp in files:
            *was, packed = remembered.get(path, (-1, -1, b""))
            if was == stamp:
                self._packed[path] = packed
        fresh = [container for container in files if container.path not in self._packed]
        if not fresh:
            return
        executor = engine.executor(IndexTars())
        with progress.stage("Reading headers of tars", len(fresh), "tars") as advance:
            for outcomes in executor.run(chunks(fresh, 1)):
                for container, outcome in outcomes:
                    if isinstance(outcome, Failure):
                        self._faults[container.path] = outcome.reason
                    else:
                        self._add(container, outcome, progress)
                advance(len(outcomes))
        self._keep(self._known.finish, progress)

    def _add(self, container: Container, packed: bytes, progress: Progress) -> None:
        self._packed[container.path] = packed
        self._keep(lambda: self._known.add(*container, packed), progress)

    def _keep(self, write: Callable[[], None], progress: Progress) -> None:
        """Write to the cache; an error is only noted, since the results are valid without it."""
        try:
            write()
        except StorageError as error:
            progress.note(f"The next scan has to read the headers of tars again: {error}")

    def images(self, container: Container) -> tuple[list[FoundImage], list[Unused]]:
        """Return the images of a tar, and its files that are not used."""
        fault = self._faults.get(container.path)
        if fault is not None:
            return [FoundImage(container.path, [], fault=fault)], []
        index = TarIndex.unpacked(self._packed[container.path])
        return images_of_tar(container, index, self._sidecars, self._field)


class _Tables:
    """The images inside tables.

    Args:
        columns: The columns named in the settings.
    """

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._facts: dict[str, TableFacts | Failure] = {}
        self._finders: dict[Path, ImageFinder] = {}
        self._named: set[str] = set()

    def prepare(self, files: Sequence[Container], progress: Progress, engine: Engine) -> None:
        """Read the columns of all tables."""
        from impasto.data.columns.table_rows import forget_stored
        from impasto.data.containers.image_tables import ReadTables

        forget_stored()
        executor = engine.executor(ReadTables(self._columns))
        with progress.stage("Reading columns of tables", len(files), "tables") as advance:
            for outcomes in executor.run(chunks(files, 1)):
                self._facts |= {container.path: facts for container, facts in outcomes}
                advance(len(outcomes))

    def images(self, container: Container) -> tuple[list[FoundImage], list[Unused]]:
        """Return the images of a table, and remarks about the table."""
        from impasto.data.containers.image_tables import images_of_table, unused_of_table

        facts = self._facts[container.path]
        if isinstance(facts, Failure):
            return [FoundImage(container.path, [], fault=facts.reason)], []
        if facts.paths is None:
            return images_of_table(container, facts)
        return self._by_paths(container, facts, facts.paths), unused_of_table(container, facts)

    def _by_paths(
        self, container: Container, facts: TableFacts, paths: Sequence[str | None]
    ) -> list[FoundImage]:
        """Return the images that a table refers to by paths relative to its folder."""
        folder = Path(container.path).parent
        if folder not in self._finders:
            self._finders[folder] = ImageFinder(folder)
        finder = self._finders[folder]
        outcomes = finder.find_all([path or "" for path in paths])
        found = []
        for row, (path, outcome) in enumerate(zip(paths, outcomes, strict=True)):
            fault = "" if path else "its row has no image"
            if not fault and isinstance(outcome, Failure):
                fault = outcome.reason.replace("metadata names it", "its row names it")
            elif not fault and outcome in self._named:
                fault = f"its row names {path}, which another row names too"
            if fault or isinstance(outcome, Failure):
                cell = path_in_table(container.path, facts.image, row)
                found.append(FoundImage(cell, [], fault=fault))
                continue
            self._named.add(outcome)
            found.append(_with_caption(finder.stat_image(outcome), container, facts, row))
        return found


def _with_caption(
    image: FoundImage, container: Container, facts: TableFacts, row: int
) -> FoundImage:
    """Return an image file with its row as caption file, if the table has captions."""
    if image.fault or not facts.caption:
        return image
    caption_file = path_in_table(container.path, facts.caption, row)
    stamps = [*image.stamps[:2], container.size, container.stamp, 0, 0]
    return image._replace(stamps=stamps, caption_files=(caption_file, ""))


class MemberTree:
    """The images inside tars and tables as a file tree, without their captions.

    Args:
        found: The images.
    """

    def __init__(self, found: FoundTable) -> None:
        self._items = {
            os.path.normpath(plain(item.path)): item for item in found.items() if not item.fault
        }

    def walk(self) -> Iterator[tuple[str, list[str], list[str]]]:
        """Yield folders with the names of the images in them, like `os.walk`."""
        inside: dict[str, list[str]] = {}
        for path in self._items:
            inside.setdefault(os.path.dirname(path), []).append(os.path.basename(path))  # noqa: PTH119, PTH120
        for folder, names in inside.items():
            yield folder, [], names

    def has(self, path: str) -> bool:
        """Return whether an image has this path."""
        return path in self._items

    def stat_image(
        self,
        path: str,
        caption_files: tuple[str, str] = ("", ""),  # noqa: ARG002 - as in other trees
        crop: str = "",  # noqa: ARG002
    ) -> FoundImage:
        """Return an image with its stamps; its caption is given by the metadata instead."""
        item = self._items[path]
        own = item.stamps if isinstance(member_of(item.path), TableCell) else item.stamps[:2]
        return FoundImage(item.path, [*own, 0, 0, 0, 0][:STAMPS])
