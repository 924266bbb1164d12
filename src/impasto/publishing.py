"""Removes private settings of a run from exported models and report pages.

Exported models and reports are made to be shared. Absolute paths reveal a person's name and
folders, and prompts may be private; both are left out unless `saving.publish` lists them.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Collection, Mapping
from typing import Any, Literal

from impasto.remote_paths import SCHEMES

Publishable = Literal["paths", "prompts"]

PATH_KEYS = frozenset({
    "cache_dir", "config", "hypernetworks", "image_dir", "mask_dir", "metadata_file", "model_dir",
    "output_dir", "path", "prompt_file", "start_from", "template_file", "vae",
    "features", "reg_data_dir", "train_data_dir",
})  # fmt: skip
"""Settings that name a file or a folder; of a path its last part is kept."""

_PATH_ENDINGS = ("_dir", "_file", "_path", "_folder")

ADDRESS_KEYS = frozenset({"ray_address"})
"""Settings that name a machine of the user's network; told with paths, and not without."""

PROMPT_KEYS = frozenset({"prompts", "negative_prompt"})
_FREE_TEXTS = frozenset({"metadata"})  # what the user wrote for the file to say
_ABSOLUTE = re.compile(r"(?:(?:~[\w.-]*)?[/\\]|[A-Za-z]:[/\\])(?=.*[^/\\\s])", re.DOTALL)

_BEGIN = re.compile(
    r"(?<![\w/\\.~\0-])"
    rf"(?:(?:{'|'.join(SCHEMES)}):[/\\]+|file:/{{1,3}}|~[\w.-]*[/\\]+|[A-Za-z]:[/\\]+|(?:(?<!:)[/\\]{{1,2}}|[/\\])(?=[^\s/\\]))"
)
"""Where an absolute path begins in a sentence, or the URL of a place in an object store; the `://`
of any other address is no such place."""

_SEPARATORS = re.compile(r"[/\\]+")
_NO_NAME = re.compile(r"""[\n\r\t\0"<>|]|:\s|:$|\s$|'(?!\w)|\.\w{1,11}[,;)]\s""")
"""What shows that the text between two separators is more than the name of a folder."""

_SHELLS_APOSTROPHE = "'\"'\"'"  # how `shlex.quote` writes one
_HOMES = frozenset({"home", "Users"})  # folders whose folders are called by persons


def redact_settings(settings: Mapping[str, Any], publish: Collection[str]) -> dict[str, Any]:
    """Return the settings without private values.

    Args:
        settings: The resolved tree, as plain values.
        publish: The kinds of private values to keep: `paths`, `prompts`.
    """
    return {
        key: _redact(key, value, publish)
        for key, value in settings.items()
        if ("prompts" in publish or key not in PROMPT_KEYS)
        and ("paths" in publish or key not in ADDRESS_KEYS)
    }


def redact_text(text: str, publish: Collection[str], folders: Collection[str] = ()) -> str:
    """Return a sentence with absolute paths cut to their last part, unless `publish` has `paths`.

    Folders' names hold spaces, and nothing in a sentence says where a path ends. What is between
    two separators is taken for a name unless it holds what names hardly ever do: rather a word too
    many goes than a part of a path stays.

    Args:
        text: The sentence.
        publish: What may be told: `paths`.
        folders: Folders that are called by their names alone; paths below them stay whole from
            there on.
    """
    if "paths" in publish or not _SEPARATORS.search(text):
        return text
    marked = text.replace("\0", "\N{REPLACEMENT CHARACTER}").replace(_SHELLS_APOSTROPHE, "'")
    names = _known(tuple(folders), _home())
    for number, (pattern, name) in enumerate(names):
        marked = pattern.sub(name if name == "~" else f"\0{number}\0", marked)
    cut = _without_folders(marked)
    shown = re.sub(r"\0(\d+)\0", lambda mark: names[int(mark[1])][1], cut)
    return text if shown == text.replace(_SHELLS_APOSTROPHE, "'") else shown


def redact_unknown_paths(text: str, folders: Collection[str]) -> str:
    """Words of a person, in which nothing but the known folders is called by their names."""
    for pattern, name in _known(tuple(folders), _home()):
        text = pattern.sub(lambda _, name=name: name, text)  # type: ignore[misc]
    return text


def short_path(path: str) -> str:
    """A file by its name and that of its folder, unless that is a person's home."""
    separator = r"[/\\]" if re.match(r"[A-Za-z]:[/\\]|\\\\", path) else "/"
    names = [name for name in re.split(separator, path) if name]
    is_home = len(names) > 2 and names[-3] in _HOMES
    return "/".join(names[-1:] if is_home or len(names) < 2 else names[-2:])


def _home() -> str:
    return os.path.expanduser("~")  # noqa: PTH111 - does not raise where there is none


@functools.lru_cache(maxsize=8)
def _known(folders: tuple[str, ...], home: str) -> list[tuple[re.Pattern[str], str]]:
    """What finds each folder however it is written, the longest first, and what it is called."""
    names = {}
    for folder in folders:
        for written in (folder, os.path.abspath(folder), os.path.realpath(folder)):  # noqa: PTH100
            names[written] = path_basename(written)
    names |= dict.fromkeys({home, os.path.realpath(home)}, "~")
    found = []
    for written in sorted(names, key=len, reverse=True):
        names_in_path = [re.escape(name) for name in re.split(r"[/\\]+", written)]
        if (
            len([name for name in names_in_path if name])
            and len(names_in_path) > 1
            and names[written]
        ):
            text = r"[/\\]+".join(names_in_path).removesuffix(r"[/\\]+")
            whole = re.compile(rf"(?<![\w/\\.~-]){text}(?![\w-])")
            found.append((whole, names[written]))
    return found


def _without_folders(text: str) -> str:
    kept, position = "", 0
    while begin := _BEGIN.search(text, position):
        kept += text[position : begin.start()]
        position = begin.end()
        while separator := _SEPARATORS.search(text, position):
            name = text[position : separator.start()]
            is_last = not re.match(r"[\w.~@$%&+=#!(\[{^-]", text[separator.end() :][:1])
            if not name or is_last or _NO_NAME.search(name):
                break
            position = separator.end()
    return kept + text[position:]


def is_path_key(key: str) -> bool:
    """Whether a setting names a file or a folder; also one of another program's by its ending."""
    return key in PATH_KEYS or key.endswith(_PATH_ENDINGS)


def path_basename(path: str) -> str:
    """The last part of a path of any system; what is left where that is a whole drive is empty."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _redact(key: str, value: Any, publish: Collection[str]) -> Any:
    if key in _FREE_TEXTS:
        return value
    if isinstance(value, Mapping):
        return redact_settings(value, publish)
    if isinstance(value, (list, tuple)):
        return [_redact(key, item, publish) for item in value]
    if not isinstance(value, str) or "paths" in publish or key in PROMPT_KEYS:
        return value
    if is_path_key(key) or _ABSOLUTE.match(value):
        return path_basename(value)
    return redact_text(value, publish)
