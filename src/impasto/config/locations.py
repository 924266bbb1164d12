"""Settings that name where data is: a path, or the URL of a location in an object store."""

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
            f"{shown(path)} is of a store that is only read from; expected a folder, or a place "
            f"in s3:// or gs://"
        )
    return path


_AS_URL = PlainSerializer(shown, return_type=str, when_used="json")

Location = Annotated[Path, AfterValidator(_checked), _AS_URL]
"""A path, or a URL that data is read from."""

WrittenLocation = Annotated[Path, AfterValidator(_checked), AfterValidator(_writable), _AS_URL]
"""A path, or a URL that data is written to."""

LOCATIONS = frozenset({"image_dir", "metadata_file", "cache_dir", "output_dir", "path", "vae"})
"""The settings that are locations; every other path is one of this machine."""


def remote_fault(name: str, value: object) -> str:
    """Why a setting cannot be in an object store; empty where it is not, or may be."""
    if name in LOCATIONS or not isinstance(value, (str, Path)) or not is_remote(value):
        return ""
    return location_fault(Path(value)) or (
        f"{name} is {shown(value)}, in an object store; expected a path of this machine. In an "
        f"object store may be output_dir, path and vae of the model, image_dir, metadata_file and "
        f"cache_dir of a dataset, and image_dir of the validation"
    )
