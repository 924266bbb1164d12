"""Names that become files: what every system that a model may be copied to can hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

MAX_NAME_BYTES = 180
"""Bytes of UTF-8, so that what is put after a name still fits: 255 is the limit of most systems."""

_FORBIDDEN = '/\\<>:"|?*'
_RESERVED = {
    *("con", "prn", "aux", "nul", "conin$", "conout$"),
    *(f"{port}{number}" for port in ("com", "lpt") for number in "0123456789\u00b9\u00b2\u00b3"),
}
"""Names of devices on Windows, with any ending; Microsoft, "Naming Files, Paths and Namespaces"."""


def file_name_problem(name: str) -> str | None:
    """Why a text cannot be the name of a file on every system; None if it can."""
    if not name.strip() or name in {".", ".."}:
        return "is no name"
    bad = next((c for c in name if c in _FORBIDDEN or not c.isprintable()), None)
    if bad is not None:
        return f"has {bad!r} in it, which a file name cannot have on every system"
    if name != name.strip() or name.endswith("."):
        return "begins or ends with a space, or ends with a dot, which Windows takes away"
    if name.partition(".")[0].strip().lower() in _RESERVED:
        return "is the name of a device on Windows"
    size = len(name.encode("utf-8", "surrogatepass"))
    if size > MAX_NAME_BYTES:
        return f"has {size} bytes; a name may have {MAX_NAME_BYTES}"
    return None


def _checked(name: str) -> str:
    fault = file_name_problem(name)
    if fault is not None:
        shown = name if len(name) <= 60 else f"{name[:60]}..."
        raise ValueError(f"{shown!r} {fault}. Give a name without a folder, such as my-style")
    return name


FileName = Annotated[str, AfterValidator(_checked)]
"""A setting that becomes the name of a file, or part of it."""


def _ending(text: str) -> str:
    if not text.strip(" .") or any(c in _FORBIDDEN or not c.isprintable() for c in text):
        raise ValueError(f"{text!r} is not the ending of file names, as .txt is")
    return text


Ending = Annotated[str, AfterValidator(_ending)]
"""A setting that becomes the ending of file names, with its dot or without."""
