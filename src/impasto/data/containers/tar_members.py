"""Lists the images of a tar by one pass over its headers; nothing is unpacked.

Files with the same name up to its first dot form a sample, as in a webdataset: `00042.jpg`,
`00042.txt` and `00042.json` are an image, its caption, and its metadata.

Sources: webdataset/webdataset, `webdataset/tariterators.py`, base_plus_ext and group_by_keys; the
layout of rom1504/img2dataset's shards.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import pyarrow as pa

from impasto.data.columns.arrow_columns import column_of
from impasto.data.containers.containers import Container
from impasto.data.engines.stages import Failure
from impasto.data.folders import formats
from impasto.data.folders.found_image import FoundImage
from impasto.data.folders.listing import CAPTION, NOT_TEXT, TAGS, Sidecars, Unused
from impasto.member_paths import path_in_tar
from impasto.parsing import is_text, parse_json, printable
from impasto.remote_paths import is_remote
from impasto.storage.ranged_file import RangedFile, open_ranges

_BLOCK = 512
_LARGEST_HEADER = 4 << 20  # bytes; names and attributes take a few thousand at most
_PADDING = 1 << 20  # bytes of zeros allowed after the end; GNU tar pads to 10,240
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_JSON = ".json"
_OUT = "its name leads out of the tar; make the tar from within the folder of images"
_SCHEMA = pa.schema(
    [
        ("name", pa.large_string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("fault", pa.large_string()),
    ]
)


class TarEntry(NamedTuple):
    """A file in a tar: its name, the offset and size of its bytes, and any fault that it has."""

    name: str
    offset: int
    size: int
    fault: str = ""


@dataclass(frozen=True)
class TarIndex:
    """The files in a tar.

    Attributes:
        entries: The files, in their order.
        fault: Why part of the tar could not be read; empty if all of it was.
        remark: An irregularity that loses no known file; empty if there is none.
    """

    entries: Sequence[TarEntry]
    fault: str = ""
    remark: str = ""

    def packed(self) -> bytes:
        """Return the index as bytes, to be cached between scans."""
        about = json.dumps([self.fault, self.remark]).encode("utf-8")
        columns = zip(*self.entries, strict=True) if self.entries else [()] * len(_SCHEMA)
        arrays = [column_of(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)]
        table = pa.Table.from_arrays(arrays, schema=_SCHEMA.with_metadata({b"about": about}))
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue()

    @classmethod
    def unpacked(cls, content: bytes) -> TarIndex:
        """Return the index from the bytes that `packed` made of it."""
        table = pa.ipc.open_stream(content).read_all()
        fault, remark = parse_json((table.schema.metadata or {})[b"about"])
        columns = (column.to_pylist() for column in table.itercolumns())
        return cls([TarEntry(*row) for row in zip(*columns, strict=True)], fault, remark)


class IndexTars:
    """Stage: tars -> their `TarIndex`, packed."""

    def __call__(self, batch: Sequence[Container]) -> list[bytes | Failure]:
        """Read the headers of some tars.

        Raises:
            StorageError: They are in an object store that cannot be used.
        """
        return [self._one(container) for container in batch]

    def _one(self, container: Container) -> bytes | Failure:
        path = Path(container.path)
        try:
            if is_remote(path):
                return index_tar(open_ranges(path, container.size), container.size).packed()
            with path.open("rb") as file:
                return index_tar(file, container.size).packed()
        except OSError as error:
            return Failure(f"cannot be read ({error.strerror or error})", is_transient=True)


def index_tar(file: IO[bytes] | RangedFile, size: int) -> TarIndex:
    """Return the files of a tar, by one pass over its headers.

    Python's `tarfile` takes a damaged header for the end of the tar, so the bytes at that point are
    checked as well.

    Args:
        file: The tar, seekable.
        size: Its size in bytes.

    Raises:
        OSError: The file cannot be read.
    """
    head = file.read(_BLOCK)
    if not head:
        return TarIndex([], "the file is empty")
    if head.startswith(_COMPRESSED):
        return TarIndex([], "a compressed tar, whose files cannot be read in place; decompress it")
    file.seek(0)
    entries: list[TarEntry] = []
    end = 0
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
            while (info := tar.next()) is not None:
                if info.size < 0 or tar.offset <= end:  # CVE-2025-8194: an endless loop
                    break
                tar.members.clear()  # it would store all of them to look up names
                if not info.isdir():
                    entries.append(_entry_of(info, size))
                end = tar.offset
            else:
                end = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        if not entries:
            return TarIndex([], f"not a tar, or damaged at its start ({error})")
    fault, remark = _ending(file, size, end, entries)
    return TarIndex(entries, fault, remark)


class _Headers:
    """A file that limits each read to the size of a header: an untrusted tar may claim any size."""

    def __init__(self, file: IO[bytes] | RangedFile) -> None:
        self._file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        """Read the next bytes of the tar.

        Raises:
            tarfile.ReadError: More bytes are requested than any header has.
        """
        if not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self._file.read(size)


def _entry_of(info: tarfile.TarInfo, size: int) -> TarEntry:
    name = info.name.removeprefix("./")
    begin, end = info.offset_data, info.offset_data + info.size
    fault = ""
    if not is_text(name):
        name, fault = printable(name), NOT_TEXT
    elif not name or any(level in {"", ".", ".."} for level in name.split("/")):
        fault = _OUT
    elif info.issym() or info.islnk():
        fault = "a link inside the tar, which is not followed"
    elif not info.isreg() or info.issparse():
        fault = "not a regular file, but a device, a FIFO or a sparse file"
    elif info.size < 0 or end > size:
        fault = f"cut short: it is at the bytes {begin} to {end}, and the tar ends at byte {size}"
    return TarEntry(name, begin, max(0, info.size), fault)


def _ending(
    file: IO[bytes] | RangedFile, size: int, end: int, entries: Sequence[TarEntry]
) -> tuple[str, str]:
    """Return (fault, remark) about the end of a tar; each is empty if there is none."""
    last = f"after its member {entries[-1].name}" if entries else "at its start"
    if entries and end > size:
        member = entries[-1]
        return (
            f"the tar is cut short at byte {size}, in its member {member.name} (bytes "
            f"{member.offset} to {member.offset + member.size}); the {len(entries) - 1} members "
            f"before are whole",
            "",
        )
    file.seek(end)
    block = file.read(_BLOCK)
    if 0 < len(block) < _BLOCK:
        return f"the tar is cut short at byte {size}, in a header {last}", ""
    if block.strip(b"\0"):
        return f"the tar is damaged at byte {end}, {last}; what follows cannot be read", ""
    if not block:
        return "", f"a tar without an end marker, perhaps cut short at byte {size}, {last}"
    if size - end > _PADDING:
        return "", (
            f"a tar that ends at byte {end} of {size}; what follows, perhaps another tar, is not "
            f"read"
        )
    return "", ""


def images_of_tar(
    tar: Container, index: TarIndex, sidecars: Sidecars, field: str | None
) -> tuple[list[FoundImage], list[Unused]]:
    """Return the images of a tar with their captions, and unused files that look like either.

    Args:
        tar: The tar.
        index: Its files.
        sidecars: The extensions of caption files.
        field: The key of captions in JSON files, if set.
    """
    samples = _Samples(tar, sidecars, field)
    for entry in index.entries:
        samples.add(entry)
    found, unused = samples.found(), list(samples.unused())
    if index.fault:
        found.append(FoundImage(tar.path, [], fault=index.fault))
    if index.remark:
        unused.append(Unused(Path(tar.path), index.remark))
    return found, unused


class _Samples:
    """Groups the files of a tar into samples."""

    def __init__(self, tar: Container, sidecars: Sidecars, field: str | None) -> None:
        self._tar, self._sidecars, self._field = tar, sidecars, field
        self._images: dict[str, tuple[str, TarEntry]] = {}
        self._others: dict[tuple[str, str], TarEntry] = {}
        self._found: list[FoundImage] = []
        self._unused: list[Unused] = []
        self._used: set[str] = set()
        self._caption_endings = {CAPTION, TAGS, *(e for e in sidecars if e)}

    def add(self, entry: TarEntry) -> None:
        """Add a file to its sample, by its name."""
        stem, ending = split_name(entry.name)
        if entry.name[entry.name.rfind("/") + 1 :].startswith("."):
            return
        last = ending[ending.rfind(".") :] if ending else ""
        if ending in formats.EXTENSIONS:
            self._add_image(stem, entry)
        elif ending in formats.UNREAD:
            self._fault(entry, formats.UNREAD[ending])
        elif last in formats.EXTENSIONS:
            reason = (
                "not read, because a sample's name ends at its first dot and the rest is not the "
                "extension of an image; rename it if it is an image to train on"
            )
            self._unused.append(Unused(self._path(entry), reason))
        else:
            self._others.setdefault((stem, ending), entry)

    def _add_image(self, stem: str, entry: TarEntry) -> None:
        if entry.fault:
            self._fault(entry, entry.fault)
        elif entry.name in self._images:
            self._fault(entry, "its name is in the tar twice; the first file of that name is used")
        else:
            self._images[entry.name] = (stem, entry)

    def _fault(self, entry: TarEntry, reason: str) -> None:
        self._found.append(FoundImage(str(self._path(entry)), [], fault=reason))

    def _path(self, entry: TarEntry) -> Path:
        return Path(path_in_tar(self._tar.path, entry.name, entry.offset, entry.size))

    def found(self) -> list[FoundImage]:
        """Return the images with their caption files."""
        return self._found + [self._with_captions(*item) for item in self._images.values()]

    def _with_captions(self, stem: str, entry: TarEntry) -> FoundImage:
        path = path_in_tar(self._tar.path, entry.name, entry.offset, entry.size)
        stamps, caption_files = [entry.size, self._tar.stamp], []
        for other, field in self._captions_of(stem):
            if other is None:
                caption_files.append("")
                stamps += [0, 0]
                continue
            self._used.add(other.name)
            if other.fault:
                return FoundImage(path, [], fault=f"its caption {other.name}: {other.fault}")
            stamps += [other.size, self._tar.stamp]
            own = self._tar.path, other.name, other.offset, other.size
            caption_files.append(path_in_tar(*own, field=field))
        return FoundImage(path, stamps, (caption_files[0], caption_files[1]))

    def _captions_of(self, stem: str) -> list[tuple[TarEntry | None, str | None]]:
        """Return the files with caption and tags of a sample, each with a key if it is JSON."""
        own = [
            (self._others.get((stem, ending)) if ending else None, None)
            for ending in self._sidecars
        ]
        said = self._others.get((stem, _JSON))
        if said is not None and (self._field or not any(entry for entry, _ in own)):
            return [(said, self._field or ""), (None, None)]
        return list(own)

    def unused(self) -> Iterator[Unused]:
        """Yield files that look like images or captions and are not used; call `found` before."""
        yield from self._unused
        for (_, ending), entry in self._others.items():
            if ending in self._caption_endings and entry.name not in self._used:
                reason = "a caption in a tar that is not used: no image has its name, or its "
                reason += "sample's caption is in another file"
                yield Unused(self._path(entry), reason)


def split_name(name: str) -> tuple[str, str]:
    """Split a name in a tar at the first dot of its last part; the extension is in lower case."""
    begin = name.rfind("/") + 1
    dot = name.find(".", begin)
    return (name, "") if dot < 0 else (name[:dot], name[dot:].lower())
