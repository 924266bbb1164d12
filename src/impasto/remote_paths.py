"""Locations in an object store: URLs for users, paths inside the program.

`s3://bucket/cats` is the path whose first part is `s3:`, so that names, parents and extensions work
as for any other path. Nothing is opened here: `impasto.storage` does that. Code that writes to a
local disk refuses such a path (`require_local`), since it would create a folder named `s3:`.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from pathlib import Path

from impasto.errors import StorageError
from impasto.member_paths import plain

SCHEMES = ("s3", "gs", "hf", "memory")
READ_ONLY = frozenset({"hf"})
"""Stores from which data is read and to which nothing is written."""

_BEGIN = re.compile(rf"({'|'.join(SCHEMES)}):[/\\]+(?=[^/\\])")
_SIGNED = re.compile(r"[?&](X-Amz-|X-Goog-|AWSAccessKeyId=|GoogleAccessId=)", re.IGNORECASE)
_OTHER = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:[/\\]")


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a location in an object store."""
    return _BEGIN.match(os.fspath(path)) is not None


def scheme_of(path: Path) -> str:
    """Return the scheme of a location in an object store, such as `s3`."""
    return path.parts[0].rstrip("/\\").removesuffix(":")


def key_of(path: Path) -> str:
    """Return a location in an object store without its scheme: the bucket, and the key in it."""
    return "/".join(path.parts[1:])


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path as users write it: a URL for a location in an object store.

    For an image in a tar or a table it is the file, followed by the image's name in that file.
    """
    if not is_remote(path):
        return plain(path)
    own = Path(plain(path))
    return f"{scheme_of(own)}://{key_of(own)}"


def absolute(path: Path) -> Path:
    """Return a path made absolute; a location in an object store is unchanged."""
    return path if is_remote(path) else path.absolute()


def location_fault(path: Path) -> str:
    """Return why a path is not valid as a location of data; empty if it is valid.

    Keys and passwords in a URL would be written into settings, reports and models.
    """
    text = os.fspath(path)
    if not is_remote(path):
        other = _OTHER.match(text)
        if other is None or Path(path.parts[0]).exists():
            return ""
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        return f"{text[: other.end() - 2]}:// is not a supported object store; expected {known}"
    bucket = path.parts[1]
    if ":" in bucket or ("@" in bucket and scheme_of(path) != "hf"):
        return (
            "the URL contains a user name or a password, which would be stored in the settings; "
            "remove them. Credentials are read from the environment, such as AWS_ACCESS_KEY_ID or "
            "AWS_PROFILE"
        )
    if "?" in path.name or _SIGNED.search(text):
        return "the URL has parameters after a ?; expected a bucket and a key only"
    return ""


def copies_folder() -> Path:
    """Return the local folder for copies of objects and data derived from them.

    `IMPASTO_STORE_CACHE` overrides it. This is not a setting, since it belongs to a machine and not
    to a run, whose settings may move to another machine.
    """
    given = os.environ.get(COPIES_VARIABLE)
    if given:
        return Path(given)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "impasto" / "store"


def local_folder_of(location: Path, kind: str) -> Path:
    """Return the local folder that belongs to a folder of an object store.

    Args:
        location: The folder in the store.
        kind: Its content: `objects` for copies, `derived` for data derived from them.
    """
    digest = hashlib.sha256(shown(location).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return copies_folder() / kind / digest


def machine_folder(folder: Path) -> Path:
    """Return a local folder unchanged; for one in a store, the folder for copies of its objects."""
    return local_folder_of(folder, "objects") if is_remote(folder) else folder


COPIES_VARIABLE = "IMPASTO_STORE_CACHE"


def require_local(path: Path, what: str = "files") -> None:
    """Check that a path is on this machine.

    Raises:
        StorageError: The path is in an object store, where such files cannot be written.
    """
    if is_remote(path):
        raise StorageError(
            f"{shown(path)} is in an object store, where Impasto cannot write {what}. Give a "
            f"local folder, and copy the result there afterwards."
        )
