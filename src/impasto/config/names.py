"""Checks of file names, which must be valid on every system a model may be copied to."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

MAX_NAME_BYTES = 180
"""Maximum length in bytes of UTF-8, which leaves room for suffixes: most systems allow 255."""

_FORBIDDEN = '/\\<>:"|?*'
_RESERVED = {
    *("con", "prn", "aux", "nul", "conin$", "conout$"),
    *(f"{port}{number}" for port in ("com", "lpt") for number in "0123456789\u00b9\u00b2\u00b3"),
}
"""Names of devices on Windows, with any extension; Microsoft, "Naming Files, Paths and
Namespaces"."""


def file_name_problem(name: str) -> str | None:
    """Return why a text cannot be a file name on every system; None if it can."""
    if not name.strip() or name in {".", ".."}:
        return "is not a name"
    bad = next((c for c in name if c in _FORBIDDEN or not c.isprintable()), None)
    if bad is not None:
        return f"contains {bad!r}, which file names cannot contain on every system"
    if name != name.strip() or name.endswith("."):
        return "starts or ends with a space, or ends with a dot, which Windows removes"
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
"""A setting that becomes a file name, or part of one."""


def _ending(text: str) -> str:
    if not text.strip(" .") or any(c in _FORBIDDEN or not c.isprintable() for c in text):
        raise ValueError(f"{text!r} is not a file extension such as .txt")
    return text


Ending = Annotated[str, AfterValidator(_ending)]
"""A setting that becomes a file extension, with or without its dot."""
