"""Receives files that a browser uploads to a dataset: checked as temporary files, then renamed.

Existing files are never replaced. A temporary file is in the dataset's folder of derived data, with
the id of this process in its name, so that the next upload removes those of a killed studio.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException

from impasto import storage_errors, temporary_names
from impasto.data.folders.formats import EXTENSIONS
from impasto.parsing import decode_caption, is_text, printable

FIELD = "files"
MOST_FILES = 2000
"""Maximum number of files in a request; pages send one file per request."""

MOST_BYTES = 512 << 20
"""Maximum size of an image in bytes, about that of a PNG of 150 megapixels."""

MOST_CAPTION_BYTES = 1 << 20
CAPTIONS = frozenset({".txt", ".caption"})

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
_LONGEST_NAME = 200  # bytes; leaves room for the suffixes of files named after an image


@dataclass(frozen=True)
class Outcome:
    """The result for an uploaded file; `reason` is empty if it was added to the dataset."""

    name: str
    reason: str = ""


def why_no_name(name: str) -> str:
    """Return the reason why a name is invalid on some system, or an empty text if it is valid."""
    if not name or not name.strip() or not is_text(name):
        return "a name is required, and must be valid text"
    if _FORBIDDEN.search(name):
        return 'a name must not contain / \\ : * ? " < > | or control characters'
    if name.startswith("."):
        return "a name must not start with a dot, since such files are hidden"
    if name != name.strip() or name.endswith("."):
        return "a name must not start or end with a space, or end with a dot"
    if _RESERVED.fullmatch(name):
        return "Windows reserves this name for a device"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        return f"a name must have at most {_LONGEST_NAME} bytes"
    return ""


def _as_it_was(name: str) -> str:
    """Decode the escapes that browsers write for quotes and line ends in names (HTML, 4.10.22.8).

    A name that literally contains such an escape is decoded too, since the two cases cannot be
    distinguished.
    """
    for written, letter in (("%22", '"'), ("%0D", "\r"), ("%0A", "\n")):
        name = name.replace(written, letter)
    return name


class UploadReceiver:
    """Receives the body of a form with files, piece by piece.

    Args:
        content_type: The content type header of the request.
        dataset: The folder that the files are added to.
        waiting: The folder for temporary files, on the same disk.
        check: Returns the reason why a file is not a usable image, given its path and its future
            name, or an empty text if it is one.
        most_bytes: Maximum size of an image in bytes.

    Raises:
        HTTPException: 400 if the body is not a form with files.
        StorageError: The folder cannot be written.
    """

    def __init__(
        self,
        content_type: str,
        dataset: Path,
        waiting: Path,
        check: Callable[[Path, str], str],
        most_bytes: int = MOST_BYTES,
    ) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise HTTPException(400, "The request is not a form with files.")
        self._dataset, self._waiting, self._check = dataset, waiting, check
        self._most_bytes = most_bytes
        self.outcomes: list[Outcome] = []
        self._received: _ReceivedFile | None = None
        self._working = threading.Lock()
        self.arriving = ""  # the name of the file being received; empty between files
        self._header, self._value, self._disposition = b"", b"", b""
        with storage_errors.reported(waiting):
            waiting.mkdir(parents=True, exist_ok=True)
            temporary_names.remove_leftovers(waiting)
        self._parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._begin,
                "on_header_field": self._name,
                "on_header_value": self._said,
                "on_header_end": self._header_end,
                "on_headers_finished": self._open,
                "on_part_data": self._data,
                "on_part_end": self._end,
            },
        )

    def feed(self, piece: bytes) -> None:
        """Process the next bytes of the body.

        Raises:
            HTTPException: 400 if they are not part of a valid form.
            StorageError: The disk is full, or the folder cannot be written.
        """
        try:
            with self._working:
                self._parser.write(piece)
        except FormParserError as error:
            raise HTTPException(400, f"The submitted form is damaged: {error}") from error

    def close(self) -> None:
        """Remove an incomplete file, after any bytes that another thread is processing."""
        with self._working:
            if self._received is not None:
                self._received.remove()
                self._received = None

    def _begin(self) -> None:
        self._disposition = b""

    def _name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _said(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _open(self) -> None:
        _, said = parse_options_header(self._disposition)
        if said.get(b"name") != FIELD.encode() or not said.get(b"filename"):
            return  # another field, or no file was selected
        name = _as_it_was(said[b"filename"].decode("utf-8", "surrogateescape"))
        reason = self._why_not(name)
        if reason:
            self.outcomes.append(Outcome(printable(name), reason))
            return
        most = MOST_CAPTION_BYTES if _is_caption(name) else self._most_bytes
        self.arriving = printable(name)
        self._received = _ReceivedFile(
            name, temporary_names.partial_name(self._waiting / name), most
        )

    def _why_not(self, name: str) -> str:
        reason = why_no_name(name)
        if reason:
            return reason
        if Path(name).suffix.lower() not in EXTENSIONS and not _is_caption(name):
            return "neither a supported image nor a caption (.txt, .caption)"
        if os.path.lexists(self._dataset / name):
            return "already exists, and was not replaced"
        if len(self.outcomes) >= MOST_FILES:
            return f"more than {MOST_FILES:,} files at once; send it again"
        return ""

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._received is not None:
            self._received.write(data[start:end])

    def _end(self) -> None:
        received, self._received = self._received, None
        if received is None:
            return
        try:
            reason = received.finish() or self._fault_of(received)
            if not reason:
                reason = give_name(received.path, self._dataset / received.name)
        finally:
            received.remove()
        self.arriving = ""
        self.outcomes.append(Outcome(received.name, reason))

    def _fault_of(self, received: _ReceivedFile) -> str:
        if not _is_caption(received.name):
            return self._check(received.path, received.name)
        try:
            text = decode_caption(received.path.read_bytes())
        except UnicodeDecodeError as error:
            return f"is not UTF-8 text (byte {error.start}); save it as UTF-8"
        return "is not text" if "\0" in text else ""


class _ReceivedFile:
    """A file that is being received."""

    def __init__(self, name: str, path: Path, most: int) -> None:
        self.name, self.path = name, path
        self._most, self._size = most, 0
        with storage_errors.reported(path.parent):
            self._file: BinaryIO = path.open("xb")

    def write(self, data: bytes) -> None:
        """Append bytes; those beyond the maximum size are dropped."""
        self._size += len(data)
        if self._size <= self._most:
            with storage_errors.reported(self.path.parent):
                self._file.write(data)

    def finish(self) -> str:
        """Flush the file to disk; return the reason why it is refused, or an empty text."""
        with storage_errors.reported(self.path.parent):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        if self._size > self._most:
            return f"is larger than {_limit_text(self._most)}, which is too large"
        return "" if self._size else "the file is empty"

    def remove(self) -> None:
        """Delete the temporary file unless it already has its final name."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def give_name(partial: Path, target: Path) -> str:
    """Rename a file unless the new name exists; return the reason for a failure, or an empty text.

    A hard link is created atomically, even if other processes write to the folder. On a file system
    without hard links, the name is first reserved with an empty file.

    Raises:
        StorageError: The folder cannot be written.
    """
    taken = "already exists, and was not replaced"
    try:
        if os.name == "nt":
            partial.rename(target)
        else:
            target.hardlink_to(partial)
    except FileExistsError:
        return taken
    except OSError:
        return _reserve(partial, target, taken)
    return ""


def _reserve(partial: Path, target: Path, taken: str) -> str:
    with storage_errors.reported(target):
        try:
            target.open("xb").close()
        except FileExistsError:
            return taken
        try:
            partial.replace(target)
        except OSError:
            target.unlink(missing_ok=True)
            raise
    return ""


def _is_caption(name: str) -> bool:
    return Path(name).suffix.lower() in CAPTIONS


def _limit_text(size: int) -> str:
    """Return a size limit as text, in MiB or, if smaller, in bytes."""
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size} bytes"
