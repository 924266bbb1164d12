"""Settings that hold the location of data: a path, or a URL in an object store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, PlainSerializer

from impasto.remote_paths import READ_ONLY, is_remote, location_fault, scheme_of, shown


def _checked(path: Path) -> Path:
    fault = location_fault(path)
    if fault:
        raise ValueError(fault)
    return path


def _writable(path: Path) -> Path:
    if is_remote(path) and scheme_of(path) in READ_ONLY:
        raise ValueError(
            f"{shown(path)} is in a read-only store; expected a folder, or a URL of s3:// or gs://"
        )
    return path


_AS_URL = PlainSerializer(shown, return_type=str, when_used="json")

Location = Annotated[Path, AfterValidator(_checked), _AS_URL]
"""A path or a URL from which data is read."""

WrittenLocation = Annotated[Path, AfterValidator(_checked), AfterValidator(_writable), _AS_URL]
"""A path or a URL to which data is written."""

LOCATIONS = frozenset({"image_dir", "metadata_file", "cache_dir", "output_dir", "path", "vae"})
"""The settings that may be URLs; every other path must be local."""


def remote_fault(name: str, value: object) -> str:
    """Return why a setting cannot be in an object store; empty if it is not in one, or may be."""
    if name in LOCATIONS or not isinstance(value, (str, Path)) or not is_remote(value):
        return ""
    return location_fault(Path(value)) or (
        f"{name} is {shown(value)}, in an object store; expected a local path. Only output_dir, "
        f"path and vae of the model, image_dir, metadata_file and cache_dir of a dataset, and "
        f"image_dir of the validation may be in an object store"
    )
